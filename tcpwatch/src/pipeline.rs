//! The wiring: one task that owns the state, fed by the kernel, asked by HTTP.
//!
//! The ring is drained when the kernel says it fills, when somebody asks, and else ten times a second; so an
//! answer always contains what happened before the question.

use std::{
    io::Read as _,
    path::Path,
    pin::pin,
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use bytes::Bytes;
use tokio::{io::unix::AsyncFd, sync::mpsc, time::MissedTickBehavior};

use crate::{
    clock::Clock,
    http::Question,
    node::Node,
    probes::{self, Probes},
    proc,
    recording::{Frame, Header, ProcessFrame, Recorder, RecordingError},
};

/// How long a record may wait in the ring when there are few.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);
/// How often old entries expire and the kernel's counts of lost records are read.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// Records read in one go, before questions get their turn.
const BATCH: usize = 65_536;
/// Sweeps may take this share of one core's time: a sweep that took 1 ms is not repeated for 50 ms.
const SWEEP_COST_SHARE: u32 = 50;
/// An answer waits for a sweep that is expected to take no longer than this.
const SWEEP_WORTH_WAITING: Duration = Duration::from_millis(20);

/// The owner of the state.
pub struct Pipeline {
    node: Node,
    probes: Probes,
    ring: AsyncFd<RingBuf<MapData>>,
    recorder: Option<Recorder>,
    sweep: Sweep,
    /// Questions that wait for the sweep under way.
    waiting: Vec<Question>,
}

struct Sweep {
    done: mpsc::Receiver<std::io::Result<Vec<u8>>>,
    report: mpsc::Sender<std::io::Result<Vec<u8>>>,
    /// When the one under way began.
    since: Option<Instant>,
    took: Duration,
    not_before: Instant,
}

impl Pipeline {
    /// # Errors
    /// When the ring cannot be polled or the recording not be written.
    pub fn new(
        node: Node,
        probes: Probes,
        ring: RingBuf<MapData>,
        record: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let recorder = record.map(|path| Recorder::create(path, &header(&node))).transpose()?;
        let ring = probes::pollable(ring)?;
        let (report, done) = mpsc::channel(1);
        let sweep = Sweep { done, report, since: None, took: Duration::ZERO, not_before: Instant::now() };
        Ok(Self { node, probes, ring, recorder, sweep, waiting: Vec::new() })
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
        let mut drain = tokio::time::interval(DRAIN_INTERVAL);
        drain.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next_tick = Instant::now() + TICK_INTERVAL;
        // Attached first, swept second: nothing can fall between.
        self.start_sweep();
        loop {
            tokio::select! {
                () = &mut stop => break,
                ready = self.ring.readable() => {
                    // Cleared before reading: what arrives meanwhile makes it ready again.
                    ready?.clear_ready();
                    self.drain();
                }
                Some(found) = self.sweep.done.recv() => self.finish_sweep(found),
                Some(question) = questions.recv() => self.answer(question),
                _ = drain.tick() => {
                    self.drain();
                    if Instant::now() >= next_tick {
                        next_tick = Instant::now() + TICK_INTERVAL;
                        self.tick();
                    }
                }
            }
        }
        while self.drain() {}
        self.tick();
        Ok(())
    }

    /// Reads what is in the ring; `true` when there may be more.
    fn drain(&mut self) -> bool {
        let ring = self.ring.get_mut();
        let mut count = 0;
        while count < BATCH
            && let Some(record) = ring.next()
        {
            count += 1;
            if let Some(recorder) = &mut self.recorder
                && let Err(error) = recorder.record(&record)
            {
                stop_recording(&mut self.recorder, &error);
            }
            self.node.record(&record);
        }
        for (pid, start_ns) in self.node.tracker.processes.take_unread() {
            if let Some(details) = proc::details(pid, start_ns) {
                self.ingest(&Frame::Process(ProcessFrame { pid, start_ns, details }));
            }
        }
        count == BATCH
    }

    fn tick(&mut self) {
        let lost = self.probes.lost();
        if lost != self.node.records.lost {
            let new = lost.total() - self.node.records.lost.total();
            tracing::error!(
                new,
                total = lost.total(),
                "records lost in the kernel: the table may miss connections"
            );
            self.ingest(&Frame::Lost(lost));
            self.start_sweep();
        }
        self.ingest(&Frame::Tick(Clock::read().now_ns));
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.flush()
        {
            stop_recording(&mut self.recorder, &error);
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
            if self.sweep.since.is_some() && self.sweep.took <= SWEEP_WORTH_WAITING {
                self.waiting.push(question);
                return;
            }
        }
        while self.drain() {}
        (question.ask)(&self.node, Clock::read());
    }

    /// Begins to look up who holds which socket, unless that is under way or was done just now.
    fn start_sweep(&mut self) {
        if self.sweep.since.is_some() || Instant::now() < self.sweep.not_before {
            return;
        }
        let mut file = match self.probes.held_sockets() {
            Ok(file) => file,
            Err(error) => {
                tracing::debug!(error, "no sweep");
                self.node.waiting_for = None;
                return;
            }
        };
        self.ingest(&Frame::SweepBegin);
        self.sweep.since = Some(Instant::now());
        let report = self.sweep.report.clone();
        tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            let result = file.read_to_end(&mut found).map(|_| found);
            // The pipeline may have stopped.
            let _ = report.blocking_send(result);
        });
    }

    fn finish_sweep(&mut self, found: std::io::Result<Vec<u8>>) {
        self.sweep.took = self.sweep.since.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.sweep.not_before = Instant::now() + self.sweep.took * SWEEP_COST_SHARE;
        // What happened while the sweep ran comes first.
        while self.drain() {}
        let found = found.unwrap_or_else(|error| {
            tracing::error!(%error, "the sweep of open sockets failed: owners may be missing");
            Vec::new()
        });
        self.ingest(&Frame::Sweep(Bytes::from(found)));
        while self.drain() {}
        for question in std::mem::take(&mut self.waiting) {
            (question.ask)(&self.node, Clock::read());
        }
    }
}

fn stop_recording(recorder: &mut Option<Recorder>, error: &RecordingError) {
    tracing::error!(%error, "recording stopped; watching goes on");
    *recorder = None;
}

fn header(node: &Node) -> Header {
    let clock = Clock::read();
    let wall = clock.wall.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Header {
        tcpwatch_records: tcpwatch_common::ABI,
        node: node.identity.node.clone(),
        kernel: node.identity.kernel.clone(),
        wall_offset_ns: u64::try_from(wall.as_nanos()).unwrap_or(0).saturating_sub(clock.now_ns),
    }
}
