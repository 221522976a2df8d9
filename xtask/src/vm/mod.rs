//! `cargo xtask vm`: the kernel tests and the real program on kernels other than this machine's, each booted in QEMU,
//! and a matrix of the results.
//!
//! `support` is the table of what is expected; `kernel` fetches kernels; `modules`, `root` and `plan` make a guest;
//! `qemu` boots it; `run` compares the guest's output with the table, using `check`; `matrix` prints the results.
//! `init.sh` runs in the guest. Needs no KVM, and root only to install what is missing.

mod check;
mod kernel;
mod matrix;
mod modules;
mod plan;
mod qemu;
mod root;
mod run;
mod support;

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use self::{
    kernel::Kernel,
    run::{Common, Executable, Run},
    support::{SERIES, Series},
};
use crate::{command, debian, test};

const DOCUMENT: &str = "docs/kernel-support.md";

/// Programs that this command itself runs, and their Debian packages.
const TOOLS: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("xz", "xz-utils"),
    ("ldd", "libc-bin"),
    ("strip", "binutils"),
    ("setpriv", "util-linux"),
];

/// Run the kernel tests on other kernels, in virtual machines
///
/// Fetches Debian's kernels into target/vm (only unpacked, and kept there), boots each in QEMU with the tests and
/// tcpwatch in it, and prints what works where. Needs no KVM: time is virtual, waits cost nothing. Installs what
/// it needs and this machine lacks (qemu-system-x86, busybox-static, xz-utils, and what the tests use) with
/// apt-get, saying so.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which of Debian's kernel series, such as 6.1; all when none is given
    series: Vec<String>,

    /// Look for newer kernels of the series than those fetched before
    #[arg(long)]
    fetch: bool,

    /// Minutes after which a guest is stopped
    #[arg(long, value_name = "MINUTES", default_value_t = 45)]
    limit: u64,

    /// How many guests at a time; as many as processors when not given
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,

    /// Write what was seen to docs/kernel-support.md, when all tests ran and all went well
    #[arg(long, conflicts_with = "filter")]
    write: bool,

    /// Do not run again what passed with the same kernel, tests and tcpwatch
    #[arg(long)]
    resume: bool,

    /// Which tests, as the kernel test executable takes it
    #[arg(last = true)]
    filter: Vec<OsString>,
}

pub(crate) fn vm(args: &Args) -> Result<()> {
    let series = chosen(&args.series)?;
    debian::install_missing(&TOOLS, "the virtual machines")?;
    debian::install_missing(&test::TOOLS, "the tests")?;
    let folder = command::target_directory()?.join("vm");
    let kernels = kernel::kernels(&folder.join("kernels"), &series, args.fetch)?;
    let common = prepare(folder, args)?;

    let work = series.iter().copied().zip(kernels).collect();
    let jobs = args.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let runs = run_all(&common, work, jobs.max(1))?;

    let matrix = matrix::matrix(&runs);
    println!("{matrix}");
    for run in &runs {
        println!("{}: {} s", run.series.name, run.took.as_secs());
        for fault in &run.faults {
            println!("{}: {fault}", run.series.name);
        }
    }
    let failed: Vec<&str> =
        runs.iter().filter(|run| !run.faults.is_empty()).map(|run| run.series.name).collect();
    ensure!(failed.is_empty(), "not as it is to be on {}", failed.join(", "));
    if args.write {
        let text =
            format!("# Kernel support\n\nWritten by `cargo xtask vm --write`; not to be edited.\n\n{matrix}");
        let document = command::repository().join(DOCUMENT);
        fs::write(&document, text).with_context(|| format!("writing {}", document.display()))?;
        println!("Wrote {DOCUMENT}");
    }
    let names: Vec<&str> = runs.iter().map(|run| run.series.name).collect();
    println!("xtask vm: passed on {}", names.join(", "));
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Series>> {
    if names.is_empty() {
        return Ok(SERIES.iter().collect());
    }
    let known = || SERIES.map(|series| series.name).join(" ");
    let find = |name: &String| {
        Series::named(name).with_context(|| format!("no series {name}: there are {}", known()))
    };
    names.iter().map(find).collect()
}

fn prepare(folder: PathBuf, args: &Args) -> Result<Common> {
    let [tests, tcpwatch] = test::build_kernel_tests()?;
    let mut list = Command::new(&tests);
    let list = command::output(list.args(["--list", "--format", "terse"]).args(&args.filter))?;
    let names: Vec<String> =
        list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect();
    ensure!(!names.is_empty(), "no test matches");
    let library = "import sysconfig; print(sysconfig.get_path('stdlib'))";
    let python = command::output(Command::new("/usr/bin/python3").args(["-c", library]))?;
    let stripped = |built: PathBuf, name: &str| -> Result<Executable> {
        let stripped = folder.join(name);
        strip(&built, &stripped)?;
        Ok(Executable { built, stripped })
    };
    Ok(Common {
        executables: [stripped(tests, "kernel-tests")?, stripped(tcpwatch, "tcpwatch")?],
        tests: names,
        python: python.into(),
        folder,
        limit: Duration::from_secs(args.limit * 60),
        resume: args.resume,
    })
}

/// Strips debug information, with which the two programs would take most of the guest's memory.
fn strip(from: &Path, to: &Path) -> Result<()> {
    command::run(Command::new("strip").arg("--strip-debug").arg("-o").arg(to).arg(from))
}

/// The results in the order of `work`, whichever ends first.
fn run_all(common: &Common, work: Vec<(&'static Series, Kernel)>, jobs: usize) -> Result<Vec<Run>> {
    let waiting: Mutex<VecDeque<_>> = Mutex::new(work.into_iter().enumerate().collect());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let worker = || -> Result<Vec<(usize, Run)>> {
        let mut runs = Vec::new();
        while let Some((place, (series, kernel))) = next() {
            let run = common.run(series, kernel).with_context(|| format!("running {}", series.name))?;
            runs.push((place, run));
        }
        Ok(runs)
    };
    let mut runs = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        let joined =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        joined.collect::<Result<Vec<_>>>()
    })?
    .into_iter()
    .flatten()
    .collect::<Vec<_>>();
    runs.sort_by_key(|(place, _)| *place);
    Ok(runs.into_iter().map(|(_, run)| run).collect())
}
