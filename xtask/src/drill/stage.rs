//! What a drill is made of: network namespaces, programs in them, and waits with a deadline.

use std::{
    cell::Cell,
    ffi::OsStr,
    fmt,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use super::{software::Software, watch::Watch};
use crate::{command, namespace::Namespace, stop};

/// Why a drill cannot run on this machine.
#[derive(Debug)]
pub(crate) struct CannotRun(pub(crate) String);

impl fmt::Display for CannotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CannotRun {}

/// Where one drill runs.
pub(crate) struct Stage<'a> {
    name: &'static str,
    /// Distinguishes the runs of one drill.
    run: usize,
    began: Instant,
    pub(crate) folder: PathBuf,
    pub(crate) software: &'a Software,
    /// `None` where only the symptom is to be seen.
    pub(crate) watch: Option<&'a Watch>,
    started: Cell<usize>,
}

/// Time between two looks while something is waited for.
const POLL: Duration = Duration::from_millis(100);

impl<'a> Stage<'a> {
    pub(crate) fn new(
        name: &'static str,
        folder: &Path,
        software: &'a Software,
        watch: Option<&'a Watch>,
    ) -> Result<Self> {
        static RUNS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let run = RUNS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = folder.join(format!("{name}-{run}"));
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self { name, run, began: Instant::now(), folder, software, watch, started: Cell::new(0) })
    }

    /// Prints what is seen, with the time since the drill began.
    pub(crate) fn say(&self, seen: impl fmt::Display) {
        for line in seen.to_string().lines() {
            println!("{:<28}{:>4.0} s  {line}", self.name, self.began.elapsed().as_secs_f64());
        }
    }

    /// `which` is unique in the drill.
    pub(crate) fn namespace(&self, which: &str) -> Result<Namespace> {
        // A name has room for more than this; an interface's has not.
        Namespace::new(&format!("drill{}-{which}", self.run))
    }

    /// Starts a program whose output goes to a file.
    pub(crate) fn start<A: AsRef<OsStr>>(
        &self,
        inside: &Namespace,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Program> {
        let mut command = inside.command(program);
        command.args(args);
        self.spawn(command)
    }

    /// The same with a command.
    pub(crate) fn spawn(&self, mut command: Command) -> Result<Program> {
        let number = self.started.replace(self.started.get() + 1);
        // Behind nsenter's own argument.
        let program = command.get_args().nth(1).unwrap_or_default();
        let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = self.folder.join(format!("{number}-{name}.log"));
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let both = file.try_clone().context("duplicating a descriptor")?;
        command.current_dir(&self.folder).stdin(Stdio::null()).stdout(file).stderr(both).process_group(0);
        // Go's servers listen with Multipath TCP since 1.24, which is another kind of socket.
        command.env("GODEBUG", "multipathtcp=0");
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Program { child, log })
    }

    /// One of the drills' own programs: `xtask/drills/NAME`, which Python runs.
    pub(crate) fn python<A: AsRef<OsStr>>(
        &self,
        inside: &Namespace,
        script: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Program> {
        let mut command = inside.command("/usr/bin/python3");
        command.args(["-u", "-B"]).arg(self.software.script(script)).args(args);
        self.spawn(command)
    }

    /// The ends of the programs' logs, for a failure.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        let mut files: Vec<_> = fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        files.sort();
        for path in files.iter().filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
            let log = fs::read_to_string(path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            if !lines.is_empty() {
                let last = lines[lines.len().saturating_sub(12)..].join("\n    ");
                text +=
                    &format!("\n  {}:\n    {last}", path.file_name().unwrap_or_default().to_string_lossy());
            }
        }
        text
    }
}

/// Waits until `look` sees something. `look` says what it saw instead, for the error.
pub(crate) fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<std::result::Result<T, String>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match look()? {
            Ok(seen) => return Ok(seen),
            Err(seen) if Instant::now() > deadline => {
                bail!("not within {} s: {what}; last: {seen}", limit.as_secs())
            }
            Err(_) => stop::sleep(POLL)?,
        }
    }
}

/// Waits until something listens on the port.
pub(crate) fn listening(inside: &Namespace, port: u16) -> Result<()> {
    until(&format!("something listens on port {port}"), Duration::from_secs(30), || {
        let listeners = sockets(inside, &["-tln", "sport", "=", &format!(":{port}")])?;
        Ok(if listeners.is_empty() { Err("nobody".to_owned()) } else { Ok(()) })
    })
}

/// A running program; ended when dropped, with all that it started.
pub(crate) struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed.
    pub(crate) fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("reading {}", self.log.display()))
    }

    /// Waits for its end, and returns its exit code.
    pub(crate) fn exit_code(&mut self, limit: Duration) -> Result<Option<i32>> {
        until("a program ends", limit, || {
            Ok(self
                .child
                .try_wait()
                .context("waiting")?
                .map(|status| status.code())
                .ok_or("it runs".to_owned()))
        })
    }

    /// The numbers after a word, sorted.
    pub(crate) fn numbers(&self, word: &str) -> Result<Vec<f64>> {
        let mut numbers: Vec<f64> =
            self.said(word)?.iter().filter_map(|number| number.parse().ok()).collect();
        numbers.sort_by(f64::total_cmp);
        Ok(numbers)
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).with_context(|| format!("sending {signal}"))
    }

    /// Waits until its log has a line that begins with the word.
    pub(crate) fn says(&self, word: &str, limit: Duration) -> Result<()> {
        until(&format!("a program says {word}"), limit, || {
            Ok(if self.said(word)?.is_empty() { Err(self.log()?) } else { Ok(()) })
        })
    }

    /// The lines of its log that begin with a word: what follows it.
    pub(crate) fn said(&self, word: &str) -> Result<Vec<String>> {
        Ok(self.log()?.lines().filter_map(|line| Some(line.strip_prefix(word)?.trim().to_owned())).collect())
    }
}

/// How long a program may take to end by itself.
const END_LIMIT: Duration = Duration::from_secs(2);

impl Drop for Program {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.pid().cast_signed());
        // Asked first, so that it waits for its own children; it may be stopped. It and its group may have ended.
        for signal in [Signal::SIGTERM, Signal::SIGCONT] {
            let _ = killpg(group, signal);
        }
        let deadline = Instant::now() + END_LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = killpg(group, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// The median of numbers that are sorted.
pub(crate) fn median(sorted: &[f64]) -> Result<f64> {
    sorted.get(sorted.len() / 2).copied().context("no numbers")
}

/// Runs a command, which must succeed, and returns what it printed.
pub(crate) fn printed(inside: &Namespace, command: &[&str]) -> Result<String> {
    let (program, args) = command.split_first().context("an empty command")?;
    command::output(inside.command(program).args(args))
}

/// The lines of `ss -H` with these arguments.
pub(crate) fn sockets(inside: &Namespace, args: &[&str]) -> Result<Vec<String>> {
    let text = command::output(inside.command("ss").arg("-H").args(args))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// A counter of the namespace since it was made, from `nstat`.
pub(crate) fn counter(inside: &Namespace, name: &str) -> Result<u64> {
    let text = printed(inside, &["nstat", "-az", name])?;
    let line =
        text.lines().find(|line| line.starts_with(name)).with_context(|| format!("nstat has no {name}"))?;
    line.split_whitespace().nth(1).and_then(|count| count.parse().ok()).context("reading nstat")
}
