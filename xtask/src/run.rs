//! `cargo xtask run`: builds as the current user, then becomes tcpwatch, as root.

use std::{ffi::OsString, os::unix::process::CommandExt};

use anyhow::{Context, Result};

use crate::command;

/// Build tcpwatch in release mode and run it as root
///
/// Builds as the current user, then runs the result with ARGS: directly when you are root, through
/// `sudo -E` when not. The program replaces this one, so signals and the exit code are its own.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Arguments for tcpwatch; without any, its default command
    #[arg(last = true)]
    args: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    // First, so that the build does not end in "no sudo".
    command::as_root("tcpwatch")?;
    let mut build = command::cargo();
    build.args(["build", "--release", "--package", "tcpwatch", "--bin", "tcpwatch", "--locked"]);
    let [tcpwatch] = command::build_executables(&mut build, ["tcpwatch"])?;

    let mut run = command::as_root(&tcpwatch)?;
    run.args(&args.args);
    let how = if command::is_root()? { "as root" } else { "through sudo -E" };
    eprintln!("Running {how}: {}", tcpwatch.display());
    // Not a child: Ctrl-C and SIGTERM reach tcpwatch (or sudo, which passes them on) and only it.
    Err(run.exec()).with_context(|| format!("running {} {how}", tcpwatch.display()))
}
