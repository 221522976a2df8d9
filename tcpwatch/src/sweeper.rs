//! The thread that looks at all sockets when asked: it reads the kernel's iterators, in one network
//! namespace after the other.
//!
//! It keeps the loaded programs, because an iterator over a namespace can only be made from inside it, and
//! entering a namespace changes the whole thread.

use std::{
    fs::File,
    io::{self, Read as _},
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};

use crate::{netns, probes::Probes, sweep::Coverage};

/// What a sweep reports.
#[derive(Debug)]
pub enum Report {
    /// `SeenSocket` records, the next that it read.
    Seen(Bytes),
    /// There are no more.
    Done(Swept),
}

/// How a sweep went.
#[derive(Debug)]
pub struct Swept {
    pub coverage: Coverage,
    /// Processor time, the kernel's part included: not more because others keep the processors busy.
    pub cost: Duration,
    /// What could not be looked at, for the log.
    pub problems: Vec<String>,
}

/// Bytes reported at once, whole records: what is read and not yet applied takes no more than a few of these,
/// however many sockets there are.
const PART_BYTES: usize = 4096 * size_of::<tcpwatch_common::SeenSocket>();

/// Asks the thread to sweep. The thread, and with it the programs, ends when this is dropped.
pub struct Sweeper {
    requests: Sender<()>,
}

impl Sweeper {
    /// `report` gets what each sweep finds, while it goes on.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(probes: Probes, report: tokio::sync::mpsc::Sender<Report>) -> io::Result<Self> {
        let (requests, asked) = channel();
        std::thread::Builder::new().name("sweeper".into()).spawn(move || run(probes, &asked, &report))?;
        Ok(Self { requests })
    }

    /// Looks at every socket once; the answer arrives at `report`.
    pub fn sweep(&self) {
        // The thread ends only after this.
        let _ = self.requests.send(());
    }
}

fn run(mut probes: Probes, asked: &Receiver<()>, report: &tokio::sync::mpsc::Sender<Report>) {
    let mut inside = netns::own();
    while asked.recv().is_ok() {
        let began = cpu_time();
        let mut sweep = Sweep { report, coverage: Coverage::default(), problems: Vec::new(), inside };
        sweep.namespaces(&mut probes);
        sweep.held(&mut probes);
        inside = sweep.inside;
        let swept = Swept {
            coverage: sweep.coverage,
            cost: cpu_time().saturating_sub(began),
            problems: sweep.problems,
        };
        if report.blocking_send(Report::Done(swept)).is_err() {
            return;
        }
    }
}

struct Sweep<'a> {
    report: &'a tokio::sync::mpsc::Sender<Report>,
    coverage: Coverage,
    problems: Vec<String>,
    /// The namespace that this thread is in.
    inside: Option<u32>,
}

impl Sweep<'_> {
    fn held(&mut self, probes: &mut Probes) {
        self.read(probes.held_sockets(), "sockets held by processes");
    }

    /// Every namespace that a process is in or that has a name.
    fn namespaces(&mut self, probes: &mut Probes) {
        let (found, hidden) = netns::find();
        self.coverage.all = hidden.is_empty();
        self.problems.extend(hidden);
        for (inode, path) in found {
            // Without CAP_SYS_ADMIN the thread's own is still to be had.
            let entered = if self.inside == Some(inode) { Ok(true) } else { netns::enter(&path, inode) };
            match entered {
                Ok(true) => {
                    self.inside = Some(inode);
                    let what = format!("sockets of network namespace {inode}");
                    if self.read(probes.namespace_sockets(), &what) {
                        self.coverage.namespaces.insert(inode);
                    } else {
                        self.coverage.all = false;
                    }
                }
                // It ended since it was found, and another process has its place.
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    self.coverage.all = false;
                    self.problems.push(format!("cannot enter network namespace {}: {error}", path.display()));
                }
            }
        }
    }

    fn read(&mut self, file: Result<File, String>, what: &str) -> bool {
        let result = file.and_then(|file| self.read_parts(file).map_err(|error| error.to_string()));
        if let Err(error) = &result {
            self.problems.push(format!("{what}: {error}"));
        }
        result.is_ok()
    }

    fn read_parts(&self, mut file: File) -> io::Result<()> {
        loop {
            let mut part = Vec::with_capacity(PART_BYTES);
            let length = file.by_ref().take(PART_BYTES as u64).read_to_end(&mut part)?;
            // Nobody listens any more when the daemon stops: then there is nothing to complain about.
            if length > 0 && self.report.blocking_send(Report::Seen(part.into())).is_err() {
                return Ok(());
            }
            if length < PART_BYTES {
                return Ok(());
            }
        }
    }
}

/// Of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
