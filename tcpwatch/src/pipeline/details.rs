//! What /proc says of processes: asked of a thread, and which questions wait for it.
//!
//! An answer waits for the processes that were known before the question, so that it has their executables also where
//! they were seen just then. It does not wait for a /proc that is slow: it says how many are missing instead. Reads no
//! clock: times are passed in.

use std::{
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

use crate::{
    kernel::describer::{Answer, Describer, Request},
    model::tracker::Tracker,
    node::Question,
};

/// How long an answer waits for /proc: a process takes 0.1 ms [measured].
const PATIENCE: Duration = Duration::from_secs(1);

/// Executables that are looked at again after each sweep, as they may have been deleted: a system call each.
const EXECUTABLES_A_SWEEP: usize = 100;

pub(super) struct Details {
    describer: Describer,
    count: Count,
    /// Questions, each with the number of answers that it waits for, and the time until when.
    waiting: VecDeque<(u64, Instant, Question)>,
    /// A question has waited in vain, and there was never an answer to everything since.
    late: bool,
}

/// Requests and answers since the start.
#[derive(Clone, Copy, Default)]
struct Count {
    asked: u64,
    answered: u64,
}

impl Details {
    pub(super) fn start() -> io::Result<Self> {
        let (count, waiting) = (Count::default(), VecDeque::new());
        Ok(Self { describer: Describer::start()?, count, waiting, late: false })
    }

    /// Asks about processes that were not asked about, as far as there is room.
    pub(super) fn ask_unread(&mut self, tracker: &mut Tracker) {
        for task in tracker.take_unread_processes(self.describer.room()) {
            self.ask(Request::Details(task));
        }
    }

    /// Asks whether executables were deleted since: of some processes that connections name.
    pub(super) fn ask_held(&mut self, tracker: &mut Tracker) {
        for task in tracker.next_held_processes(EXECUTABLES_A_SWEEP.min(self.describer.room())) {
            self.ask(Request::IfDeleted(task));
        }
    }

    fn ask(&mut self, request: Request) {
        self.count.asked += u64::from(self.describer.ask(request));
    }

    /// The next answer; `None` when the thread has ended.
    pub(super) async fn answer(&mut self) -> Option<Answer> {
        let answer = self.describer.answer().await;
        self.count.answered += u64::from(answer.is_some());
        answer
    }

    /// An answer that has come already.
    pub(super) fn next_answer(&mut self) -> Option<Answer> {
        let answer = self.describer.next_answer()?;
        self.count.answered += 1;
        Some(answer)
    }

    /// Processes that /proc was not read of yet, if answers lack them by now.
    pub(super) fn missing(&self, tracker: &Tracker) -> usize {
        if self.late { self.outstanding(tracker) } else { 0 }
    }

    fn outstanding(&self, tracker: &Tracker) -> usize {
        (self.count.asked - self.count.answered) as usize + tracker.unread_processes()
    }

    /// Keeps the question until what is known now was read; returns it when there is nothing to wait for.
    pub(super) fn wait(&mut self, question: Question, tracker: &Tracker, now: Instant) -> Option<Question> {
        let outstanding = self.outstanding(tracker) as u64;
        self.late &= outstanding > 0;
        if outstanding == 0 || self.late {
            return Some(question);
        }
        self.waiting.push_back((self.count.answered + outstanding, now + PATIENCE, question));
        None
    }

    /// When a question stops waiting.
    pub(super) fn until(&self) -> Option<Instant> {
        self.waiting.front().map(|(_, until, _)| *until)
    }

    /// Whether a question waits no more.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        self.waiting.front().is_some_and(|(needs, until, _)| *needs <= self.count.answered || *until <= now)
    }

    /// The next question that waits no more.
    pub(super) fn next_ready(&mut self, now: Instant) -> Option<Question> {
        let (needs, ..) = self.waiting.front().filter(|_| self.is_ready(now))?;
        if *needs > self.count.answered && !std::mem::replace(&mut self.late, true) {
            tracing::error!(waited = ?PATIENCE, "/proc is slow; answers lack executables and cgroups");
        }
        self.waiting.pop_front().map(|(.., question)| question)
    }
}
