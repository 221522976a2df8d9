//! The wiring: one task that owns the state, fed by the kernel, asked by HTTP.
//!
//! Ring and queues are drained when the kernel says that they fill, before each answer, and on a timer: ten times a
//! second while many records come or somebody follows them, otherwise once a second. So an answer always includes what
//! happened before the question.
//!
//! The task never waits for anything but work: what may take long is done by threads, which report back.

mod details;
mod sweeps;

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use tcpwatch_common::KIND_WAKE;
use tokio::sync::mpsc;

use crate::{
    events::frame::{Frame, ListenQueues, Look, LostRecords},
    kernel::{
        clock,
        describer::Answer,
        probes::Loaded,
        procfs, sock_diag,
        sweeper::{Report, Sweeper, Swept},
        transport::{CountedRetransmits, LossCounters, Queues, Ring, inbox::Inbox},
    },
    node::{Node, Question, SweepFirst},
    pipeline::{
        details::Details,
        sweeps::{QueueLooks, Sweeps},
    },
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
/// How soon to look again for a record that an interrupted program has begun to write.
const INTERRUPTED_POLL: Duration = Duration::from_millis(1);

/// Time between two counts of the descriptors of findings' processes, and how many processes are counted.
const DESCRIPTORS_INTERVAL: Duration = Duration::from_secs(10);
const MAX_DESCRIPTOR_PROCESSES: usize = 32;
/// Time between two looks at the same socket.
const LOOK_INTERVAL: Duration = Duration::from_millis(1900);

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
    sweeps: Sweeps,
    queue_looks: QueueLooks,
    details: Details,
    descriptors_counted: Instant,
    drained: Instant,
    /// CLOCK_MONOTONIC until which all records were applied; those of the queues that are newer than what an interrupted
    /// program hides wait for it.
    applied_ns: u64,
    /// Whether an interrupted program hid records of the ring at the last drain.
    interrupted: bool,
    pace: Pace,
    /// Questions that wait for the sweep under way.
    waiting: Vec<Question>,
    looks: Looks,
}

/// Looks at a few sockets by themselves, on a thread of their own.
struct Looks {
    sender: mpsc::Sender<Vec<Look>>,
    receiver: mpsc::Receiver<Vec<Look>>,
    under_way: bool,
    not_before: Instant,
}

/// What ends the owner's wait.
enum Work {
    Readable(std::io::Result<()>),
    /// `None`: the sweeper's thread has ended.
    Report(Option<Report>),
    /// `None`: the thread that reads /proc has ended.
    Described(Option<Answer>),
    Question(Question),
    Looks(Vec<Look>),
    Time,
}

/// Work that must not be done before all earlier records are applied.
enum Ordered {
    Report(Report),
    Question(Question),
    Looks(Vec<Look>),
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

impl Pipeline {
    /// # Errors
    /// When the ring cannot be polled.
    pub fn new(node: Node, loaded: Loaded, recorder: Option<Recorder>) -> anyhow::Result<Self> {
        let (report, reports) = mpsc::channel(1);
        let now = Instant::now();
        let (sender, receiver) = mpsc::channel(1);
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
            sweeps: Sweeps::new(now),
            queue_looks: QueueLooks::new(now),
            details: Details::start()?,
            descriptors_counted: now,
            drained: now,
            applied_ns: 0,
            interrupted: false,
            pace: Pace { since: now, received: 0, busy: false },
            waiting: Vec::new(),
            looks: Looks { sender, receiver, under_way: false, not_before: now },
        })
    }

    /// The sweeper, for questions that its thread answers.
    pub fn sweeper(&self) -> Sweeper {
        self.sweeper.clone()
    }

    /// Runs until `stop` completes.
    ///
    /// # Errors
    /// When the ring cannot be polled any more, or a thread has ended that nothing can replace.
    pub async fn run(
        mut self,
        mut questions: mpsc::Receiver<Question>,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let mut stop = pin!(stop);
        let mut next_tick = Instant::now() + TICK_INTERVAL;
        let mut held: Option<Ordered> = None;
        // The programs are attached already: a socket is seen by them or by this sweep.
        self.start_sweep();
        loop {
            let next = self.next_time(next_tick);
            let work = tokio::select! {
                () = &mut stop => break,
                ready = self.ring.readable() => Work::Readable(ready),
                report = self.reports.recv(), if held.is_none() => Work::Report(report),
                answer = self.details.answer() => Work::Described(answer),
                Some(question) = questions.recv(), if held.is_none() => Work::Question(question),
                Some(looks) = self.looks.receiver.recv(), if held.is_none() => Work::Looks(looks),
                () = tokio::time::sleep_until(next.into()) => Work::Time,
            };
            let began = Instant::now();
            match work {
                Work::Readable(ready) => ready?,
                // With it the programs are detached: nothing more would come in.
                Work::Report(None) => anyhow::bail!("the thread that sweeps has ended"),
                Work::Report(Some(report)) => held = Some(Ordered::Report(report)),
                Work::Described(None) => anyhow::bail!("the thread that reads /proc has ended"),
                Work::Described(Some(answer)) => self.describe(answer),
                Work::Question(question) => held = Some(Ordered::Question(question)),
                Work::Looks(looks) => held = Some(Ordered::Looks(looks)),
                Work::Time => {}
            }
            // Otherwise what is due waits for what an interrupted program hides, a second at most.
            if self.drain() {
                match held.take() {
                    Some(Ordered::Report(report)) => self.take_report(report),
                    Some(Ordered::Question(question)) => self.answer(question),
                    Some(Ordered::Looks(looks)) => {
                        self.looks.under_way = false;
                        self.ingest(&Frame::Looks(looks));
                    }
                    None => {}
                }
                self.answer_waiting();
                if Instant::now() >= next_tick {
                    next_tick = Instant::now() + TICK_INTERVAL;
                    self.tick();
                }
            }
            self.node.owner.busy += began.elapsed();
        }
        self.drain();
        self.tick();
        if let Some(Err(error)) = self.recorder.take().map(Recorder::finish) {
            tracing::error!(%error, "the recording is not whole");
        }
        Ok(())
    }

    /// When there is something to do even if nothing comes.
    fn next_time(&self, next_tick: Instant) -> Instant {
        if self.interrupted {
            return self.drained + INTERRUPTED_POLL;
        }
        let late = self.sweeps.late_at().filter(|_| !self.waiting.is_empty());
        let drain = self.drained + self.drain_interval();
        late.into_iter().chain(self.details.until()).fold(next_tick.min(drain), Instant::min)
    }

    fn take_report(&mut self, report: Report) {
        match report {
            Report::Seen(records) => self.ingest(&Frame::Seen(records)),
            Report::Interfaces(read) => {
                if !self.node.tracker.knows_interfaces(&read) {
                    self.ingest(&Frame::Interfaces(read));
                }
            }
            Report::Namespace(settings) => {
                if self.node.tracker.namespace(settings.netns) != Some(&settings) {
                    self.ingest(&Frame::Namespace(settings));
                }
            }
            Report::Queues(read, cost) => self.take_queues(read, cost),
            Report::Done(swept) => self.finish_sweep(swept),
        }
    }

    /// Takes what /proc said, and what else has come meanwhile.
    fn describe(&mut self, first: Answer) {
        let mut next = Some(first);
        while let Some(answer) = next {
            if let Some(process) = answer {
                self.ingest(&Frame::Process(process));
            }
            next = self.details.next_answer();
        }
    }

    fn drain_interval(&self) -> Duration {
        if self.pace.busy || self.node.has_followers() { DRAIN_INTERVAL } else { QUIET_DRAIN_INTERVAL }
    }

    /// Applies the records written until now. No more than fit into the buffers at once: a kernel that writes faster
    /// than this reads would hold back answers forever. `false` while an interrupted program hides some.
    fn drain(&mut self) -> bool {
        self.drained = Instant::now();
        let clock = clock::read();
        self.node.wall_offset_ns = clock.wall_offset_ns();
        let now_ns = clock.now_ns.saturating_sub(PUBLICATION_NS);
        self.queues.look();
        let inbox = &mut self.inbox;
        let whole = self.ring.read(|record| {
            if record.first() != Some(&KIND_WAKE) {
                self.retransmits.note(record);
                inbox.push(record);
            }
        });
        self.retransmits.look(now_ns, |record| inbox.push(record));
        let (node, recorder) = (&mut self.node, &mut self.recorder);
        node.look_for_followers();
        self.interrupted = !whole;
        if whole {
            self.applied_ns = now_ns;
        }
        self.inbox.take(&mut self.queues, self.applied_ns, |record| {
            if let Some(open) = recorder
                && let Err(error) = open.record(record)
            {
                stop_recording(recorder, &error);
            }
            node.record(record);
        });
        self.pace.note(self.drained, self.node.records.received);
        self.details.ask_unread(&mut self.node.tracker);
        whole
    }

    fn tick(&mut self) {
        self.note_lost();
        let unreported = self.node.tracker.has_unreported_minisocks();
        let is_wanted = self.node.needs_repair() || self.node.findings.wants_sweep;
        if is_wanted || self.sweeps.is_due(Instant::now(), self.connections(), unreported) {
            self.start_sweep();
        }
        self.look_at_queues();
        self.count_descriptors();
        self.ingest(&Frame::Tick(clock::read().now_ns));
        self.look();
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.flush()
        {
            stop_recording(&mut self.recorder, &error);
        }
    }

    /// Looks at accept queues, if it is time to: a sweep under way looks at them anyway.
    fn look_at_queues(&mut self) {
        if self.sweeps.under_way() || !self.queue_looks.may_begin(Instant::now()) {
            return;
        }
        let namespaces = self.node.namespaces_of_listeners();
        if !namespaces.is_empty() {
            self.queue_looks.begin();
            self.sweeper.look_at_queues(namespaces);
        }
    }

    /// Counts the descriptors of the processes of findings, if it is time to.
    fn count_descriptors(&mut self) {
        let now = Instant::now();
        if now - self.descriptors_counted < DESCRIPTORS_INTERVAL {
            return;
        }
        self.descriptors_counted = now;
        let at_ns = clock::read().now_ns;
        for (pid, start_ns) in self.node.findings.holders(MAX_DESCRIPTOR_PROCESSES) {
            if let Some(count) = procfs::descriptors(pid, start_ns, at_ns) {
                self.ingest(&Frame::Descriptors(count));
            }
        }
    }

    /// Which connections wait in a queue only a sweep shows.
    fn take_queues(&mut self, read: ListenQueues, cost: Duration) {
        let now = Instant::now();
        self.queue_looks.end(now, cost);
        self.node.sweeps.cost += cost;
        self.ingest(&Frame::Queues(read));
        if self.node.tracker.queues_want_sweep() && self.sweeps.is_affordable(now, self.connections()) {
            self.start_sweep();
        }
    }

    /// Looks at the sockets that are worth it.
    fn look(&mut self) {
        let now = Instant::now();
        if self.looks.under_way || now < self.looks.not_before {
            return;
        }
        let targets = self.node.worth_a_look();
        if targets.is_empty() {
            return;
        }
        (self.looks.under_way, self.looks.not_before) = (true, now + LOOK_INTERVAL);
        let sender = self.looks.sender.clone();
        tokio::spawn(async move {
            // The pipeline is gone when the daemon stops.
            let _ = sender.send(sock_diag::look(targets).await).await;
        });
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
        self.note_late_sweep();
        let cheap = self.sweeps.is_cheap(self.connections());
        let sweep_first = match question.sweep_first {
            SweepFirst::No => false,
            SweepFirst::IfCheap => cheap,
            SweepFirst::Yes => true,
        };
        if sweep_first && self.node.waiting_for.is_none() {
            self.start_sweep();
            if self.sweeps.under_way() && cheap && self.node.late_sweep.is_none() {
                self.waiting.push(question);
                return;
            }
        }
        self.say_when_described(question);
    }

    /// Answers what has waited: when the sweep is late, or /proc was read or is late. The answers say what they lack.
    fn answer_waiting(&mut self) {
        self.note_late_sweep();
        if self.node.late_sweep.is_some() {
            self.answer_waiting_for_sweep();
        }
        while let Some(question) = self.details.next_ready(Instant::now()) {
            self.say(question);
        }
    }

    fn note_late_sweep(&mut self) {
        let late = self.sweeps.late_for(Instant::now());
        if let Some(took) = late
            && self.node.late_sweep.is_none()
        {
            tracing::error!(?took, "the sweep under way does not end; answers say so until it does");
        }
        self.node.late_sweep = late;
    }

    fn answer_waiting_for_sweep(&mut self) {
        for question in std::mem::take(&mut self.waiting) {
            self.say_when_described(question);
        }
    }

    fn say_when_described(&mut self, question: Question) {
        if let Some(question) = self.details.wait(question, &self.node.tracker, Instant::now()) {
            self.say(question);
        }
    }

    fn connections(&self) -> usize {
        self.node.tracker.table().len()
    }

    /// Answers as of now: entries that expired meanwhile are removed first, and what was lost among the records that
    /// the answer is made of is known.
    fn say(&mut self, question: Question) {
        self.note_lost();
        let clock = clock::read();
        self.ingest(&Frame::Tick(clock.now_ns));
        self.node.undescribed = self.details.missing(&self.node.tracker);
        let began = Instant::now();
        (question.ask)(&self.node, clock);
        self.node.owner.questions.observe(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }

    /// Begins a sweep of all sockets, unless one is under way or was done just now.
    fn start_sweep(&mut self) {
        let now = Instant::now();
        if !self.sweeps.may_begin(now) {
            return;
        }
        // This sweep makes up only for records lost until now.
        self.note_lost();
        self.ingest(&Frame::SweepBegin(clock::read().now_ns));
        self.sweeps.begin(now, self.connections());
        self.sweeper.sweep();
    }

    fn finish_sweep(&mut self, swept: Swept) {
        let now = Instant::now();
        self.node.sweeps.done += 1;
        self.node.sweeps.cost += swept.cost;
        self.node.sweeps.ended_ns = Some(clock::read().now_ns);
        if swept.problems != self.node.sweep_problems {
            for problem in &swept.problems {
                tracing::warn!(problem, "a sweep could not see everything");
            }
            self.node.sweep_problems = swept.problems;
        }
        self.node.entrances = swept.entrances;
        self.ingest(&Frame::SweepEnd(swept.coverage));
        self.details.ask_held(&mut self.node.tracker);
        // After `SweepEnd`, which adds minisocks to the table.
        self.node.sweeps.took = self.sweeps.end(now, swept.cost, self.connections());
        self.node.late_sweep = None;
        self.answer_waiting_for_sweep();
    }
}

fn stop_recording(recorder: &mut Option<Recorder>, error: &RecordingError) {
    *recorder = None;
    if matches!(error, RecordingError::MaxSize(..)) {
        tracing::warn!(%error, "recording stopped; watching goes on");
    } else {
        tracing::error!(%error, "recording stopped; watching goes on");
    }
}
