//! The thread that sweeps: on request it reads the kernel's iterators over all sockets, in one network namespace after
//! the other, or the options of one socket.
//!
//! It keeps the loaded programs, because an iterator over a namespace can only be made from inside it, and
//! entering a namespace changes the whole thread. So a panic ends what the thread was doing, not the thread: with it the
//! programs would be detached.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read as _},
    os::unix::net::UnixDatagram,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};
use rustix::{
    net::netdevice::index_to_name,
    time::{ClockId, clock_gettime},
};
use tcpwatch_common::{MAX_NAMESPACES, SeenNamespace, SeenSocket, SocketOptions};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    events::{
        frame::{Coverage, InterfaceNames, ListenQueues, NamespaceSettings},
        seen,
    },
    kernel::{
        listen_queues, namespace_settings,
        netns::{
            self, Hints,
            ways::{Entrances, Place, Ways},
        },
        netstat,
        probes::Probes,
        sock_diag::Target,
        socket_options,
    },
};

/// A message of a sweep, or of a look at accept queues.
#[derive(Debug)]
pub enum Report {
    /// The next `SeenSocket` records.
    Seen(Bytes),
    /// Names of interfaces that sockets are bound to.
    Interfaces(InterfaceNames),
    /// What a network namespace is set to.
    Namespace(NamespaceSettings),
    /// The sweep is over.
    Done(Swept),
    /// What waits in accept queues, and the processor time that the look took.
    Queues(ListenQueues, Duration),
}

/// Result of a sweep.
#[derive(Debug)]
pub struct Swept {
    pub coverage: Coverage,
    pub entrances: Entrances,
    /// Processor time, in user and kernel mode; waiting for a processor does not count.
    pub cost: Duration,
    /// What could not be read, for the log.
    pub problems: Vec<String>,
}

impl Swept {
    /// A sweep that ended early.
    fn failed(cost: Duration, problem: String) -> Self {
        let coverage = Coverage::default();
        Self { coverage, entrances: Entrances::default(), cost, problems: vec![problem] }
    }
}

/// Bytes of one message, whole records: what is read and not yet applied takes a few times as much, however many
/// sockets there are.
const PART_BYTES: usize = 4096 * size_of::<SeenSocket>();

/// Limit for a request for a socket's options. Among a million sockets they were found in 0.4 s (median), once not
/// within 1 s [measured].
const OPTIONS_TIMEOUT: Duration = Duration::from_secs(2);

/// Handle of the thread. When the last one is dropped, the thread ends and the programs are detached.
#[derive(Clone, Debug)]
pub struct Sweeper {
    requests: Sender<Request>,
    /// Of [`MAX_QUESTIONS`], those that may still be put.
    places: Arc<Semaphore>,
}

/// Questions for options that may wait while the thread is slow.
const MAX_QUESTIONS: usize = 128;

#[derive(Debug)]
enum Request {
    Sweep,
    Queues(BTreeMap<u32, Hints>),
    Options(OptionsQuestion),
}

type ReportSender = tokio::sync::mpsc::Sender<Report>;
type Options = Result<Option<SocketOptions>, String>;

#[derive(Debug)]
struct OptionsQuestion {
    target: Target,
    reply: oneshot::Sender<Options>,
    _place: OwnedSemaphorePermit,
}

impl OptionsQuestion {
    fn answer(self, probes: &mut Probes) {
        if !self.reply.is_closed() {
            let answer = caught(|| socket_options::ask(probes, &self.target)).flatten();
            // The requester may be gone.
            let _ = self.reply.send(answer);
        }
    }
}

impl Sweeper {
    /// Starts the thread. `report` receives what each sweep finds, while it runs.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(probes: Probes, report: ReportSender) -> io::Result<Self> {
        let (requests, asked) = channel();
        std::thread::Builder::new().name("sweeper".into()).spawn(move || run(probes, &asked, &report))?;
        Ok(Self { requests, places: Arc::new(Semaphore::new(MAX_QUESTIONS)) })
    }

    /// Starts a sweep; what it finds arrives at `report`. Not to be called again before `Report::Done`.
    pub fn sweep(&self) {
        // When the thread has ended, `report` says so.
        let _ = self.requests.send(Request::Sweep);
    }

    /// Looks at the accept queues of these namespaces; what it finds arrives at `report`. Not to be called during a sweep,
    /// nor again before `Report::Queues`.
    pub fn look_at_queues(&self, namespaces: BTreeMap<u32, Hints>) {
        // The thread lives as long as this handle.
        let _ = self.requests.send(Request::Queues(namespaces));
    }

    /// The options of a socket, also during a sweep. `None` when the socket is gone.
    ///
    /// # Errors
    /// Why they cannot be read; a message for the user.
    pub async fn socket_options(&self, target: Target) -> Options {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| "there are many requests".to_owned())?;
        let (reply, answer) = oneshot::channel();
        let ended = || "the thread that asks the kernel has ended".to_owned();
        let question = OptionsQuestion { target, reply, _place: place };
        self.requests.send(Request::Options(question)).map_err(|_| ended())?;
        match tokio::time::timeout(OPTIONS_TIMEOUT, answer).await {
            Ok(answer) => answer.map_err(|_| ended())?,
            Err(_) => {
                Err(format!("no answer within {OPTIONS_TIMEOUT:?}: there are many sockets or many requests"))
            }
        }
    }
}

fn look_at_queues(namespaces: &BTreeMap<u32, Hints>) -> Report {
    let began = cpu_time();
    // What cannot be read is as unknown as before.
    let read = caught(|| listen_queues::read(namespaces)).unwrap_or_default();
    netns::leave();
    Report::Queues(read, cpu_time().saturating_sub(began))
}

fn run(mut probes: Probes, asked: &Receiver<Request>, report: &ReportSender) {
    let mut ways = Ways::default();
    while let Ok(request) = asked.recv() {
        match request {
            Request::Options(question) => {
                question.answer(&mut probes);
                netns::leave();
                continue;
            }
            Request::Queues(namespaces) => {
                if report.blocking_send(look_at_queues(&namespaces)).is_err() {
                    return;
                }
                continue;
            }
            Request::Sweep => {}
        }
        let began = cpu_time();
        let swept = caught(|| Sweep::new(asked, report, &mut ways, began).run(&mut probes));
        let swept = swept.unwrap_or_else(|problem| {
            ways = Ways::default();
            netns::leave();
            Swept::failed(cpu_time().saturating_sub(began), problem)
        });
        if report.blocking_send(Report::Done(swept)).is_err() {
            return;
        }
    }
}

/// What `run` returns.
///
/// # Errors
/// When it panics: the log has the place.
fn caught<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    // What it leaves behind is not used again, but for the programs, of which it only reads.
    catch_unwind(AssertUnwindSafe(run)).map_err(|_| "internal error; see the log of tcpwatch".to_owned())
}

struct Sweep<'a> {
    asked: &'a Receiver<Request>,
    report: &'a ReportSender,
    ways: &'a mut Ways,
    /// Processor time of this thread at the beginning, moved forward by what other requests took meanwhile.
    began: Duration,
    /// The namespaces to which a socket may have to lead.
    wanted: FxHashSet<u32>,
    /// The namespaces that were read completely.
    covered: FxHashSet<u32>,
    /// What the listeners of each namespace had refused because their queues were full.
    overflows: FxHashMap<u32, u64>,
    /// Indices of interfaces that sockets of the namespace under way are bound to.
    interfaces: BTreeSet<u32>,
    problems: Vec<String>,
}

impl<'a> Sweep<'a> {
    fn new(
        asked: &'a Receiver<Request>,
        report: &'a ReportSender,
        ways: &'a mut Ways,
        began: Duration,
    ) -> Self {
        Self {
            asked,
            report,
            ways,
            began,
            wanted: FxHashSet::default(),
            covered: FxHashSet::default(),
            overflows: FxHashMap::default(),
            interfaces: BTreeSet::new(),
            problems: Vec::new(),
        }
    }

    fn run(mut self, probes: &mut Probes) -> Swept {
        let listed = list(probes);
        if let Ok(listed) = &listed {
            self.ways.begin(listed);
        } else {
            let (found, hidden) = Ways::listed_by_processes();
            self.ways.begin(&found);
            self.problems.extend(hidden);
        }
        self.read_each(probes, self.ways.left());
        for place in [Place::Processes, Place::Threads] {
            let found = self.ways.search(place);
            self.read_each(probes, found);
        }
        self.wanted = self.ways.left().into_iter().collect();
        let file = probes.held_sockets();
        self.read(probes, file, "sockets held by processes");
        self.read_each(probes, self.ways.left());
        let found = self.ways.search(Place::Files);
        self.read_each(probes, found);
        self.end(probes, listed)
    }

    /// Namespaces end and begin meanwhile, and one may get the inode of another: of what was read only those count that are
    /// still there.
    fn end(mut self, probes: &mut Probes, listed: Result<Vec<SeenNamespace>, String>) -> Swept {
        netns::leave();
        let listed = listed.and_then(|before| Ok((identities(before), identities(list(probes)?))));
        let existing = listed.map(|(before, now)| {
            let stays =
                |inode: &u32| now.get(inode).is_some_and(|identity| before.get(inode) == Some(identity));
            self.covered.retain(stays);
            now
        });
        if let Err(problem) = &existing {
            self.problems.push(format!("cannot list network namespaces: {problem}"));
        }
        let existing = existing.ok();
        let (entrances, problems) = self.ways.end(existing.as_ref());
        self.problems.extend(problems);
        let all = self.problems.is_empty();
        Swept {
            coverage: Coverage { namespaces: self.covered, existing, all, overflows: self.overflows },
            entrances,
            cost: cpu_time().saturating_sub(self.began),
            problems: self.problems,
        }
    }

    fn read_each(&mut self, probes: &mut Probes, inodes: Vec<u32>) {
        for inode in inodes {
            if self.ways.enter(inode) {
                self.interfaces.clear();
                let file = probes.namespace_sockets();
                if self.read(probes, file, &format!("sockets of network namespace {inode}")) {
                    self.covered.insert(inode);
                    // After its listeners: what they had refused by then is part of it.
                    self.overflows.extend(netstat::listen_overflows().map(|count| (inode, count)));
                    self.read_settings(inode);
                    self.name_interfaces(inode);
                }
            }
        }
    }

    /// Reads what the namespace is set to, if the thread is still there.
    fn read_settings(&self, netns: u32) {
        if netns::own() == Some(netns) {
            // The receiver is gone when the daemon stops.
            let _ = self.report.blocking_send(Report::Namespace(namespace_settings::read(netns)));
        }
    }

    /// Reads the names of the interfaces that were found in the namespace. One that is gone has none.
    fn name_interfaces(&mut self, netns: u32) {
        let found = std::mem::take(&mut self.interfaces);
        // A request for options may have moved the thread away: the next sweep reads them.
        if found.is_empty() || netns::own() != Some(netns) {
            return;
        }
        let Ok(socket) = UnixDatagram::unbound() else { return };
        let name = |index| Some((index, index_to_name(&socket, index).ok()?));
        let names = found.into_iter().filter_map(name).collect();
        // The receiver is gone when the daemon stops.
        let _ = self.report.blocking_send(Report::Interfaces(InterfaceNames { netns, names }));
    }

    fn read(&mut self, probes: &mut Probes, file: Result<File, String>, what: &str) -> bool {
        let result = file.and_then(|file| self.read_parts(probes, file).map_err(|error| error.to_string()));
        if let Err(error) = &result {
            self.problems.push(format!("{what}: {error}"));
        }
        result.is_ok()
    }

    /// Notes the interfaces that sockets are bound to, and the sockets, found with their holders, that lead to namespaces
    /// into which no other way is known.
    fn note_sockets(&mut self, part: &[u8]) {
        let sightings = part.chunks_exact(size_of::<SeenSocket>()).filter(|record| !seen::is_list(record));
        for record in sightings {
            let SeenSocket { netns, tgid, fd, interface, .. } = bytemuck::pod_read_unaligned(record);
            if interface != 0 {
                self.interfaces.insert(interface);
            }
            if tgid != 0 && self.wanted.contains(&netns) {
                self.ways.note_socket(netns, tgid, fd);
            }
        }
    }

    /// Answers a request for options between two parts: otherwise it would wait for the whole sweep, which the same
    /// HTTP request may have started.
    fn read_parts(&mut self, probes: &mut Probes, mut file: File) -> io::Result<()> {
        loop {
            if let Ok(Request::Options(question)) = self.asked.try_recv() {
                let before = cpu_time();
                // This may move the thread into another namespace; the file keeps the one it was opened in.
                question.answer(probes);
                netns::leave();
                self.began += cpu_time().saturating_sub(before);
            }
            let mut part = Vec::with_capacity(PART_BYTES);
            let length = file.by_ref().take(PART_BYTES as u64).read_to_end(&mut part)?;
            self.note_sockets(&part);
            // The receiver is gone when the daemon stops: not an error.
            if length > 0 && self.report.blocking_send(Report::Seen(part.into())).is_err() {
                return Ok(());
            }
            if length < PART_BYTES {
                return Ok(());
            }
        }
    }
}

/// The network namespaces that exist.
fn list(probes: &mut Probes) -> Result<Vec<SeenNamespace>, String> {
    let mut bytes = Vec::new();
    probes.namespaces()?.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let records = bytes.chunks_exact(size_of::<SeenNamespace>());
    if records.len() > MAX_NAMESPACES {
        return Err(format!("there are more than {MAX_NAMESPACES}"));
    }
    let mut listed: Vec<SeenNamespace> = records.map(bytemuck::pod_read_unaligned).collect();
    listed.retain(|namespace| namespace.inode != 0);
    Ok(listed)
}

fn identities(listed: Vec<SeenNamespace>) -> FxHashMap<u32, u32> {
    listed.into_iter().map(|SeenNamespace { inode, identity, .. }| (inode, identity)).collect()
}

/// Processor time of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_that_panics_is_a_sweep_that_saw_nothing_and_says_why() {
        let value = caught(|| 7).unwrap();
        assert_eq!(value, 7);
        let problem = caught(|| -> u8 { panic!("on purpose") }).unwrap_err();
        let swept = Swept::failed(Duration::ZERO, problem);
        assert!(!swept.coverage.all && swept.coverage.namespaces.is_empty(), "nothing counts as gone");
    }
}
