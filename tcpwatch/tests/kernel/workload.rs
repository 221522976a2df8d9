//! Processes with connections: Python programs, each a process of its own in the test's namespace.
//!
//! Each program `say`s lines that the test reads and waits for `order`s that the test sends, which keeps both in step.
//! It ends when the test drops it, and by itself when the test is gone.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
};

use crate::{eventually::DEADLINE, netns::Namespace};

/// The beginning of every program.
const PRELUDE: &str = include_str!("prelude.py");

/// The arguments with which python3 runs `program` as the process `comm`; `args` are the program's.
pub(crate) fn python_args(comm: &str, program: &str, args: &[&str]) -> Vec<String> {
    let program = format!("{PRELUDE}\n{program}");
    ["-c", &program, comm].iter().chain(args).map(|&arg| arg.to_owned()).collect()
}

pub(crate) struct Workload {
    child: Child,
    lines: Receiver<String>,
}

impl Workload {
    /// Runs `program` as the process `comm`; `args` are its `args`.
    pub(crate) fn start(namespace: &Namespace, comm: &str, program: &str, args: &[&str]) -> Self {
        // Debian's own python3 where present: the shims of version managers are processes in between.
        let python = if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" };
        // nsenter becomes the program, so its pid is the program's.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", namespace.path())).arg(python);
        command.args(python_args(comm, program, args));
        Self::spawn(&mut command).expect("these tests need nsenter (util-linux)")
    }

    /// Starts a command that runs python3 with [`python_args`].
    pub(crate) fn spawn(command: &mut Command) -> std::io::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The test may have ended.
                let _ = sender.send(line);
            }
        });
        Ok(Self { child, lines })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line it says.
    pub(crate) fn hear(&mut self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("a line from the program: it failed or hangs")
    }

    /// The next line it says, with a longer deadline.
    pub(crate) fn hear_for_long(&mut self) -> String {
        self.lines.recv_timeout(6 * DEADLINE).expect("a line from the program: it failed or hangs")
    }

    /// The next line, if it has said one.
    pub(crate) fn try_hear(&mut self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// The next line it says, as numbers.
    pub(crate) fn hear_numbers<const N: usize>(&mut self) -> [f64; N] {
        let line = self.hear();
        let numbers: Vec<f64> = line.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        numbers.try_into().unwrap_or_else(|_| panic!("{N} numbers: {line}"))
    }

    /// Lets it go on after its next `order()`.
    pub(crate) fn order(&mut self) {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(b"go\n").and_then(|()| input.flush()).expect("the program to be alive");
    }

    /// Lets it go on and hears what it says then.
    pub(crate) fn ask(&mut self) -> String {
        self.order();
        self.hear()
    }

    /// Segments retransmitted in its namespace, by the kernel's own count (RetransSegs, as `nstat` shows it).
    pub(crate) fn retransmitted(&self) -> u64 {
        self.kernel_count("RetransSegs").unwrap()
    }

    /// A TCP counter of its namespace, by its name in `nstat` without the prefix; `None` where the kernel has none.
    pub(crate) fn kernel_count(&self, wanted: &str) -> Option<u64> {
        ["snmp", "netstat"].iter().find_map(|file| {
            let text = std::fs::read_to_string(format!("/proc/{}/net/{file}", self.pid())).unwrap();
            let mut lines = text.lines().filter(|line| line.starts_with("Tcp"));
            while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
                let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == wanted);
                if let Some((_, value)) = found {
                    return value.parse().ok();
                }
            }
            None
        })
    }

    /// Number of sockets of its namespace in `state`, from the kernel's own list; TIME_WAIT included.
    pub(crate) fn sockets_in(&self, state: u8) -> usize {
        ["tcp", "tcp6"]
            .iter()
            .flat_map(|file| {
                let text = std::fs::read_to_string(format!("/proc/{}/net/{file}", self.pid())).unwrap();
                text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
            })
            .filter(|line| line.split_whitespace().nth(3) == Some(&format!("{state:02X}")))
            .count()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
