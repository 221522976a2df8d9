//! Everything known about this node: the one owner of all mutable state.
//!
//! In: frames, live or from a recording. Out: answers to questions, through shared references.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::broadcast;

use crate::{
    events::{
        decode::{self, Record, SocketRecord},
        frame::{Coverage, Frame, LostRecords, ReportedFacts, UnrecordedCounts},
        recording::Header,
        seen,
    },
    findings::{
        Findings, Settings,
        leaks::{LeakHistory, SAMPLE_INTERVAL},
        life::Change,
    },
    kernel::{
        netns::{Hints, ways::Entrances},
        probes::Hooks,
        sock_diag::Target,
    },
    model::{
        series::Series,
        table::{Conn, ConnFlags},
        tracker::{Limits, Tracker},
        transition::{Before, Transition},
    },
    tcp::{
        histogram::{Histogram, Latency},
        state::TcpState,
        ticks::TickRate,
        time::Clock,
    },
};

/// Number of transitions that a slow follower may be behind before it misses some.
const FOLLOWER_BACKLOG: usize = 16_384;

/// Which machine this is.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    pub node: String,
    pub kernel: String,
    /// CLOCK_MONOTONIC when this run began.
    pub started_ns: u64,
    /// Wall clock minus CLOCK_MONOTONIC, when this run began.
    pub wall_offset_ns: u64,
    /// Ticks a second of the kernel (CONFIG_HZ).
    pub tick_rate: TickRate,
}

/// Records since the start: how many came in, and how many did not.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordCounts {
    pub received: u64,
    pub malformed: u64,
    pub lost: LostRecords,
    pub unrecorded: UnrecordedCounts,
}

/// Something that answers may lack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Gap {
    /// Name of the field or object of the answer.
    pub what: &'static str,
    /// Why it may be missing, wrong or `null`, in words.
    pub why: String,
}

/// What could not be taken into the table, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Missed {
    lost: LostRecords,
    malformed: u64,
    /// Connections that found no room.
    untracked: u64,
}

/// Sweeps since the start, and the processor time that looking took.
#[derive(Clone, Copy, Debug, Default)]
pub struct SweepCounts {
    pub done: u64,
    pub cost: Duration,
    /// CLOCK_MONOTONIC when the latest ended; `None` before the first did.
    pub ended_ns: Option<u64>,
    /// From its beginning to its end.
    pub took: Duration,
}

/// How the task that owns the state spends its time.
#[derive(Clone, Debug, Default)]
pub struct OwnerCounts {
    /// Time without waiting.
    pub busy: Duration,
    /// Time for each question.
    pub questions: Histogram<Latency>,
}

pub struct Node {
    pub identity: NodeIdentity,
    pub tracker: Tracker,
    pub settings: Settings,
    pub findings: Findings,
    pub history: LeakHistory,
    /// What there was in the last hours.
    pub series: Series,
    pub hooks: Hooks,
    pub records: RecordCounts,
    /// What still has to happen before answers are complete.
    pub waiting_for: Option<&'static str>,
    pub sweeps: SweepCounts,
    pub owner: OwnerCounts,
    /// What the last sweep could not see.
    pub sweep_problems: Vec<String>,
    /// How long the sweep under way has taken, if that is much longer than it should.
    pub late_sweep: Option<Duration>,
    /// Processes that /proc was not read of yet, though answers have waited for it.
    pub undescribed: usize,
    /// The ways into network namespaces that the last sweep found.
    pub entrances: Entrances,
    /// The live stream of transitions; costs nothing while it has no followers.
    pub transitions: broadcast::Sender<Arc<Transition>>,
    /// Wall clock minus CLOCK_MONOTONIC when last read: somebody may set the clock.
    pub wall_offset_ns: u64,
    /// Whether the stream had followers at the last check, which takes a lock.
    followed: bool,
    /// Before the sweep under way began.
    missed_before_sweep: Missed,
    /// Before the last complete sweep began, which has made up for it.
    repaired: Missed,
    next_sample_ns: u64,
}

impl Node {
    /// `reported`: what the records of this run report.
    pub fn new(
        identity: NodeIdentity,
        settings: Settings,
        limits: Limits,
        hooks: Hooks,
        reported: ReportedFacts,
    ) -> Self {
        Self {
            wall_offset_ns: identity.wall_offset_ns,
            tracker: Tracker::new(limits, identity.tick_rate, reported),
            identity,
            settings,
            findings: Findings::default(),
            history: LeakHistory::default(),
            series: Series::default(),
            hooks,
            records: RecordCounts::default(),
            transitions: broadcast::Sender::new(FOLLOWER_BACKLOG),
            followed: false,
            sweeps: SweepCounts::default(),
            owner: OwnerCounts::default(),
            sweep_problems: Vec::new(),
            late_sweep: None,
            undescribed: 0,
            entrances: Entrances::new(),
            waiting_for: Some("the first sweep of open sockets"),
            missed_before_sweep: Missed::default(),
            repaired: Missed::default(),
            next_sample_ns: 0,
        }
    }

    /// The header for a recording of this run.
    pub fn recording_header(&self) -> Header {
        Header {
            tcpwatch_records: tcpwatch_common::ABI,
            node: self.identity.node.clone(),
            kernel: self.identity.kernel.clone(),
            wall_offset_ns: self.identity.wall_offset_ns,
            ticks_per_second: self.identity.tick_rate,
            reported: self.tracker.reported(),
        }
    }

    pub fn ingest(&mut self, frame: &Frame) {
        match frame {
            Frame::Record(bytes) => self.record(bytes),
            Frame::SweepBegin(now_ns) => {
                self.tracker.begin_sweep(*now_ns);
                self.missed_before_sweep = self.missed();
            }
            Frame::Seen(records) => self.seen(records),
            Frame::SweepEnd(coverage) => self.end_sweep(coverage),
            Frame::Process(process) => {
                self.tracker.describe_process(&process.identity, &process.details);
            }
            Frame::Interfaces(read) => self.tracker.name_interfaces(read),
            Frame::Queues(read) => self.tracker.apply_queues(read),
            Frame::Namespace(settings) => self.tracker.set_namespace(settings),
            Frame::Descriptors(count) => self.tracker.count_descriptors(count),
            Frame::Looks(looks) => {
                for look in looks {
                    self.tracker.note_look(look.cookie, look.sender.as_ref());
                }
            }
            Frame::Tick(now_ns) => self.tick(*now_ns),
            Frame::Lost(lost) => self.records.lost = *lost,
            Frame::UnrecordedCounts(counted) => self.records.unrecorded = *counted,
        }
    }

    /// The network namespaces of the wanted connections, and what is known of the ways into them.
    pub fn namespaces_of(&self, wanted: impl Fn(&Conn) -> bool) -> BTreeMap<u32, Hints> {
        let mut found = BTreeMap::new();
        for conn in self.tracker.table().iter().filter(|conn| wanted(conn)) {
            let hints = found.entry(conn.netns).or_insert_with(|| self.hints(conn.netns, None));
            if hints.pid.is_none() && !conn.is(ConnFlags::MINISOCK) {
                hints.pid = self.pid(conn);
            }
        }
        found
    }

    /// The network namespaces that have listeners, and what is known of the ways into them.
    pub fn namespaces_of_listeners(&self) -> BTreeMap<u32, Hints> {
        let mut found = BTreeMap::new();
        for conn in self.tracker.table().in_state(TcpState::Listen) {
            let hints = found.entry(conn.netns).or_insert_with(|| self.hints(conn.netns, None));
            if hints.pid.is_none() {
                hints.pid = self.pid(conn);
            }
        }
        found
    }

    /// The sockets that are worth a look by themselves.
    pub fn worth_a_look(&self) -> Vec<Target> {
        let table = self.tracker.table();
        let conns = self.tracker.suspects().keys().filter_map(|cookie| Some(table.get(table.find(*cookie)?)));
        conns.map(|conn| self.target(conn)).collect()
    }

    /// A connection, as the kernel is asked about it.
    pub fn target(&self, conn: &Conn) -> Target {
        let cookie = (!self.tracker.reported().identity_is_address).then_some(conn.cookie);
        Target::of(conn, self.ways_to(conn), cookie)
    }

    /// The ways into the network namespace of a connection.
    pub fn ways_to(&self, conn: &Conn) -> Hints {
        self.hints(conn.netns, self.pid(conn))
    }

    fn hints(&self, netns: u32, pid: Option<u32>) -> Hints {
        Hints { pid, entrance: self.entrances.get(&netns).cloned() }
    }

    fn pid(&self, conn: &Conn) -> Option<u32> {
        conn.process.map(|id| self.tracker.processes().get(id).pid)
    }

    /// Checks whether the stream of transitions has followers. Records applied after this are sent to them.
    pub fn look_for_followers(&mut self) {
        self.followed = self.has_followers();
    }

    pub fn has_followers(&self) -> bool {
        self.transitions.receiver_count() > 0
    }

    /// Applies one record. A malformed record is counted and skipped.
    pub fn record(&mut self, bytes: &[u8]) {
        self.records.received += 1;
        let mut record = decode::record(bytes);
        if let Ok(record) = &mut record {
            self.tracker.complete(record);
        }
        match &record {
            Ok(Record::Socket(record)) if self.followed => self.apply_and_publish(record),
            Ok(record) => self.tracker.apply(record),
            Err(error) => self.malformed(error),
        }
    }

    fn apply_and_publish(&mut self, record: &SocketRecord) {
        let before = Before::note(&self.tracker, record);
        self.tracker.apply(&Record::Socket(*record));
        let transition = Transition::of(before, &self.tracker, record, self.wall_offset_ns);
        if let Some(transition) = transition {
            // The last follower may have left.
            let _ = self.transitions.send(Arc::new(transition));
        }
    }

    /// To be called once a second.
    fn tick(&mut self, now_ns: u64) {
        self.tracker.expire(now_ns);
        if now_ns >= self.next_sample_ns {
            self.history.sample(&self.tracker, &self.settings.linger, now_ns);
            self.next_sample_ns = now_ns.saturating_add(SAMPLE_INTERVAL.as_nanos() as u64);
        }
        // Before the first sweep most owners are unknown.
        if self.waiting_for.is_none() {
            if self.series.is_due(now_ns) {
                self.series.sample(self.tracker.tally(), now_ns);
            }
            for change in self.findings.evaluate(&self.tracker, &self.settings.thresholds, now_ns) {
                self.log(change);
            }
        }
    }

    /// A line for each finding that opens, gets worse or ends.
    fn log(&self, change: Change) {
        let (Change::Opened(id) | Change::Worsened(id) | Change::Ended(id)) = change;
        let Some(finding) = self.findings.find(id) else { return };
        let (severity, what) = (finding.severity.name(), &finding.latest.summary);
        match change {
            Change::Opened(_) => tracing::info!(%id, severity, what, "finding opened"),
            Change::Worsened(_) => tracing::info!(%id, severity, what, "finding got worse"),
            Change::Ended(_) => tracing::info!(%id, "finding ended"),
        }
    }

    fn seen(&mut self, records: &[u8]) {
        for record in records.chunks(size_of::<tcpwatch_common::SeenSocket>()) {
            let applied = if seen::is_list(record) {
                seen::decode_list(record).map(|list| self.tracker.apply_list(&list))
            } else {
                seen::decode(record).map(|seen| self.tracker.apply_seen(&seen))
            };
            if let Err(error) = applied {
                self.malformed(&error);
            }
        }
    }

    fn end_sweep(&mut self, coverage: &Coverage) {
        self.tracker.end_sweep(coverage);
        if coverage.all && !self.tracker.sweep_left_doubts() {
            self.repaired = self.missed_before_sweep;
        }
        self.waiting_for = None;
    }

    fn missed(&self) -> Missed {
        let RecordCounts { lost, malformed, .. } = self.records;
        Missed { lost, malformed, untracked: self.tracker.untracked() }
    }

    /// Whether records were lost or malformed that no sweep has made up for.
    pub fn needs_repair(&self) -> bool {
        let Missed { lost, malformed, .. } = self.repaired;
        (self.records.lost, self.records.malformed) != (lost, malformed)
    }

    fn malformed(&mut self, error: &decode::DecodeError) {
        self.records.malformed += 1;
        // Logged at powers of two: a million malformed records mean no more than the first.
        if self.records.malformed.is_power_of_two() {
            tracing::warn!(%error, so_far = self.records.malformed, "malformed record skipped");
        }
    }

    /// What answers about connections may lack; nothing when they can be taken for the whole truth. A complete sweep heals
    /// what was missed before it began: it shows what there is. So connections that found no room are missing until a
    /// sweep finds room for all.
    pub fn gaps(&self) -> Vec<Gap> {
        let (missed, repaired) = (self.missed(), self.repaired);
        let since = |count: u64, why: &str| (count > 0).then(|| format!("{count} {why}"));
        let reasons = [
            self.waiting_for.map(|what| format!("waiting for {what}")),
            self.late_sweep
                .map(|took| format!("the sweep under way has not ended within {:.1} s", took.as_secs_f64())),
            since(
                missed.lost.total().saturating_sub(repaired.lost.total()),
                "records were lost, and no complete sweep has begun and ended since",
            ),
            since(
                missed.malformed - repaired.malformed,
                "malformed records were skipped, and no complete sweep has begun and ended since",
            ),
            since(
                missed.untracked - repaired.untracked,
                "connections found no room since the last complete sweep began; --max-connections sets how many are kept",
            ),
        ];
        let sweep = self.sweep_problems.iter().map(|problem| format!("the latest sweep: {problem}"));
        let all = reasons.into_iter().flatten().chain(sweep).map(|why| Gap { what: "connections", why });
        let undescribed = (self.undescribed > 0).then(|| Gap {
            what: "process",
            why: format!(
                "/proc is slow: executable and cgroup of {} processes are not read yet",
                self.undescribed
            ),
        });
        all.chain(undescribed).collect()
    }

    /// Why what was counted since the start may be too low. A sweep repairs the table, but does not show what has come and
    /// gone.
    pub fn count_gaps(&self) -> Vec<Gap> {
        let Missed { lost, malformed, untracked } = self.missed();
        let lost = lost.total() + malformed;
        let reasons = [
            (lost, "records were lost or malformed since the start: what only they reported is not counted"),
            (untracked, "connections found no room since the start: what they did then is not counted"),
        ];
        let some = reasons.into_iter().filter(|(count, _)| *count > 0);
        let why = |(count, why)| format!("{count} {why}, so each count is a lower bound");
        some.map(|reason| Gap { what: "counts", why: why(reason) }).collect()
    }

    pub fn uptime_seconds(&self, clock: Clock) -> f64 {
        clock.seconds_since(self.identity.started_ns)
    }
}

/// Reads the state and sends the answer to the one who asked.
pub type Ask = Box<dyn FnOnce(&Node, Clock) + Send>;

/// A question for the task that owns the state.
pub struct Question {
    pub ask: Ask,
    /// Whether a sweep comes first.
    pub sweep_first: SweepFirst,
}

/// Whether a sweep comes before an answer. None comes while the first is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepFirst {
    No,
    /// Where that is cheap: the answer counts connections by state.
    IfCheap,
    /// It begins in any case, and the answer waits for it where that is cheap: the answer names owners, or sums live
    /// connections.
    Yes,
}

#[cfg(test)]
impl Node {
    /// A node about which nothing is known.
    pub(crate) fn empty() -> Self {
        let identity = NodeIdentity {
            node: "n".into(),
            kernel: "k".into(),
            started_ns: 0,
            wall_offset_ns: 0,
            tick_rate: TickRate(std::num::NonZeroU16::MIN),
        };
        let limits = Limits { connections: 10, ended: 10, label_sets: 10 };
        Self::new(identity, Settings::default(), limits, Hooks::default(), ReportedFacts::default())
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::{Zeroable as _, bytes_of};
    use tcpwatch_common::{
        FLAG_BOUND, InterfaceEvent, KIND_INTERFACE, KIND_TRANSITION, SocketEvent,
        state::{CLOSE, ESTABLISHED, SYN_SENT},
    };

    use super::*;
    use crate::events::frame::InterfaceNames;

    fn is_complete(node: &Node) -> bool {
        node.gaps().is_empty()
    }

    #[test]
    fn a_loss_stays_a_fault_of_the_counts_when_the_table_is_repaired() {
        let mut node = Node::empty();
        for frame in [Frame::SweepBegin(1), end_of_sweep(true)] {
            node.ingest(&frame);
        }
        assert_eq!(node.count_gaps(), []);
        node.ingest(&Frame::Lost(LostRecords { ring_full: 5, run_skipped: 1 }));
        for frame in [Frame::SweepBegin(2), end_of_sweep(true)] {
            node.ingest(&frame);
        }
        assert!(is_complete(&node));
        let gaps = node.count_gaps();
        assert_eq!((gaps.len(), gaps[0].what), (1, "counts"));
        assert!(gaps[0].why.starts_with("6 records"), "{gaps:?}");
    }

    #[test]
    fn a_clock_that_is_set_changes_neither_the_uptime_nor_what_times_mean() {
        use std::time::UNIX_EPOCH;
        const SECOND: u64 = 1_000_000_000;
        let mut node = Node::empty();
        node.identity.started_ns = 40 * SECOND;
        let mut follower = node.transitions.subscribe();
        node.look_for_followers();
        // Set forward by a day, back before the start, and left alone; in each case ten seconds later.
        for (round, offset_seconds) in [86_400, 0, 1_000].into_iter().enumerate() {
            let now_ns = (50 + 10 * round as u64) * SECOND;
            let clock = Clock {
                now_ns,
                wall: UNIX_EPOCH + Duration::from_secs(offset_seconds) + Duration::from_nanos(now_ns),
            };
            node.wall_offset_ns = clock.wall_offset_ns();
            let uptime = Duration::from_secs_f64(node.uptime_seconds(clock));
            assert_eq!(uptime, Duration::from_secs(10 + 10 * round as u64));
            let event = SocketEvent {
                kind: KIND_TRANSITION,
                netns: 1,
                time_ns: now_ns - SECOND,
                cookie: round as u64 + 1,
                old_state: CLOSE,
                new_state: SYN_SENT,
                ..SocketEvent::zeroed()
            };
            node.record(bytes_of(&event));
            assert_eq!(follower.try_recv().unwrap().at, clock.at(now_ns - SECOND).rfc3339());
        }
    }

    fn end_of_sweep(all: bool) -> Frame {
        Frame::SweepEnd(Coverage { all, ..Coverage::default() })
    }

    #[test]
    fn a_bound_sockets_records_have_the_interface_that_was_reported_before() {
        let mut node = Node::empty();
        let mut ingest = |record: &[u8]| node.ingest(&Frame::Record(record.to_vec().into()));
        for cookie in [1, 2] {
            let interface = cookie as u32 + 10;
            let event =
                InterfaceEvent { kind: KIND_INTERFACE, interface, cookie, ..InterfaceEvent::zeroed() };
            ingest(bytes_of(&event));
            // In between, the record of another socket, bound to one that is not known.
            for (cookie, old_state, new_state) in
                [(cookie + 2, CLOSE, SYN_SENT), (cookie, CLOSE, SYN_SENT), (cookie, SYN_SENT, ESTABLISHED)]
            {
                ingest(bytes_of(&SocketEvent {
                    kind: KIND_TRANSITION,
                    flags: FLAG_BOUND,
                    netns: 1,
                    time_ns: cookie,
                    cookie,
                    old_state,
                    new_state,
                    ..SocketEvent::zeroed()
                }));
            }
        }
        node.ingest(&Frame::Interfaces(InterfaceNames { netns: 1, names: vec![(11, "eth0".to_owned())] }));
        let interface = |cookie| {
            let slot = node.tracker.table().find(cookie).unwrap();
            node.tracker.interface(1, node.tracker.table().get(slot).interface)
        };
        assert_eq!(
            [1, 2, 3, 4].map(|cookie| interface(cookie).map(|one| one.index)),
            [Some(11), Some(12), None, None]
        );
        assert_eq!([1, 2].map(|cookie| interface(cookie).unwrap().to_string()), ["eth0", "12"]);
    }

    #[test]
    fn a_complete_sweep_heals_what_was_missed_before_it_began() {
        let garbage = || Frame::Record(vec![0xff; 3].into());
        let lost = |ring_full| Frame::Lost(LostRecords { ring_full, run_skipped: 0 });
        let mut node = Node::empty();
        assert!(!is_complete(&node), "before the first sweep");
        for frame in [Frame::SweepBegin(1), end_of_sweep(true)] {
            node.ingest(&frame);
        }
        assert!(is_complete(&node));
        for (at, missed) in [(10, garbage()), (20, lost(5)), (30, garbage()), (40, lost(7))] {
            node.ingest(&missed);
            assert!(!is_complete(&node) && node.needs_repair(), "{missed:?}");
            // It cannot see everything.
            for frame in [Frame::SweepBegin(at), end_of_sweep(false)] {
                node.ingest(&frame);
            }
            assert!(!is_complete(&node), "{missed:?}");
            for frame in [Frame::SweepBegin(at + 1), end_of_sweep(true)] {
                node.ingest(&frame);
            }
            assert!(is_complete(&node) && !node.needs_repair(), "{missed:?}");
        }
        assert_eq!((node.records.malformed, node.records.lost.total()), (2, 7), "the counters remember");
        // What the sweep itself may have missed only the next one finds.
        for frame in [Frame::SweepBegin(50), garbage(), end_of_sweep(true)] {
            node.ingest(&frame);
        }
        assert_eq!(node.gaps().len(), 1);
        for frame in [Frame::SweepBegin(60), end_of_sweep(true)] {
            node.ingest(&frame);
        }
        assert!(is_complete(&node));
    }
}
