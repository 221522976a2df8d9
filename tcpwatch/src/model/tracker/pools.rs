//! What sweeps show of the connections that one process holds to one server: a pool, if it keeps them; and of the requests
//! that wait in a process.
//!
//! TCP shows neither what is checked out of a pool nor who waits for it. It shows when connections are opened beside idle
//! ones, and that all of them are idle while requests wait.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::{
    events::{decode::Endpoint, seen::Seen},
    model::{
        groups::Role,
        table::{Conn, ConnFlags, ConnKey},
        tracker::Tracker,
    },
    tcp::state::TcpState,
};

/// A process: its pid and its start.
pub type ProcessKey = (u32, u64);

/// The connections of one process to one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey {
    pub process: ProcessKey,
    /// Inode of the network namespace.
    pub netns: u32,
    pub remote: Endpoint,
}

/// Fewer connections are no pool.
const MIN_CONNECTIONS: usize = 3;
/// Pools kept at once: those with the most connections.
const MAX_POOLS: usize = 1024;
/// Connections of one pool of which one sweep keeps times, and opens that are held against those.
const MAX_TIMES: usize = 1024;
const MAX_OPENS: usize = 64;
/// Connections of one pool that are named.
const MAX_COOKIES: usize = 64;
/// Pools and processes that one sweep notes.
const MAX_NOTED: usize = 16_384;
/// Looks kept of one pool, and the least time between two.
const MAX_LOOKS: usize = 90;
const BETWEEN_LOOKS_NS: u64 = 5_000_000_000;
/// A connection that has carried nothing for this long would have been taken from a pool that works.
const IDLE_NS: u64 = 5_000_000_000;
/// The same of all connections of a pool that nobody uses.
const UNUSED_NS: u64 = 30_000_000_000;
/// A request that has waited for this long is not about to be answered.
const WAITS_NS: u64 = 10_000_000_000;

/// A pool as one sweep found it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// CLOCK_MONOTONIC when the sweep began.
    pub at_ns: u64,
    /// Connections in ESTABLISHED.
    pub count: u32,
    /// Opened since the look before, and closed.
    pub opened: u32,
    pub closed: u32,
    /// Of those opened while there were two others that were 5 s old at least: when half of those, and two, had carried
    /// nothing for 5 s, and when they had.
    pub beside_idle: u32,
    pub beside_busy: u32,
    /// Have carried nothing for 30 s.
    pub unused: u32,
    /// Had existed at the look before, and have carried something since.
    pub used: u32,
    /// Have sent something, and received nothing since, for 10 s.
    pub waiting: u32,
    /// Connections that clients have to the process.
    pub served: u32,
}

/// The latest looks at a pool.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    looks: VecDeque<Look>,
    /// The most connections of any look.
    pub high_water: u32,
    /// When a look last found one of them used, or their number changed.
    pub moved_ns: u64,
    /// Cookies of a few of its connections.
    pub cookies: Vec<u64>,
}

impl Pool {
    pub fn latest(&self) -> Option<&Look> {
        self.looks.back()
    }

    /// The looks from that time of CLOCK_MONOTONIC on, oldest first.
    pub fn since(&self, from_ns: u64) -> impl Iterator<Item = &Look> {
        self.looks.iter().filter(move |look| look.at_ns >= from_ns)
    }

    fn look(&mut self, look: Look, cookies: Vec<u64>) {
        let changed = self.looks.back().is_some_and(|before| before.count != look.count);
        if look.used > 0 || look.opened > 0 || changed || self.looks.is_empty() {
            self.moved_ns = look.at_ns;
        }
        self.high_water = self.high_water.max(look.count);
        self.cookies = cookies;
        if self.looks.len() == MAX_LOOKS {
            self.looks.pop_front();
        }
        self.looks.push_back(look);
    }
}

/// Requests that wait in a process: clients have sent something and got nothing since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    pub waiting: u32,
    /// CLOCK_MONOTONIC when the oldest of them came.
    pub since_ns: u64,
}

impl Demand {
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { waiting: self.waiting + other.waiting, since_ns: self.since_ns.min(other.since_ns) }
    }
}

/// What the sweep under way notes.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    pools: FxHashMap<PoolKey, Times>,
    served: FxHashMap<ProcessKey, u32>,
    demand: FxHashMap<ProcessKey, Demand>,
}

/// Of the connections of one pool: when each was opened, and when it last carried something.
#[derive(Debug, Default)]
struct Times {
    count: u32,
    times: Vec<(u64, u64)>,
    waiting: u32,
    cookies: Vec<u64>,
}

/// The pools of all processes.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    pools: FxHashMap<PoolKey, Pool>,
    demand: FxHashMap<ProcessKey, Demand>,
}

impl Tracker {
    /// The pools, as sweeps found them.
    pub fn pools(&self) -> impl Iterator<Item = (&PoolKey, &Pool)> {
        self.pools.pools.iter()
    }

    /// The requests that the latest sweep found waiting in a process.
    pub fn demand(&self, process: ProcessKey) -> Option<&Demand> {
        self.pools.demand.get(&process)
    }

    /// Notes when the connection was last used, at the first sighting in a sweep.
    pub(crate) fn note_use(&mut self, key: ConnKey, seen: &Seen) {
        let Some(ticks) = self.ticks else { return };
        let conn = self.table.get(key);
        let Some(process) = conn.process.map(|id| self.processes.get(id)) else { return };
        let process = (process.pid, process.start_ns);
        let time = |jiffies: u32, is: bool| is.then(|| ticks.time_of_past(jiffies).min(seen.time_ns));
        let sent_ns = time(seen.sent_jiffies, seen.data_sent).unwrap_or(0);
        let received_ns = time(seen.data_received_jiffies, seen.traffic.received_bytes > 0).unwrap_or(0);
        let noted = &mut self.sweep.noted;
        match (conn.role, seen.state) {
            (Role::Client, TcpState::Established) => {
                let pool = PoolKey { process, netns: conn.netns, remote: conn.remote };
                noted.note_client(pool, conn, (sent_ns, received_ns), seen.time_ns);
            }
            (Role::Server, TcpState::Established | TcpState::CloseWait) => {
                noted.note_server(process, (sent_ns, received_ns), seen.time_ns);
            }
            _ => {}
        }
    }

    /// At the end of a sweep that began then.
    pub(crate) fn settle_pools(&mut self, noted: Noted, began_ns: u64) {
        let Noted { pools: mut found, served, demand } = noted;
        let Pools { pools, .. } = &mut self.pools;
        pools.retain(|key, _| found.contains_key(key));
        for (key, times) in found.drain() {
            if times.times.len() < MIN_CONNECTIONS && !pools.contains_key(&key) {
                continue;
            }
            let pool = pools.entry(key).or_default();
            let before = pool.latest().copied();
            if before.is_some_and(|before| before.at_ns + BETWEEN_LOOKS_NS > began_ns) {
                continue;
            }
            let since_ns = before.map_or(self.sweep.swept_ns, |before| before.at_ns);
            let served = served.get(&key.process).copied().unwrap_or(0);
            let look = times.look(before.map(|before| before.count), since_ns, began_ns);
            pool.look(Look { served, ..look }, times.cookies);
        }
        if pools.len() > MAX_POOLS {
            let mut sizes: Vec<u32> = pools.values().map(|pool| pool.high_water).collect();
            let (_, least, _) = sizes.select_nth_unstable(pools.len() - MAX_POOLS);
            let least = *least;
            pools.retain(|_, pool| pool.high_water > least);
        }
        self.pools.demand = demand;
    }
}

impl Noted {
    fn note_client(&mut self, key: PoolKey, conn: &Conn, (sent_ns, received_ns): (u64, u64), now_ns: u64) {
        if self.pools.len() >= MAX_NOTED && !self.pools.contains_key(&key) {
            return;
        }
        let pool = self.pools.entry(key).or_default();
        pool.count += 1;
        pool.waiting += u32::from(sent_ns > received_ns && sent_ns + WAITS_NS <= now_ns);
        if pool.times.len() < MAX_TIMES {
            // Of an older one it is not known when it was opened.
            let opened_ns = if conn.is(ConnFlags::OLDER) { 0 } else { conn.opened_ns() };
            pool.times.push((opened_ns, opened_ns.max(sent_ns).max(received_ns)));
        }
        if pool.cookies.len() < MAX_COOKIES {
            pool.cookies.push(conn.cookie);
        }
    }

    fn note_server(&mut self, process: ProcessKey, (sent_ns, received_ns): (u64, u64), now_ns: u64) {
        if self.served.len() >= MAX_NOTED && !self.served.contains_key(&process) {
            return;
        }
        *self.served.entry(process).or_default() += 1;
        if received_ns > sent_ns && received_ns + WAITS_NS <= now_ns {
            let demand = self.demand.entry(process).or_insert(Demand { waiting: 0, since_ns: received_ns });
            demand.waiting += 1;
            demand.since_ns = demand.since_ns.min(received_ns);
        }
    }
}

impl Times {
    /// `before`: the connections of the look before, at `since_ns`.
    fn look(&self, before: Option<u32>, since_ns: u64, now_ns: u64) -> Look {
        let mut opens: Vec<u64> = self
            .times
            .iter()
            .map(|(opened_ns, _)| *opened_ns)
            .filter(|opened_ns| *opened_ns > since_ns)
            .collect();
        opens.sort_unstable();
        let opened = u32::try_from(opens.len()).unwrap_or(u32::MAX);
        let latest = &opens[opens.len().saturating_sub(MAX_OPENS)..];
        let judged: Vec<bool> = latest.iter().filter_map(|opened_ns| self.is_idle_at(*opened_ns)).collect();
        let beside_idle = judged.iter().filter(|is_idle| **is_idle).count();
        // Of more opens than were looked at, as many as of those.
        let of_all = |count: usize| (count * opens.len() / latest.len().max(1)) as u32;
        let count_if = |is: &dyn Fn(u64, u64) -> bool| {
            self.times.iter().filter(|(opened_ns, used_ns)| is(*opened_ns, *used_ns)).count() as u32
        };
        Look {
            at_ns: now_ns,
            count: self.count,
            opened,
            closed: before.map_or(0, |before| (before + opened).saturating_sub(self.count)),
            beside_idle: of_all(beside_idle),
            beside_busy: of_all(judged.len() - beside_idle),
            unused: count_if(&|_, used_ns| used_ns + UNUSED_NS <= now_ns),
            used: count_if(&|opened_ns, used_ns| opened_ns <= since_ns && used_ns > since_ns),
            waiting: self.waiting,
            served: 0,
        }
    }

    /// Whether enough of the connections that could be idle at that time were; `None` where there were no two. What was
    /// used since may have been idle.
    fn is_idle_at(&self, then_ns: u64) -> Option<bool> {
        let others = self.times.iter().filter(|(opened_ns, _)| opened_ns + IDLE_NS <= then_ns);
        let idle = others.clone().filter(|(_, used_ns)| used_ns + IDLE_NS <= then_ns).count();
        let count = others.count();
        (count >= 2).then_some(idle >= 2 && 2 * idle >= count)
    }
}
