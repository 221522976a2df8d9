//! The wiring: one task that owns the state, fed by the kernel, asked by HTTP.
//!
//! Ring and queues are drained when the kernel says that they fill, before each answer, and on a timer: ten times a
//! second while many records come or somebody follows them, otherwise once a second. So an answer always includes what
//! happened before the question.

use std::{
    pin::pin,
    time::{Duration, Instant, SystemTime},
};

use tcpwatch_common::KIND_WAKE;
use tokio::sync::mpsc;

use crate::{
    events::frame::{Frame, LostRecords, ProcessFrame},
    kernel::{
        clock,
        probes::Loaded,
        procfs,
        sweeper::{Report, Sweeper, Swept},
        transport::{CountedRetransmits, LossCounters, Queues, Ring, inbox::Inbox},
    },
    node::{Node, Question, SweepFirst},
    recorder::{Recorder, RecordingError},
};

/// How long a record may wait while many come, or somebody follows them.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);
/// How long a record may wait otherwise: waking up is then most of what tcpwatch costs.
const QUIET_DRAIN_INTERVAL: Duration = Duration::from_secs(1);
/// From this many records a second on, drain every `DRAIN_INTERVAL`.
const MANY_RECORDS_A_SECOND: f64 = 1000.0;
/// How often old entries expire and the kernel's counts of lost records are read.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// How long, in nanoseconds, a record may take to become visible to another processor. x86 keeps stores in order. Other
/// processors get far longer than they need, as BPF programs for Linux 5.10 have no memory barrier.
const PUBLICATION_NS: u64 = if cfg!(target_arch = "x86_64") { 0 } else { 1_000_000 };
/// Sweeps take at most one part in 50 of one processor's time: after a sweep that cost 1 ms, none begins for 50 ms.
const SWEEP_COST_SHARE: u32 = 50;
/// The same for sweeps that nobody asked for and no lost record requires: one part in 500.
const UNASKED_SWEEP_COST_SHARE: u32 = 500;
/// Approximate cost of a sweep for each connection; estimates the connections that were not there at the last sweep.
const SWEEP_COST_EACH: Duration = Duration::from_micros(2);
/// An answer waits for a sweep that is expected to cost at most this.
const SWEEP_WORTH_WAITING: Duration = Duration::from_millis(20);
/// Interval of sweeps that nobody asked for while there are minisocks whose changes this kernel does not report.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// The same without them: only sockets that never became connections are still to be found.
const IDLE_SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Executables that are looked at again after each sweep, as they may have been deleted: a system call each.
const EXECUTABLES_A_SWEEP: usize = 100;

/// The task that owns the state.
pub struct Pipeline {
    node: Node,
    queues: Queues,
    ring: Ring,
    inbox: Inbox,
    lost: LossCounters,
    retransmits: CountedRetransmits,
    recorder: Option<Recorder>,
    sweeper: Sweeper,
    reports: mpsc::Receiver<Report>,
    sweep: SweepState,
    drained: Instant,
    pace: Pace,
    /// Questions that wait for the sweep under way.
    waiting: Vec<Question>,
}

/// What ends the owner's wait.
enum Work {
    Readable(std::io::Result<()>),
    Report(Report),
    Question(Question),
    Time,
}

/// Whether many records come, measured over at least `DRAIN_INTERVAL`: drains follow each other closely when somebody
/// asks.
struct Pace {
    since: Instant,
    /// Records received until `since`.
    received: u64,
    busy: bool,
}

impl Pace {
    fn note(&mut self, now: Instant, received: u64) {
        let passed = now - self.since;
        if passed >= DRAIN_INTERVAL {
            let busy = (received - self.received) as f64 >= MANY_RECORDS_A_SECOND * passed.as_secs_f64();
            *self = Self { since: now, received, busy };
        }
    }
}

/// The sweep under way, and what the last one cost.
struct SweepState {
    under_way: bool,
    /// When the one under way, or else the latest, began.
    began: Instant,
    cost: Duration,
    /// Connections in the table after the last sweep.
    connections: usize,
    not_before: Instant,
    finished: Instant,
}

impl Pipeline {
    /// # Errors
    /// When the ring cannot be polled.
    pub fn new(node: Node, loaded: Loaded, recorder: Option<Recorder>) -> anyhow::Result<Self> {
        let (report, reports) = mpsc::channel(1);
        let now = Instant::now();
        Ok(Self {
            node,
            queues: loaded.queues,
            ring: Ring::new(loaded.ring)?,
            inbox: Inbox::default(),
            lost: loaded.lost,
            retransmits: loaded.retransmits,
            recorder,
            sweeper: Sweeper::start(loaded.probes, report)?,
            reports,
            sweep: SweepState {
                under_way: false,
                began: now,
                cost: Duration::ZERO,
                connections: 0,
                not_before: now,
                finished: now,
            },
            drained: now,
            pace: Pace { since: now, received: 0, busy: false },
            waiting: Vec::new(),
        })
    }

    /// The sweeper, for questions that its thread answers.
    pub fn sweeper(&self) -> Sweeper {
        self.sweeper.clone()
    }

    /// Runs until `stop` completes.
    ///
    /// # Errors
    /// When the ring cannot be polled any more.
    pub async fn run(
        mut self,
        mut questions: mpsc::Receiver<Question>,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let mut stop = pin!(stop);
        let mut next_tick = Instant::now() + TICK_INTERVAL;
        // The programs are attached already: a socket is seen by them or by this sweep.
        self.start_sweep();
        loop {
            let next = next_tick.min(self.drained + self.drain_interval());
            let work = tokio::select! {
                () = &mut stop => break,
                ready = self.ring.readable() => Work::Readable(ready),
                Some(report) = self.reports.recv() => Work::Report(report),
                Some(question) = questions.recv() => Work::Question(question),
                () = tokio::time::sleep_until(next.into()) => Work::Time,
            };
            let began = Instant::now();
            match work {
                Work::Readable(ready) => {
                    ready?;
                    self.drain();
                }
                Work::Report(Report::Seen(records)) => {
                    // Records of the time before these sightings come first.
                    self.drain();
                    self.ingest(&Frame::Seen(records));
                }
                Work::Report(Report::Interfaces(read)) => {
                    if !self.node.tracker.knows_interfaces(&read) {
                        self.ingest(&Frame::Interfaces(read));
                    }
                }
                Work::Report(Report::Done(swept)) => self.finish_sweep(swept),
                Work::Question(question) => self.answer(question),
                Work::Time => {
                    self.drain();
                    if Instant::now() >= next_tick {
                        next_tick = Instant::now() + TICK_INTERVAL;
                        self.tick();
                    }
                }
            }
            self.node.owner.busy += began.elapsed();
        }
        self.drain();
        self.tick();
        Ok(())
    }

    fn drain_interval(&self) -> Duration {
        if self.pace.busy || self.node.has_followers() { DRAIN_INTERVAL } else { QUIET_DRAIN_INTERVAL }
    }

    /// Applies the records written until now. No more than fit into the buffers at once: a kernel that writes faster
    /// than this reads would hold back answers forever.
    fn drain(&mut self) {
        self.drained = Instant::now();
        let now_ns = clock::read().now_ns.saturating_sub(PUBLICATION_NS);
        self.queues.look();
        let inbox = &mut self.inbox;
        self.ring.read(|record| {
            if record.first() != Some(&KIND_WAKE) {
                self.retransmits.note(record);
                inbox.push(record);
            }
        });
        self.retransmits.look(now_ns, |record| inbox.push(record));
        let (node, recorder) = (&mut self.node, &mut self.recorder);
        node.look_for_followers();
        self.inbox.take(&mut self.queues, now_ns, |record| {
            if let Some(open) = recorder
                && let Err(error) = open.record(record)
            {
                stop_recording(recorder, &error);
            }
            node.record(record);
        });
        self.pace.note(self.drained, self.node.records.received);
        for task in self.node.tracker.take_unread_processes() {
            if let Some(details) = procfs::details(&task) {
                self.ingest(&Frame::Process(ProcessFrame { identity: task.identity(), details }));
            }
        }
    }

    fn tick(&mut self) {
        self.note_lost();
        let interval =
            if self.node.tracker.has_unreported_minisocks() { SWEEP_INTERVAL } else { IDLE_SWEEP_INTERVAL };
        let interval = interval.max(self.expected_sweep_cost() * UNASKED_SWEEP_COST_SHARE);
        if self.node.needs_repair() || self.sweep.finished.elapsed() >= interval {
            self.start_sweep();
        }
        self.ingest(&Frame::Tick(clock::read().now_ns));
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.flush()
        {
            stop_recording(&mut self.recorder, &error);
        }
    }

    fn note_lost(&mut self) {
        if let Some(lost) = self.lost.read()
            && lost != self.node.records.lost
        {
            let new = lost.total() - self.node.records.lost.total();
            let LostRecords { ring_full, run_skipped } = lost;
            tracing::error!(
                new,
                ring_full,
                run_skipped,
                "records lost in the kernel; a sweep will repair the table"
            );
            self.ingest(&Frame::Lost(lost));
        }
        if let Some(counted) = self.lost.unrecorded()
            && counted != self.node.records.unrecorded
        {
            self.ingest(&Frame::UnrecordedCounts(counted));
        }
    }

    fn ingest(&mut self, frame: &Frame) {
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.write(frame)
        {
            stop_recording(&mut self.recorder, &error);
        }
        self.node.ingest(frame);
    }

    fn answer(&mut self, question: Question) {
        let cheap = self.expected_sweep_cost() <= SWEEP_WORTH_WAITING;
        let sweep_first = match question.sweep_first {
            SweepFirst::No => false,
            SweepFirst::IfCheap => cheap,
            SweepFirst::Yes => true,
        };
        if sweep_first && self.node.waiting_for.is_none() {
            self.start_sweep();
            if self.sweep.under_way && cheap {
                self.waiting.push(question);
                return;
            }
        }
        self.drain();
        self.say(question);
    }

    /// Answers as of now: entries that expired meanwhile are removed first, and what was lost among the records that
    /// the answer is made of is known.
    fn say(&mut self, question: Question) {
        self.note_lost();
        let clock = clock::read();
        self.ingest(&Frame::Tick(clock.now_ns));
        let began = Instant::now();
        (question.ask)(&self.node, clock);
        self.node.owner.questions.observe(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }

    fn expected_sweep_cost(&self) -> Duration {
        let more = self.node.tracker.table().len().saturating_sub(self.sweep.connections);
        self.sweep.cost + SWEEP_COST_EACH * u32::try_from(more).unwrap_or(u32::MAX)
    }

    /// Begins a sweep of all sockets, unless one is under way or was done just now.
    fn start_sweep(&mut self) {
        if self.sweep.under_way || Instant::now() < self.sweep.not_before {
            return;
        }
        // This sweep makes up only for records lost until now.
        self.note_lost();
        self.ingest(&Frame::SweepBegin(clock::read().now_ns));
        self.sweep.under_way = true;
        self.sweep.began = Instant::now();
        self.sweeper.sweep();
    }

    fn finish_sweep(&mut self, swept: Swept) {
        let now = Instant::now();
        self.node.sweeps.done += 1;
        self.node.sweeps.cost += swept.cost;
        self.node.sweeps.took = now - self.sweep.began;
        self.node.sweeps.ended = Some(SystemTime::now());
        if swept.problems != self.node.sweep_problems {
            for problem in &swept.problems {
                tracing::warn!(problem, "a sweep could not see everything");
            }
            self.node.sweep_problems = swept.problems;
        }
        self.node.entrances = swept.entrances;
        self.drain();
        self.ingest(&Frame::SweepEnd(swept.coverage));
        for task in self.node.tracker.next_held_processes(EXECUTABLES_A_SWEEP) {
            if let Some(details) = procfs::details_if_deleted(&task) {
                self.ingest(&Frame::Process(ProcessFrame { identity: task.identity(), details }));
            }
        }
        // After `SweepEnd`, which adds minisocks to the table.
        self.sweep = SweepState {
            under_way: false,
            began: self.sweep.began,
            cost: swept.cost,
            connections: self.node.tracker.table().len(),
            not_before: now + swept.cost * SWEEP_COST_SHARE,
            finished: now,
        };
        for question in std::mem::take(&mut self.waiting) {
            self.say(question);
        }
    }
}

fn stop_recording(recorder: &mut Option<Recorder>, error: &RecordingError) {
    tracing::error!(%error, "recording stopped; watching goes on");
    *recorder = None;
}
