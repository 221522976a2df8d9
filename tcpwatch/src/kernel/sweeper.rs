//! The thread that looks at all sockets when asked, or for the options of one: it reads the kernel's iterators, in one
//! network namespace after the other.
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
use tcpwatch_common::{SeenSocket, SocketOptions};
use tokio::sync::oneshot;

use crate::{
    events::frame::Coverage,
    kernel::{netns, probes::Probes, sock_diag::Target, socket_options},
};

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
const PART_BYTES: usize = 4096 * size_of::<SeenSocket>();

/// Whoever asks for a socket's options waits no longer. Among a million they were found in 0.4 s (median), once not in 1 s.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks the thread. It ends, and with it the programs, when the last of these is dropped.
#[derive(Clone, Debug)]
pub struct Sweeper {
    requests: Sender<Request>,
}

#[derive(Debug)]
enum Request {
    Sweep,
    Options(OptionsQuestion),
}

type Options = Result<Option<SocketOptions>, String>;

#[derive(Debug)]
struct OptionsQuestion {
    target: Target,
    reply: oneshot::Sender<Options>,
}

impl OptionsQuestion {
    fn answer(self, probes: &mut Probes) {
        if !self.reply.is_closed() {
            // The asker may hang up.
            let _ = self.reply.send(socket_options::ask(probes, &self.target));
        }
    }
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

    /// Looks at every socket once; the answer arrives at `report`. Not to be asked again before that.
    pub fn sweep(&self) {
        // The thread ends only after this.
        let _ = self.requests.send(Request::Sweep);
    }

    /// The options of a socket, also while a sweep goes on. `None` when the kernel has no such socket any more.
    ///
    /// # Errors
    /// Why they cannot be had, for people.
    pub async fn socket_options(&self, target: Target) -> Options {
        let (reply, answer) = oneshot::channel();
        let ended = || "the thread that asks the kernel ended".to_owned();
        self.requests.send(Request::Options(OptionsQuestion { target, reply })).map_err(|_| ended())?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(answer) => answer.map_err(|_| ended())?,
            Err(_) => Err(format!("no answer within {PATIENCE:?}: there are many sockets, or many who ask")),
        }
    }
}

fn run(mut probes: Probes, asked: &Receiver<Request>, report: &tokio::sync::mpsc::Sender<Report>) {
    while let Ok(request) = asked.recv() {
        if let Request::Options(question) = request {
            question.answer(&mut probes);
            continue;
        }
        let mut sweep =
            Sweep { asked, report, began: cpu_time(), coverage: Coverage::default(), problems: Vec::new() };
        sweep.namespaces(&mut probes);
        sweep.held(&mut probes);
        let swept = Swept {
            coverage: sweep.coverage,
            cost: cpu_time().saturating_sub(sweep.began),
            problems: sweep.problems,
        };
        if report.blocking_send(Report::Done(swept)).is_err() {
            return;
        }
    }
}

struct Sweep<'a> {
    asked: &'a Receiver<Request>,
    report: &'a tokio::sync::mpsc::Sender<Report>,
    /// Of this thread's processor time; what others asked for meanwhile is left out.
    began: Duration,
    coverage: Coverage,
    problems: Vec<String>,
}

impl Sweep<'_> {
    fn held(&mut self, probes: &mut Probes) {
        let file = probes.held_sockets();
        self.read(probes, file, "sockets held by processes");
    }

    /// Every namespace that a process is in or that has a name.
    fn namespaces(&mut self, probes: &mut Probes) {
        let (found, hidden) = netns::find();
        self.coverage.all = hidden.is_empty();
        self.problems.extend(hidden);
        for (inode, path) in found {
            match netns::enter_found(&path, inode) {
                Ok(true) => {
                    let what = format!("sockets of network namespace {inode}");
                    let file = probes.namespace_sockets();
                    if self.read(probes, file, &what) {
                        self.coverage.namespaces.insert(inode);
                    } else {
                        self.coverage.all = false;
                    }
                }
                // It ended since it was found.
                Ok(false) => {}
                Err(problem) => {
                    self.coverage.all = false;
                    self.problems.push(problem);
                }
            }
        }
    }

    fn read(&mut self, probes: &mut Probes, file: Result<File, String>, what: &str) -> bool {
        let result = file.and_then(|file| self.read_parts(probes, file).map_err(|error| error.to_string()));
        if let Err(error) = &result {
            self.problems.push(format!("{what}: {error}"));
        }
        result.is_ok()
    }

    /// Between parts somebody's question is answered, or it would wait for the whole sweep, which it may have started.
    fn read_parts(&mut self, probes: &mut Probes, mut file: File) -> io::Result<()> {
        loop {
            if let Ok(Request::Options(question)) = self.asked.try_recv() {
                let before = cpu_time();
                // It may move this thread into another namespace; the file stays with the one it was made in.
                question.answer(probes);
                self.began += cpu_time().saturating_sub(before);
            }
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
