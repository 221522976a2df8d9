//! One guest: QEMU without hardware virtualisation, in virtual time, until it turns itself off or exceeds its time.
//!
//! The guest's clock counts its instructions (`-icount`) and jumps while the guest is idle: a TIME_WAIT of 60 s costs
//! nothing, and a busy machine does not let TCP's timers expire. This allows only one processor.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// The guest's speed: 1 ns an instruction is near that of a real machine, so the tests keep their time limits.
const ICOUNT: &str = "shift=0,sleep=off";
/// The guest's memory; the initramfs, packed and unpacked, takes a fifth of it.
const MEMORY: &str = "1536";
/// Log level 4: warnings and worse go to the console. A panic and a reboot end the guest.
const COMMAND_LINE: &str = "console=ttyS0 loglevel=5 printk.devkmsg=on oops=panic panic=-1 mitigations=off \
                            nowatchdog rcupdate.rcu_cpu_stall_suppress=1 random.trust_cpu=on";

#[derive(Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) image: &'a Path,
    pub(crate) initramfs: &'a Path,
    /// Where the kernel's log goes.
    pub(crate) console: &'a Path,
    pub(crate) limit: Duration,
}

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, with success or not.
    Off,
    TimedOut,
}

impl Guest<'_> {
    /// Passes each line that the guest prints to `hear`.
    pub(crate) fn run(&self, mut hear: impl FnMut(&str)) -> Result<End> {
        fs::write(self.console, "").with_context(|| format!("creating {}", self.console.display()))?;
        let mut console = std::ffi::OsString::from("file:");
        console.push(self.console);
        // QEMU ends with this process, however that ends.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-M", "pc", "-accel", "tcg,thread=single,tb-size=256", "-icount", ICOUNT])
            .args(["-cpu", "max,la57=off", "-smp", "1", "-m", MEMORY])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none", "-no-reboot"])
            .arg("-serial")
            .arg(console)
            .args(["-chardev", "stdio,id=said,signal=off", "-serial", "chardev:said"])
            .arg("-kernel")
            .arg(self.image)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", COMMAND_LINE])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut qemu = command.spawn().context("starting qemu-system-x86_64")?;
        let deadline = Instant::now() + self.limit;
        let lines = lines(qemu.stdout.take().context("QEMU's output is not ours")?);
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => hear(&line),
                Err(RecvTimeoutError::Disconnected) => {
                    qemu.wait().context("waiting for QEMU")?;
                    return Ok(End::Off);
                }
                Err(RecvTimeoutError::Timeout) => {
                    qemu.kill().context("stopping QEMU")?;
                    qemu.wait().context("waiting for QEMU")?;
                    return Ok(End::TimedOut);
                }
            }
        }
    }
}

/// The guest's output, line by line, until it ends.
fn lines(said: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut said = BufReader::new(said);
        let mut line = Vec::new();
        while said.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    receiver
}

/// Lines that must not be in a kernel's log.
pub(crate) fn complaints(log: &str) -> Vec<&str> {
    const MARKS: [&str; 9] = [
        "WARNING:",
        "BUG:",
        "Oops:",
        "Call Trace:",
        "general protection fault",
        "Kernel panic",
        "INFO: task",
        "INFO: rcu",
        "kernel tried to execute",
    ];
    log.lines().map(str::trim_end).filter(|line| MARKS.iter().any(|mark| line.contains(mark))).collect()
}

/// The last lines of a log.
pub(crate) fn tail(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().map(str::trim_end).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_complaints_are_found_and_its_chatter_is_not() {
        let log = "[    1.0] Spectre V2 : WARNING_FREE\r\n[    2.0] WARNING: CPU: 0 PID: 7 at net/ipv4/tcp.c:1\r\n\
                   [    2.0] Call Trace:\r\n[    3.0] vm: step 4\n";
        assert_eq!(complaints(log).len(), 2);
        assert_eq!(complaints("[    3.0] vm: step 4\n"), [] as [&str; 0]);
    }

    #[test]
    fn a_tail_is_the_last_lines_of_what_there_is() {
        assert_eq!(tail("a\r\nb\r\nc\r\n", 2), "b\nc");
        assert_eq!(tail("a\n", 2), "a");
    }
}
