//! `cargo xtask fuzz`: the targets of `fuzz/`, built with stable Rust and run one after another.
//!
//! The layout is that of cargo-fuzz, which also runs them and needs nightly Rust. The instrumentation is LLVM's, which
//! stable Rust can be told to use; libFuzzer is built with the machine's C++ compiler.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{command, debian};

/// Feed random bytes to whatever parses bytes, and stop at the first panic
///
/// What was found before is in target/fuzz/corpus and grows; an input that fails is written to fuzz/artifacts. Installs g++
/// with apt-get where there is no C++ compiler.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this target
    target: Option<String>,
    /// Time for all targets together
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// What cargo-fuzz passes too: edges are counted, and what is compared guides the search.
const INSTRUMENTED: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";
/// Limits for one input.
const INPUT_SECONDS: u32 = 10;
const INPUT_MIB: u32 = 2048;

pub(crate) fn fuzz(args: &Args) -> Result<()> {
    let all = targets()?;
    let wanted: Vec<_> = match &args.target {
        Some(target) => {
            ensure!(all.contains(target), "no target `{target}`: there are {}", all.join(", "));
            vec![target.clone()]
        }
        None => all,
    };
    debian::install_missing(&[("c++", "g++")], "libFuzzer")?;
    let built = build(&wanted)?;
    let each = Duration::from_secs(args.seconds) / u32::try_from(wanted.len())?;
    for target in &wanted {
        run(target, &built.join(target), each)?;
    }
    println!("xtask fuzz: nothing found by {} in {} s", wanted.join(", "), args.seconds);
    Ok(())
}

fn folder() -> PathBuf {
    command::repository().join("fuzz")
}

/// Names of the targets, sorted.
fn targets() -> Result<Vec<String>> {
    let folder = folder().join("fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The folder of the executables.
fn build(targets: &[String]) -> Result<PathBuf> {
    let folder = folder();
    fs::copy(command::repository().join("Cargo.lock"), folder.join("Cargo.lock"))
        .context("copying Cargo.lock")?;
    let machine = machine()?;
    let into = command::target_directory()?.join("fuzz");
    let mut cargo = command::cargo();
    // With a target cargo leaves build scripts and macros as they are.
    cargo.args(["build", "--release", "--target", &machine, "--target-dir"]).arg(&into);
    for target in targets {
        cargo.args(["--bin", target]);
    }
    command::run(cargo.current_dir(folder).env("RUSTFLAGS", INSTRUMENTED)).context("building the targets")?;
    Ok(into.join(machine).join("release"))
}

/// This machine, as rustc calls it.
fn machine() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = command::output(Command::new(rustc).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(ToOwned::to_owned).context("rustc does not say for which machine it is")
}

fn run(target: &str, program: &Path, time: Duration) -> Result<()> {
    let folder = folder();
    let corpus = command::target_directory()?.join("fuzz/corpus").join(target);
    let artifacts = folder.join("artifacts").join(target);
    for made in [&corpus, &artifacts] {
        fs::create_dir_all(made).with_context(|| format!("making {}", made.display()))?;
    }
    let seconds = time.as_secs().max(1);
    command::run(
        Command::new(program)
            .arg(&corpus)
            .arg(folder.join("seeds").join(target))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={INPUT_SECONDS}"))
            .arg(format!("-rss_limit_mb={INPUT_MIB}"))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .args(["-print_final_stats=1", "-verbosity=0"]),
    )
    .with_context(|| format!("{target} found something, in {}", artifacts.display()))
}
