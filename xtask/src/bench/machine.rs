//! The machine on which is measured: its description, and the use of its processors.

use std::{
    collections::HashMap,
    fs,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{command, stop};

/// The description above the tables.
#[derive(Debug, Deserialize, Serialize)]
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

/// A reading of the processors' times.
struct Used {
    seconds: f64,
    at: Instant,
}

impl Used {
    /// Since then, of the processors' time in all.
    fn share_until(&self, now: &Self) -> f64 {
        let there =
            (now.at - self.at).as_secs_f64() * thread::available_parallelism().map_or(1, usize::from) as f64;
        ((now.seconds - self.seconds) / there).max(0.0)
    }

    fn by_anybody() -> Result<Self> {
        let ticks = processors(&read("/proc/stat")?).context("reading /proc/stat")?;
        Ok(Self { seconds: ticks.busy / TICKS_PER_SECOND, at: Instant::now() })
    }

    fn by_others() -> Result<Self> {
        let stolen = processors(&read("/proc/stat")?).context("reading /proc/stat")?.stolen;
        let mut stats = Vec::new();
        for entry in fs::read_dir("/proc").context("listing /proc")? {
            // Most entries are not processes, and a process may end in the meantime.
            if let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) {
                stats.extend(process_ticks(&stat));
            }
        }
        let ticks = foreign_ticks(&stats, std::process::id()) + stolen;
        Ok(Self { seconds: ticks / TICKS_PER_SECOND, at: Instant::now() })
    }
}

/// Processor time that others use: processes that this program did not start, and other guests of the host.
///
/// It is summed over processes. Subtracting this program's time from the processors' total would be wrong: whether a
/// process is charged for the softirqs that it causes, half of the load's work, depends on how the kernel was built
/// (IRQ_TIME_ACCOUNTING).
pub(crate) struct Foreign(Used);

impl Foreign {
    pub(crate) fn watch() -> Result<Self> {
        Used::by_others().map(Self)
    }

    /// Since then, of the processors' time in all.
    pub(crate) fn share(&self) -> Result<f64> {
        Ok(self.0.share_until(&Used::by_others()?))
    }
}

/// Ticks a second of the times in /proc (USER_HZ), the same on every architecture that tcpwatch runs on.
pub(crate) const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Debug, PartialEq)]
struct Processors {
    busy: f64,
    /// Time that the host's other guests used.
    stolen: f64,
}

/// In proc(5)'s order: user, nice, system, idle, iowait, irq, softirq, steal.
fn processors(stat: &str) -> Option<Processors> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<f64> = line.split_whitespace().take(8).map_while(|ticks| ticks.parse().ok()).collect();
    let [.., idle, iowait, _, _, stolen] = ticks.as_slice() else { return None };
    (ticks.len() == 8)
        .then(|| Processors { busy: ticks.iter().sum::<f64>() - idle - iowait, stolen: *stolen })
}

/// One process.
#[derive(Debug, PartialEq)]
struct ProcessTicks {
    pid: u32,
    parent: u32,
    /// Includes the children that it has waited for, so that nothing is lost when one ends.
    ticks: f64,
}

/// From /proc/PID/stat.
fn process_ticks(stat: &str) -> Option<ProcessTicks> {
    // The name may hold anything. After it: the state is field 3, the parent 4, utime to cstime are 14 to 17 (proc(5)).
    let (pid, after) = (stat.split(' ').next()?, stat.rsplit(')').next()?);
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map_while(|ticks| ticks.parse::<f64>().ok()).sum();
    Some(ProcessTicks { pid: pid.parse().ok()?, parent: fields.get(1)?.parse().ok()?, ticks })
}

/// The processor time of all processes except `own`, its descendants, and the kernel's threads, which also work for the
/// load.
fn foreign_ticks(processes: &[ProcessTicks], own: u32) -> f64 {
    const KERNEL_THREADS: u32 = 2;
    let parents: HashMap<u32, u32> = processes.iter().map(|process| (process.pid, process.parent)).collect();
    let foreign = |process: &&ProcessTicks| {
        let mut line = std::iter::successors(Some(process.pid), |pid| parents.get(pid).copied());
        !line.any(|pid| pid == own || pid == KERNEL_THREADS)
    };
    processes.iter().filter(foreign).map(|process| process.ticks).sum()
}

/// Waits until the remains of the last run (connections in TIME_WAIT, a namespace that ends) are gone.
pub(crate) fn settle() -> Result<()> {
    const QUIET: f64 = 0.05;
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let before = Used::by_anybody()?;
        stop::sleep(Duration::from_millis(500))?;
        if before.share_until(&Used::by_anybody()?) < QUIET || Instant::now() > until {
            return Ok(());
        }
    }
}

/// Processor time of all present threads of a process.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))? {
        // A thread may end in the meantime.
        if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
            nanoseconds += text.split(' ').next().and_then(|first| first.parse::<f64>().ok()).unwrap_or(0.0);
        }
    }
    Ok(nanoseconds / 1e9)
}

/// Memory of a process, by `VmRSS` or `VmHWM`.
pub(crate) fn memory_mib(pid: u32, which: &str) -> Result<f64> {
    Ok(kibibytes(&format!("/proc/{pid}/status"), &format!("{which}:"))? / 1024.0)
}

/// Nanoseconds and runs of the BPF programs that a process has open, measured while a [`BpfStats`] lives.
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

fn kibibytes(file: &str, name: &str) -> Result<f64> {
    let text = first(file, name)?;
    match text.split_whitespace().next().and_then(|number| number.parse().ok()) {
        Some(number) => Ok(number),
        None => bail!("{file} says {name} {text}"),
    }
}

/// The rest of the first line that begins with `name`.
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
        assert_eq!(processors(stat), Some(Processors { busy: 400.0, stolen: 3.0 }));
        assert_eq!(processors("cpu  100 10\n"), None);
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let stat = "17 (a) b (c) S 5 17 17 0 -1 4194560 1 2 3 4 10 20 300 4000 20 0 1 0 99 1 1";
        assert_eq!(process_ticks(stat), Some(ProcessTicks { pid: 17, parent: 5, ticks: 4330.0 }));
        assert_eq!(process_ticks("cpu  100 10 200 5000 600 7 80 3 0 0"), None);
    }

    #[test]
    fn neither_what_we_started_nor_the_kernel_is_foreign() {
        let process = |pid, parent, ticks| ProcessTicks { pid, parent, ticks };
        let processes = [
            process(1, 0, 1.0),
            process(2, 0, 10.0),
            process(16, 2, 100.0),
            process(40, 1, 1_000.0),
            process(41, 40, 10_000.0),
            process(42, 41, 100_000.0),
            process(50, 40, 1_000_000.0),
        ];
        assert_eq!(foreign_ticks(&processes, 41) as u64, 1_001_001);
    }

    #[test]
    fn a_programs_time_is_read_and_other_files_are_not() {
        let fdinfo = "pos:\t0\nprog_type:\t26\nprog_id:\t7\nrun_time_ns:\t900\nrun_cnt:\t9\n";
        assert_eq!(program_time(fdinfo), Some(ProgramTime { id: 7, run_time_ns: 900, runs: 9 }));
        assert_eq!(program_time("pos:\t0\nlink_type:\ttracing\nprog_id:\t7\n"), None);
    }
}
