//! Destinations at which connects failed lately: from the first failure on, what became of each attempt.
//!
//! In: the outcome of each connect. Out: a [`Dials`] for each client and destination, with counts by tenths of minutes. A
//! destination is forgotten when no connect to it has failed for a quarter of an hour. Bounded: [`MAX_KEYS`], and the one
//! that failed least recently goes first.

use std::{collections::VecDeque, sync::Arc};

use rustc_hash::FxHashMap;

use crate::{
    events::decode::Endpoint,
    model::{processes::ProcessId, table::Conn},
    tcp::{connect_outcome::Outcome, modes::Sample},
};

/// Who dials whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DialKey {
    /// Inode of the network namespace.
    pub netns: u32,
    /// The name of the processes; `None` where the owner is not known.
    pub process: Option<Arc<str>>,
    pub server: Endpoint,
}

const MAX_KEYS: usize = 1024;
const FORGET_NS: u64 = 900_000_000_000;
const BUCKET_NS: u64 = 10_000_000_000;
/// Five minutes.
const MAX_BUCKETS: usize = 30;
/// Failed connects that are kept of a destination, as examples.
const MAX_EXAMPLES: usize = 16;
const MAX_PATIENCES: usize = 64;
/// A connect to another address of the same port this soon after a failure makes it good: happy eyeballs (RFC 8305).
const FALLBACK_NS: u64 = 2_000_000_000;
const MAX_RECENT: usize = 64;

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialled {
    Established,
    Refused,
    TimedOut,
    Unreachable,
    Reset,
    /// The application gave up after a SYN was repeated: nothing answered for as long as it had patience.
    GaveUp,
    /// Failed, and another address of the same port was connected at once.
    FellBack,
}

impl Dialled {
    const COUNT: usize = 7;

    /// `None` of what says nothing of the destination: given up before a SYN was repeated, no local port, not known.
    fn of(conn: &Conn, outcome: Outcome) -> Option<Self> {
        match outcome {
            Outcome::Established => Some(Self::Established),
            Outcome::Refused => Some(Self::Refused),
            Outcome::TimedOut => Some(Self::TimedOut),
            Outcome::Unreachable => Some(Self::Unreachable),
            Outcome::Reset => Some(Self::Reset),
            Outcome::Aborted if conn.total_retrans().is_some_and(|repeats| repeats > 0) => Some(Self::GaveUp),
            Outcome::Aborted | Outcome::NoPort | Outcome::Other | Outcome::Unknown => None,
        }
    }

    fn is_failure(self) -> bool {
        !matches!(self, Self::Established | Self::FellBack)
    }
}

/// Attempts by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    counts: [u32; Dialled::COUNT],
    /// How often a success followed a refusal, or a refusal a success.
    pub alternations: u32,
    pub syn_repeats: u32,
}

impl Attempts {
    pub fn get(&self, dialled: Dialled) -> u32 {
        self.counts[dialled as usize]
    }

    pub fn all(&self) -> u32 {
        self.counts.iter().sum()
    }

    pub fn failed(&self) -> u32 {
        self.all() - self.get(Dialled::Established) - self.get(Dialled::FellBack)
    }

    fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
        self.alternations += other.alternations;
        self.syn_repeats += other.syn_repeats;
    }
}

/// Attempts of one kind without one of another in between.
#[derive(Clone, Copy, Debug, Default)]
pub struct Streak {
    pub count: u32,
    /// CLOCK_MONOTONIC.
    pub first_ns: u64,
}

impl Streak {
    fn add(&mut self, now_ns: u64) {
        if self.count == 0 {
            self.first_ns = now_ns;
        }
        self.count += 1;
    }
}

/// The attempts of one client at one destination since its first failure. Times are of CLOCK_MONOTONIC.
#[derive(Clone, Debug)]
pub struct Dials {
    pub first_failed_ns: u64,
    pub last_failed_ns: u64,
    /// Failures since the last success.
    pub failures: Streak,
    /// Successes since the last failure.
    pub successes: Streak,
    /// Whether a connect succeeded before, or since.
    pub succeeded: bool,
    buckets: VecDeque<(u64, Attempts)>,
    last: Option<Dialled>,
    /// Latest last.
    examples: VecDeque<Conn>,
    patiences: VecDeque<Sample>,
}

impl Dials {
    /// The attempts since then, to ten seconds, and at most of the last five minutes.
    pub fn since(&self, then_ns: u64) -> Attempts {
        let mut sum = Attempts::default();
        let recent = self.buckets.iter().rev();
        for (_, attempts) in recent.take_while(|(began_ns, _)| began_ns.saturating_add(BUCKET_NS) > then_ns) {
            sum.add(attempts);
        }
        sum
    }

    /// In how many spans of ten seconds since then connects failed.
    pub fn failing_spans(&self, then_ns: u64) -> usize {
        let recent = self.buckets.iter().rev();
        let recent = recent.take_while(|(began_ns, _)| began_ns.saturating_add(BUCKET_NS) > then_ns);
        recent.filter(|(_, attempts)| attempts.failed() > 0).count()
    }

    /// A few of the connects that failed, latest last.
    pub fn examples(&self) -> impl Iterator<Item = &Conn> {
        self.examples.iter()
    }

    /// How long the application waited before it gave up, of the latest times.
    pub fn patiences(&self) -> impl Iterator<Item = Sample> {
        self.patiences.iter().copied()
    }

    fn count(&mut self, dialled: Dialled, syn_repeats: u32, now_ns: u64) {
        if self.buckets.back().is_none_or(|(began_ns, _)| began_ns.saturating_add(BUCKET_NS) <= now_ns) {
            if self.buckets.len() == MAX_BUCKETS {
                self.buckets.pop_front();
            }
            self.buckets.push_back((now_ns, Attempts::default()));
        }
        let alternates = matches!(
            (self.last, dialled),
            (Some(Dialled::Refused), Dialled::Established) | (Some(Dialled::Established), Dialled::Refused)
        );
        if let Some((_, attempts)) = self.buckets.back_mut() {
            attempts.counts[dialled as usize] += 1;
            attempts.alternations += u32::from(alternates);
            attempts.syn_repeats += syn_repeats;
        }
        self.last = Some(dialled);
        if dialled.is_failure() {
            self.last_failed_ns = now_ns;
            self.successes = Streak::default();
            self.failures.add(now_ns);
        } else {
            self.succeeded = true;
            self.failures = Streak::default();
            self.successes.add(now_ns);
        }
    }

    /// The latest failure was made good by another address.
    fn make_good(&mut self, dialled: Dialled) {
        if let Some((_, attempts)) =
            self.buckets.iter_mut().rev().find(|(_, attempts)| attempts.get(dialled) > 0)
        {
            attempts.counts[dialled as usize] -= 1;
            attempts.counts[Dialled::FellBack as usize] += 1;
        }
        self.failures.count = self.failures.count.saturating_sub(1);
    }
}

#[derive(Clone, Debug)]
struct RecentFailure {
    at_ns: u64,
    process: Option<ProcessId>,
    key: DialKey,
    dialled: Dialled,
}

/// All destinations at which connects failed lately.
#[derive(Debug, Default)]
pub struct FailingDials {
    by_key: FxHashMap<DialKey, Dials>,
    recent: VecDeque<RecentFailure>,
}

/// What became of a connect, for [`FailingDials::count`].
pub(crate) struct DialEnd<'a> {
    pub(crate) conn: &'a Conn,
    pub(crate) outcome: Outcome,
    pub(crate) now_ns: u64,
    /// A connect to this destination succeeded before.
    pub(crate) succeeded: bool,
}

impl FailingDials {
    pub fn iter(&self) -> impl Iterator<Item = (&DialKey, &Dials)> {
        self.by_key.iter()
    }

    /// Counts a connect. Returns the examples that are not kept any more, for the caller to release; the conn of a failure
    /// is kept.
    pub(crate) fn count(&mut self, end: &DialEnd<'_>, process: Option<&Arc<str>>) -> Counted {
        let mut counted = Counted::default();
        let Some(dialled) = Dialled::of(end.conn, end.outcome) else { return counted };
        let key = DialKey { netns: end.conn.netns, process: process.cloned(), server: end.conn.remote };
        if dialled == Dialled::Established {
            self.fall_back(end);
        }
        if !dialled.is_failure() && !self.by_key.contains_key(&key) {
            return counted;
        }
        counted.released.extend(self.make_room(&key, end.now_ns));
        let dials = self.by_key.entry(key.clone()).or_insert_with(|| Dials {
            first_failed_ns: end.now_ns,
            last_failed_ns: end.now_ns,
            failures: Streak::default(),
            successes: Streak::default(),
            succeeded: end.succeeded,
            buckets: VecDeque::new(),
            last: None,
            examples: VecDeque::new(),
            patiences: VecDeque::new(),
        });
        let repeats = end.conn.total_retrans().unwrap_or(0);
        dials.count(dialled, repeats, end.now_ns);
        if dialled.is_failure() {
            if dialled == Dialled::GaveUp {
                if dials.patiences.len() == MAX_PATIENCES {
                    dials.patiences.pop_front();
                }
                let waited_ns = end.now_ns.saturating_sub(end.conn.since_ns());
                let ms = u32::try_from(waited_ns / 1_000_000).unwrap_or(u32::MAX);
                dials.patiences.push_back(Sample { at_ns: end.now_ns, ms });
            }
            if dials.examples.len() == MAX_EXAMPLES {
                counted.released.extend(dials.examples.pop_front());
            }
            let mut conn = end.conn.clone();
            (conn.opener, conn.closer, conn.group, conn.retransmits) = (None, None, None, None);
            dials.examples.push_back(conn);
            counted.kept = end.conn.process;
            if self.recent.len() == MAX_RECENT {
                self.recent.pop_front();
            }
            let (at_ns, process) = (end.now_ns, end.conn.process);
            self.recent.push_back(RecentFailure { at_ns, process, key, dialled });
        }
        counted
    }

    /// The connect of this process to one address makes its failures at others good.
    fn fall_back(&mut self, end: &DialEnd<'_>) {
        let Self { by_key, recent } = self;
        while recent.front().is_some_and(|one| one.at_ns.saturating_add(FALLBACK_NS) < end.now_ns) {
            recent.pop_front();
        }
        let (remote, process) = (end.conn.remote, end.conn.process);
        recent.retain(|one| {
            let server = one.key.server;
            let made_good = process.is_some()
                && one.process == process
                && server.port == remote.port
                && server.addr != remote.addr;
            if made_good && let Some(dials) = by_key.get_mut(&one.key) {
                dials.make_good(one.dialled);
            }
            !made_good
        });
    }

    fn make_room(&mut self, key: &DialKey, now_ns: u64) -> Vec<Conn> {
        if self.by_key.len() < MAX_KEYS || self.by_key.contains_key(key) {
            return Vec::new();
        }
        let released = self.expire(now_ns);
        if self.by_key.len() < MAX_KEYS {
            return released;
        }
        let oldest = self.by_key.iter().min_by_key(|(_, dials)| dials.last_failed_ns);
        let oldest = oldest.map(|(key, _)| key.clone()).and_then(|key| self.by_key.remove(&key));
        oldest.map_or_else(Vec::new, |dials| dials.examples.into())
    }

    /// Forgets destinations at which no connect failed lately, and returns their examples.
    pub(crate) fn expire(&mut self, now_ns: u64) -> Vec<Conn> {
        let over =
            self.by_key.extract_if(|_, dials| dials.last_failed_ns.saturating_add(FORGET_NS) <= now_ns);
        over.flat_map(|(_, dials)| dials.examples).collect()
    }
}

/// What the caller has to account for.
#[derive(Default)]
pub(crate) struct Counted {
    /// The process of a conn that is kept now.
    pub(crate) kept: Option<ProcessId>,
    pub(crate) released: Vec<Conn>,
}
