//! The machine that the figures are of: what it is, and what its processors do.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::command;

/// What stands over the tables.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_gib: f64,
    pub(crate) kernel: String,
    pub(crate) commit: String,
    pub(crate) date: String,
}

impl Machine {
    pub(crate) fn this() -> Result<Self> {
        let git = |args: &[&str]| {
            command::output(Command::new("git").args(args).current_dir(command::repository()))
        };
        let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
        let commit = git(&["rev-parse", "--short", "HEAD"])?;
        let seconds = SystemTime::UNIX_EPOCH.elapsed().context("asking for the date")?.as_secs();
        Ok(Self {
            processor: first("/proc/cpuinfo", "model name")?.trim_start_matches([':', ' ', '\t']).to_owned(),
            processors: thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kibibytes("/proc/meminfo", "MemTotal:")? / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            commit: if changed { format!("{commit} with changes") } else { commit },
            date: command::output(Command::new("date").args(["-u", "+%F", "-d", &format!("@{seconds}")]))?,
        })
    }
}

/// What of the processors' time somebody else used, of all there was: other programs, and other guests of the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Busy {
    seconds: f64,
    at: Instant,
}

impl Busy {
    pub(crate) fn now() -> Result<Self> {
        let stat = read("/proc/stat")?;
        Ok(Self { seconds: busy_seconds(&stat).context("reading /proc/stat")?, at: Instant::now() })
    }

    /// Since then, less what the load and the tool took of it; of the processors' time in all.
    pub(crate) fn foreign_share(&self, own_seconds: f64) -> Result<f64> {
        let now = Self::now()?;
        let there =
            (now.at - self.at).as_secs_f64() * thread::available_parallelism().map_or(1, usize::from) as f64;
        Ok(((now.seconds - self.seconds - own_seconds) / there).max(0.0))
    }
}

/// Of /proc's times, on every architecture that tcpwatch runs on (USER_HZ).
pub(crate) const TICKS_PER_SECOND: f64 = 100.0;

/// In proc(5)'s order: user, nice, system, idle, iowait, irq, softirq, steal. All but idle and iowait.
fn busy_seconds(stat: &str) -> Option<f64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<f64> = line.split_whitespace().take(8).map_while(|ticks| ticks.parse().ok()).collect();
    let idle: f64 = ticks.get(3..5)?.iter().sum();
    (ticks.len() == 8).then(|| (ticks.iter().sum::<f64>() - idle) / TICKS_PER_SECOND)
}

/// Waits until what the last run left behind (connections in TIME_WAIT, a namespace that ends) is done with.
pub(crate) fn settle() -> Result<()> {
    const QUIET: f64 = 0.05;
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let before = Busy::now()?;
        thread::sleep(Duration::from_millis(500));
        if before.foreign_share(0.0)? < QUIET || Instant::now() > until {
            return Ok(());
        }
    }
}

/// Processor time of all threads of a process that there are.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))? {
        // A thread may end meanwhile.
        if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
            nanoseconds += text.split(' ').next().and_then(|first| first.parse::<f64>().ok()).unwrap_or(0.0);
        }
    }
    Ok(nanoseconds / 1e9)
}

/// `VmRSS` or `VmHWM`.
pub(crate) fn memory_mib(pid: u32, which: &str) -> Result<f64> {
    Ok(kibibytes(&format!("/proc/{pid}/status"), &format!("{which}:"))? / 1024.0)
}

/// Nanoseconds and runs of the BPF programs that a process has open, while [`BpfStats`] stands.
pub(crate) fn bpf_time(pid: u32) -> Result<Vec<ProgramTime>> {
    let mut programs: Vec<ProgramTime> = Vec::new();
    for entry in
        fs::read_dir(format!("/proc/{pid}/fdinfo")).with_context(|| format!("process {pid} is gone"))?
    {
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        if let Some(program) = program_time(&text)
            && programs.iter().all(|known| known.id != program.id)
        {
            programs.push(program);
        }
    }
    Ok(programs)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProgramTime {
    pub(crate) id: u64,
    pub(crate) run_time_ns: u64,
    pub(crate) runs: u64,
}

fn program_time(fdinfo: &str) -> Option<ProgramTime> {
    let field = |name: &str| {
        fdinfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
    };
    Some(ProgramTime { id: field("prog_id")?, run_time_ns: field("run_time_ns")?, runs: field("run_cnt")? })
}

/// The kernel measures BPF programs while this lives.
pub(crate) struct BpfStats {
    before: String,
}

const BPF_STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl BpfStats {
    pub(crate) fn on() -> Result<Self> {
        let before = read(BPF_STATS)?;
        fs::write(BPF_STATS, "1").context("switching the kernel's statistics of BPF programs on")?;
        Ok(Self { before })
    }
}

impl Drop for BpfStats {
    fn drop(&mut self) {
        if let Err(error) = fs::write(BPF_STATS, &self.before) {
            eprintln!("{BPF_STATS} stays switched on: {error}");
        }
    }
}

/// A network namespace with loopback, gone with this.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    pub(crate) fn new(purpose: &str) -> Result<Self> {
        let name = format!("tcpwatch-bench-{purpose}-{}", std::process::id());
        command::output(Command::new("ip").args(["netns", "add", &name]))?;
        let made = Self { name };
        command::output(Command::new("ip").args(["-n", &made.name, "link", "set", "lo", "up"]))?;
        Ok(made)
    }

    /// A command that runs inside.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = command::output(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("the network namespace {} stays: {error:#}", self.name);
        }
    }
}

/// This program.
pub(crate) fn xtask() -> Result<PathBuf> {
    std::env::current_exe().context("finding this program")
}

fn kibibytes(file: &str, name: &str) -> Result<f64> {
    let text = first(file, name)?;
    match text.split_whitespace().next().and_then(|number| number.parse().ok()) {
        Some(number) => Ok(number),
        None => bail!("{file} says {name} {text}"),
    }
}

/// What follows `name` in the first line that begins with it.
fn first(file: &str, name: &str) -> Result<String> {
    let text = read(file)?;
    let found = text.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned());
    found.with_context(|| format!("{file} has no {name}"))
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("reading {file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_idle_and_iowait_is_busy() {
        let stat = "cpu  100 10 200 5000 600 7 80 3 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy_seconds(stat), Some(4.0));
        assert_eq!(busy_seconds("cpu  100 10\n"), None);
    }

    #[test]
    fn a_programs_time_is_read_and_other_files_are_not() {
        let fdinfo = "pos:\t0\nprog_type:\t26\nprog_id:\t7\nrun_time_ns:\t900\nrun_cnt:\t9\n";
        assert_eq!(program_time(fdinfo), Some(ProgramTime { id: 7, run_time_ns: 900, runs: 9 }));
        assert_eq!(program_time("pos:\t0\nlink_type:\ttracing\nprog_id:\t7\n"), None);
    }
}
