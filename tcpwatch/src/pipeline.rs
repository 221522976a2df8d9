//! The wiring: one task that owns the state, fed by the kernel, asked by HTTP.
//!
//! Ring and queues are drained when the kernel says that they fill, when somebody asks, and else ten times a second while
//! there is much to read, or once; so an answer always contains what happened before the question.

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
    node::{Node, Question},
    recorder::{Recorder, RecordingError},
};

/// How long a record may wait while many come, or somebody follows them.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);
/// And else: waking up is then the most of what tcpwatch costs.
const QUIET_DRAIN_INTERVAL: Duration = Duration::from_secs(1);
/// So many a second are many.
const MANY_RECORDS: f64 = 1000.0;
/// How often old entries expire and the kernel's counts of lost records are read.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a record may take to be seen by another processor. x86 shows stores in their order; others are given far
/// longer than they need, as BPF programs for Linux 5.10 have no barrier.
const PUBLICATION_NS: u64 = if cfg!(target_arch = "x86_64") { 0 } else { 1_000_000 };
/// Sweeps may take this share of one processor's time: one that cost 1 ms is not repeated for 50 ms; and if nobody asks
/// and nothing was lost, for 500 ms.
const SWEEP_COST_SHARE: u32 = 50;
const UNASKED_SWEEP_COST_SHARE: u32 = 500;
/// What a connection adds to a sweep, about: one that the last sweep did not see is not in what that cost.
const SWEEP_COST_EACH: Duration = Duration::from_micros(2);
/// An answer waits for a sweep that is expected to cost no more than this.
const SWEEP_WORTH_WAITING: Duration = Duration::from_millis(20);
/// How often a sweep looks after what no record tells of, while there is such; and else, for sockets that
/// never became connections.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
const IDLE_SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// The owner of the state.
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

/// Whether many records come. Measured over a while: drains follow each other closely when somebody asks.
struct Pace {
    since: Instant,
    /// Records received by then.
    received: u64,
    busy: bool,
}

impl Pace {
    fn note(&mut self, now: Instant, received: u64) {
        let passed = now - self.since;
        if passed >= DRAIN_INTERVAL {
            let busy = (received - self.received) as f64 >= MANY_RECORDS * passed.as_secs_f64();
            *self = Self { since: now, received, busy };
        }
    }
}

/// What is known from the last sweep.
struct SweepState {
    under_way: bool,
    /// When the one under way, or else the latest, began.
    began: Instant,
    cost: Duration,
    /// Connections that there were then.
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

    /// For questions that go to its thread.
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
        // Attached first, swept second: nothing can fall between.
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
                    // What happened before these looks comes first.
                    self.drain();
                    self.ingest(&Frame::Seen(records));
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

    /// Reads what was written until now: no more than there is room for, or a kernel that writes faster than this
    /// reads would never let an answer out.
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
        for (pid, start_ns) in self.node.tracker.take_unread_processes() {
            if let Some(details) = procfs::details(pid, start_ns) {
                self.ingest(&Frame::Process(ProcessFrame { pid, start_ns, details }));
            }
        }
    }

    fn tick(&mut self) {
        self.note_lost();
        let interval = if self.node.tracker.has_minisocks() { SWEEP_INTERVAL } else { IDLE_SWEEP_INTERVAL };
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
        let lost = self.lost.read();
        if lost != self.node.records.lost {
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
        let counted = self.lost.unrecorded();
        if counted != self.node.records.unrecorded {
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
        if question.about_owners && self.node.waiting_for.is_none() {
            self.start_sweep();
            if self.sweep.under_way && self.expected_sweep_cost() <= SWEEP_WORTH_WAITING {
                self.waiting.push(question);
                return;
            }
        }
        self.drain();
        self.say(question);
    }

    /// Answers, as of now: what expired meanwhile is gone first.
    fn say(&mut self, question: Question) {
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

    /// Begins to look at all sockets, unless that is under way or was done just now.
    fn start_sweep(&mut self) {
        if self.sweep.under_way || Instant::now() < self.sweep.not_before {
            return;
        }
        // What is lost from here on, this sweep may miss.
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
        self.drain();
        self.ingest(&Frame::SweepEnd(swept.coverage));
        // With the minisocks that enter the table only now.
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
