//! One kernel's run: makes the guest, boots it, and compares its report with the table.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    check::Check,
    kernel::Kernel,
    modules,
    plan::{self, Heard, Outcome, Step, What},
    qemu::{self, End, Guest},
    root::Root,
    support::Series,
};
use crate::test;

/// Modules that the tests need: for `ip link add type veth` and `type vrf`, for `ss`, for nftables' address translation, zones of
/// connection tracking and random loss, and for tcpwatch's requests about translations.
const MODULES: [&str; 11] = [
    "veth",
    "vrf",
    "tcp_diag",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_redir",
    "nft_numgen",
    "nft_ct",
    "nft_reject_inet",
    "nf_conntrack_netlink",
];
/// The commands of busybox that `init.sh` and the tests' own `sh` call.
const APPLETS: [&str; 17] = [
    "cat", "chmod", "chroot", "env", "hostname", "insmod", "kill", "mkdir", "mount", "poweroff", "rm", "sh",
    "sleep", "stty", "timeout", "true", "umount",
];
/// Parts of Python's library that no test imports.
const NOT_OF_PYTHON: [&str; 9] = [
    "dist-packages",
    "distutils",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "test",
    "tkinter",
    "unittest",
];

/// The part that is the same for all kernels.
#[derive(Debug)]
pub(crate) struct Common {
    /// The kernel tests' executable and tcpwatch: as built, and without what only a debugger reads.
    pub(crate) executables: [Executable; 2],
    /// The names of the tests to run.
    pub(crate) tests: Vec<String>,
    /// Python's library.
    pub(crate) python: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) limit: Duration,
    /// Take results from the log where an identical run passed.
    pub(crate) resume: bool,
}

#[derive(Debug)]
pub(crate) struct Executable {
    pub(crate) built: PathBuf,
    pub(crate) stripped: PathBuf,
}

#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) series: &'static Series,
    pub(crate) kernel: Kernel,
    pub(crate) steps: Vec<(Step, Option<Outcome>)>,
    /// The answers of `tcpwatch check`, one for each set of ways.
    pub(crate) checks: Vec<Check>,
    /// All differences from the table.
    pub(crate) faults: Vec<String>,
    pub(crate) took: Duration,
}

impl Common {
    /// Boots the kernel and runs its whole plan.
    pub(crate) fn run(&self, series: &'static Series, kernel: Kernel) -> Result<Run> {
        let steps = plan::steps(&self.tests, series);
        let logs = self.folder.join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("creating {}", logs.display()))?;
        let log = logs.join(format!("{}.log", series.name));
        let console_log = logs.join(format!("{}-kernel.log", series.name));
        let passed = logs.join(format!("{}.passed", series.name));
        let fingerprint = self.fingerprint(&kernel, &steps)?;
        if self.resume && fs::read_to_string(&passed).is_ok_and(|found| found == fingerprint) {
            eprintln!("{}: passed before, with all the same", series.name);
            let mut heard = Heard::default();
            let said = fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
            for line in said.lines() {
                heard.line(line)?;
            }
            return Ok(judge(series, kernel, steps, heard));
        }
        if passed.exists() {
            fs::remove_file(&passed).with_context(|| format!("removing {}", passed.display()))?;
        }
        let initramfs = self.folder.join(format!("initramfs-{}", series.name));
        self.write_root(&initramfs, &kernel, &steps)
            .with_context(|| format!("making the guest for {}", series.name))?;
        let guest =
            Guest { image: &kernel.image, initramfs: &initramfs, console: &console_log, limit: self.limit };
        eprintln!("{}: booting {}", series.name, kernel.release);
        let began = Instant::now();
        let (mut heard, mut said, mut misheard) = (Heard::default(), String::new(), None);
        let end = guest.run(|line| {
            said += line;
            said.push('\n');
            match heard.line(line) {
                Ok(true) => report_progress(series, &steps, &heard, began.elapsed()),
                Ok(false) => {}
                Err(error) => misheard = Some(error),
            }
        })?;
        let took = began.elapsed();
        fs::write(&log, said).with_context(|| format!("writing {}", log.display()))?;
        fs::remove_file(&initramfs).with_context(|| format!("removing {}", initramfs.display()))?;
        if let Some(error) = misheard {
            return Err(error);
        }
        let console = fs::read(&console_log).with_context(|| format!("reading {}", console_log.display()))?;
        let console = String::from_utf8_lossy(&console);
        let mut run = judge(series, kernel, steps, heard);
        run.took = took;
        run.faults.extend(complaints(&console));
        if end == End::TimedOut {
            run.faults.push(format!("not done after {} s; --limit gives more", self.limit.as_secs()));
        }
        if run.faults.is_empty() {
            fs::write(&passed, fingerprint).with_context(|| format!("writing {}", passed.display()))?;
        } else {
            run.faults.push(format!("all it said: {}; its kernel: {}", log.display(), console_log.display()));
        }
        Ok(run)
    }

    /// A hash of everything that determines a run.
    fn fingerprint(&self, kernel: &Kernel, steps: &[Step]) -> Result<String> {
        let [tests, tcpwatch] = &self.executables;
        let mut hasher = DefaultHasher::new();
        for executable in [tests, tcpwatch] {
            let file = &executable.stripped;
            fs::read(file).with_context(|| format!("reading {}", file.display()))?.hash(&mut hasher);
        }
        plan::script(steps, &tests.built, &tcpwatch.built).hash(&mut hasher);
        Ok(format!("{} {:016x}\n", kernel.version, hasher.finish()))
    }

    fn write_root(&self, file: &Path, kernel: &Kernel, steps: &[Step]) -> Result<()> {
        let mut root = Root::create(file)?;
        root.script("/init", include_str!("init.sh"))?;
        for folder in ["/dev", "/proc", "/root", "/run", "/sys", "/tmp"] {
            root.directory(Path::new(folder))?;
        }
        root.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")?;
        root.text("/etc/group", "root:x:0:\n")?;
        root.text("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")?;
        root.program("busybox")?;
        for applet in APPLETS {
            root.link(&Path::new("/usr/bin").join(applet), Path::new("busybox"))?;
        }
        for (program, _) in test::TOOLS {
            root.program(program)?;
        }
        root.tree(&self.python, &NOT_OF_PYTHON)?;
        for executable in &self.executables {
            root.executable(&executable.stripped, &executable.built)?;
        }
        let modules = modules::modules(&kernel.modules, &MODULES)?;
        for module in &modules {
            root.bytes(&format!("/vm/{}.ko", module.name), &module.bytes)?;
        }
        let names: Vec<&str> = modules.iter().map(|module| &*module.name).collect();
        root.text("/vm/modules", &names.join("\n"))?;
        let [tests, tcpwatch] = &self.executables;
        root.text("/vm/plan", &plan::script(steps, &tests.built, &tcpwatch.built))?;
        root.finish()
    }
}

/// A line about the last step, to show progress.
fn report_progress(series: &Series, steps: &[Step], heard: &Heard, elapsed: Duration) {
    let count = heard.outcomes.len();
    let (Some(step), Some(outcome)) = (steps.get(count - 1), heard.outcomes.last()) else { return };
    let ended = match (&step.what, outcome.fault()) {
        (What::Check, _) => "exit code ".to_owned() + &outcome.exit_code.to_string(),
        (What::Test(_), None) => "ok".to_owned(),
        (What::Test(_), Some(_)) => "FAILED".to_owned(),
    };
    eprintln!(
        "{}: {count}/{} {}: {ended} after {:.1} s of its own; {} s of ours so far",
        series.name,
        steps.len(),
        step.name(),
        outcome.took.as_secs_f64(),
        elapsed.as_secs()
    );
}

fn judge(series: &'static Series, kernel: Kernel, steps: Vec<Step>, heard: Heard) -> Run {
    let (mut checks, mut faults) = (Vec::new(), Vec::new());
    if !heard.done {
        let step = steps.get(heard.outcomes.len());
        let step = step.map_or_else(|| "the end".to_owned(), Step::name);
        faults.push(format!("the guest ended amid {step}:\n{}", qemu::tail(heard.unfinished(), 20)));
    }
    for (step, outcome) in steps.iter().zip(&heard.outcomes) {
        let found = match &step.what {
            What::Check => match Check::parse(&outcome.printed) {
                Ok(check) => {
                    let faults = check.faults(outcome.exit_code, series, step.forced);
                    checks.push(check);
                    faults
                }
                Err(error) => vec![format!("{error:#}")],
            },
            What::Test(_) => outcome.fault().into_iter().collect(),
        };
        faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", step.name())));
    }
    let mut outcomes = heard.outcomes.into_iter();
    let steps = steps.into_iter().map(|step| (step, outcomes.next())).collect();
    Run { series, kernel, steps, checks, faults, took: Duration::ZERO }
}

impl Outcome {
    /// The reason why the test did not pass. A test that skips itself did not: the table lists the tests to be skipped.
    pub(crate) fn fault(&self) -> Option<String> {
        let why = match self.exit_code {
            0 if !self.printed.contains("test result: ok. 1 passed") => "it was not run",
            0 if self.printed.contains("SKIPPED") => "it skipped itself, which the table does not say",
            0 => return None,
            137 => "it did not end",
            _ => "it failed",
        };
        Some(format!("{why}:\n{}", qemu::tail(&self.printed, 40)))
    }
}

fn complaints(console: &str) -> Option<String> {
    let complaints = qemu::complaints(console);
    let first = complaints.first()?;
    let place =
        console.lines().take_while(|line| !line.contains(first)).filter(|line| line.contains("vm: step"));
    let place = place.last().map_or_else(String::new, |line| format!(" (after {})", line.trim_end()));
    Some(format!("the kernel complains{place}:\n{}", complaints[..complaints.len().min(10)].join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(exit_code: i32, printed: &str) -> Option<String> {
        let fault = Outcome { exit_code, printed: printed.to_owned(), took: Duration::ZERO }.fault();
        fault.map(|fault| fault.split(':').next().unwrap().to_owned())
    }

    #[test]
    fn only_a_test_that_ran_to_its_end_has_passed() {
        assert_eq!(outcome(0, "test result: ok. 1 passed; 0 failed"), None);
        assert_eq!(outcome(0, "test result: ok. 0 passed; 0 failed").as_deref(), Some("it was not run"));
        assert_eq!(outcome(101, "test result: FAILED. 0 passed; 1 failed").as_deref(), Some("it failed"));
        assert_eq!(outcome(137, "").as_deref(), Some("it did not end"));
        let skipped = "SKIPPED this: no that\ntest result: ok. 1 passed; 0 failed";
        assert_eq!(outcome(0, skipped).as_deref(), Some("it skipped itself, which the table does not say"));
    }

    #[test]
    fn a_complaint_of_the_kernel_names_the_step_before_it() {
        let log = "[1.0] vm: step 0\n[2.0] vm: step 1\n[3.0] WARNING: CPU: 0\n[4.0] vm: step 2\n";
        let complaint = complaints(log).unwrap();
        assert_eq!(complaint, "the kernel complains (after [2.0] vm: step 1):\n[3.0] WARNING: CPU: 0");
        assert_eq!(complaints("[1.0] vm: step 0\n"), None);
    }
}
