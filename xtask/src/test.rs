//! `cargo xtask test`: everything from a fresh Debian machine with stable Rust to a tested tcpwatch.
//!
//! The workspace's tests run as the current user. The kernel tests (test target `kernel`, behind the
//! feature `kernel-tests` so that a plain `cargo test` never builds them) are built as the current
//! user too, so that `target/` stays theirs, and only run as root.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{command, debian};

/// Run all tests: the workspace's as you, then the kernel tests as root
///
/// Installs what the tests use and this machine lacks (iproute2, util-linux, python3, runc and nftables with apt-get;
/// promtool is only unpacked into target/tools, schemathesis installed there from PyPI), saying so.
/// The kernel tests load the BPF programs into the running kernel; they run directly when you are root, through `sudo -E`
/// when not.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Arguments for the kernel test executable, such as a filter or --nocapture
    #[arg(last = true)]
    args: Vec<OsString>,
}

pub(crate) fn test(args: &Args) -> Result<()> {
    // First, so that a long build does not end in "no sudo".
    command::as_root("the kernel test executable")?;
    debian::install_missing(&TOOLS, "the tests")?;
    let promtool = promtool()?;
    let schemathesis = schemathesis()?;

    command::run(command::cargo().args(["test", "--workspace", "--locked"]).env("PROMTOOL", &promtool))
        .context("the workspace's tests")?;

    let [kernel, _] = build_kernel_tests()?;
    let variable = |name: &str, path: &Path| {
        let mut variable = OsString::from(name);
        variable.push("=");
        variable.push(path);
        variable
    };
    // `env` because sudo's policy may drop variables in spite of -E. The folder is the one in which
    // `cargo test` runs a package's tests.
    command::run(
        command::as_root("env")?
            .arg("TCPWATCH_KERNEL_TESTS=1")
            .arg(variable("PROMTOOL", &promtool))
            .arg(variable("SCHEMATHESIS", &schemathesis))
            .arg(&kernel)
            .args(&args.args)
            .current_dir(command::repository().join("tcpwatch")),
    )
    .context("the kernel tests")?;

    let rest = if args.args.is_empty() { " as root" } else { " as root, with the arguments given" };
    println!("xtask test: passed: the workspace's tests as this user; the kernel tests{rest}");
    Ok(())
}

/// Programs that the kernel tests run, and their Debian packages.
pub(crate) const TOOLS: [(&str, &str); 8] = [
    ("ip", "iproute2"),
    ("ss", "iproute2"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("/usr/bin/python3", "python3"),
    ("runc", "runc"),
    ("nft", "nftables"),
];

/// Paths of the kernel tests' executable and of the tcpwatch that they start.
pub(crate) fn build_kernel_tests() -> Result<[PathBuf; 2]> {
    let mut build = command::cargo();
    build.args(["test", "--package", "tcpwatch", "--test", "kernel", "--features", "kernel-tests"]);
    command::build_executables(build.args(["--no-run", "--locked"]), ["kernel", "tcpwatch"])
}

/// The program that checks tcpwatch's metrics: PROMTOOL, else from PATH, else unpacked from Debian's
/// package without installing it, for that would start a Prometheus server on this machine.
fn promtool() -> Result<PathBuf> {
    if let Some(given) = env::var_os("PROMTOOL").map(PathBuf::from) {
        ensure!(
            command::is_executable(&given),
            "PROMTOOL={} is no executable file: correct or unset it",
            given.display()
        );
        return Ok(given);
    }
    debian::unpacked("prometheus", "usr/bin/promtool", "the tests", ", or set PROMTOOL to its path")
}

/// The packages of schemathesis' virtual environment, with their versions.
const SCHEMATHESIS_PACKAGES: &str = include_str!("schemathesis.txt");

/// The folder with the programs of schemathesis, which checks the answers against the OpenAPI document: SCHEMATHESIS, else a
/// virtual environment in target/tools, made anew when its packages change.
fn schemathesis() -> Result<PathBuf> {
    if let Some(given) = env::var_os("SCHEMATHESIS").map(PathBuf::from) {
        ensure!(
            command::is_executable(&given.join("schemathesis")),
            "SCHEMATHESIS={} is no folder with schemathesis in it: correct or unset it",
            given.display()
        );
        return Ok(given);
    }
    let environment = command::target_directory()?.join("tools").join("schemathesis");
    let (bin, installed) = (environment.join("bin"), environment.join("packages.txt"));
    if fs::read_to_string(&installed).is_ok_and(|packages| packages == SCHEMATHESIS_PACKAGES) {
        return Ok(bin);
    }
    eprintln!("Installing schemathesis for the tests: from PyPI, into {}", environment.display());
    let python = || Command::new("/usr/bin/python3");
    // Debian's python3 lacks what a virtual environment begins with.
    if command::output(python().args(["-c", "import ensurepip"])).is_err() {
        debian::install(&["python3-venv"], "schemathesis")?;
    }
    command::run(python().args(["-m", "venv", "--clear"]).arg(&environment))?;
    let packages = environment.join("requirements.txt");
    fs::write(&packages, SCHEMATHESIS_PACKAGES).with_context(|| format!("writing {}", packages.display()))?;
    command::run(
        Command::new(bin.join("python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
            .arg(&packages),
    )
    .context("installing schemathesis from PyPI; SCHEMATHESIS may name the bin folder of an environment that has it")?;
    fs::rename(&packages, &installed).with_context(|| format!("renaming {}", packages.display()))?;
    Ok(bin)
}
