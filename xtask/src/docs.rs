//! `cargo xtask docs`: writes the documents that come from tables in the code.

use anyhow::{Context, Result};

use crate::command;

/// Write the documents that come from tables in the code
///
/// The reference of the HTTP API, the metrics, the options, and the answers that tests compare with. `cargo xtask test` fails when one of them differs from its
/// table.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn docs(_: &Args) -> Result<()> {
    command::run(
        command::cargo()
            .args(["test", "--package", "tcpwatch", "--test", "documents", "--test", "answers", "--locked"])
            .env("TCPWATCH_WRITE_DOCUMENTS", "1"),
    )
    .context("writing the documents")?;
    println!("xtask docs: written; `git diff` shows what changed");
    Ok(())
}
