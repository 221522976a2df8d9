//! The chores of this repository, as `cargo xtask <command>`: arguments in, a process exit code out.
//!
//! What each command does is in the module named after it. Nothing here is part of tcpwatch itself,
//! and nothing here runs outside this checkout, apart from the packages that a command says it installs.

mod bench;
mod bpf;
mod btf;
mod command;
mod debian;
mod docs;
mod drill;
mod fuzz;
mod load;
mod namespace;
mod run;
mod rustc_wrapper;
mod stop;
mod test;
mod toolchain;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", about = "The chores of the tcpwatch repository")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

// The help text of each is with its arguments.
#[derive(Debug, Subcommand)]
enum Chore {
    Bench(bench::Args),
    Bpf(bpf::Args),
    Docs(docs::Args),
    Drill(drill::Args),
    Fuzz(fuzz::Args),
    Load(load::Args),
    Run(run::Args),
    Test(test::Args),
    Vm(vm::Args),
}

fn main() -> ExitCode {
    // `bpf` names this very program as cargo's RUSTC_WRAPPER.
    if let Some(root) = std::env::var_os(rustc_wrapper::ROOT) {
        return rustc_wrapper::main(root.as_ref());
    }
    match chore(&Cli::parse().chore) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn chore(chore: &Chore) -> Result<()> {
    match chore {
        Chore::Bench(args) => bench::bench(args),
        Chore::Bpf(args) => bpf::bpf(args),
        Chore::Docs(args) => docs::docs(args),
        Chore::Drill(args) => drill::drill(args),
        Chore::Fuzz(args) => fuzz::fuzz(args),
        Chore::Load(args) => load::load(args),
        Chore::Run(args) => run::run(args),
        Chore::Test(args) => test::test(args),
        Chore::Vm(args) => vm::vm(args),
    }
}
