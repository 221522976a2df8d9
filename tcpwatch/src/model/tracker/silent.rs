//! Connections on which nothing has come for hours, as the latest sweep found them, and those that turned out to be dead when
//! they were used after a pause.

use std::collections::VecDeque;

use crate::{
    events::{
        decode::{Kind, Traffic},
        seen::Seen,
    },
    model::{
        groups::{Peer, Role},
        processes::Process,
        table::{Conn, ConnKey},
        tracker::Tracker,
    },
    tcp::{reset_reason::ResetReason, socket_options::SocketOptions, stall::Recovery, state::TcpState},
};

/// Nothing was sent or received for this long, not even an answer to a keep-alive probe: net.ipv4.tcp_keepalive_time by
/// default (TCP_KEEPALIVE_TIME in include/net/tcp.h).
pub const SILENT_NS: u64 = 7_200_000_000_000;
/// Silent connections that are kept of one sweep.
const MAX_SILENT: usize = 10_000;
/// Broken connections that are kept, and for how long.
const MAX_BROKEN: usize = 1000;
const KEPT_NS: u64 = 3_600_000_000_000;
/// A pause of this length or more is one that middleboxes may not survive.
const PAUSE_NS: u64 = 60_000_000_000;
/// A reset that answers what was just sent comes within this time.
const ANSWER_NS: u64 = 1_000_000_000;
/// Time-outs without an answer after which the path counts as dead.
const TIMEOUTS: u64 = 3;

/// A connection that is silent in both directions.
#[derive(Clone, Copy, Debug)]
pub struct Silent {
    pub cookie: u64,
    /// CLOCK_MONOTONIC when something was last sent or received.
    pub active_ns: u64,
    /// SO_KEEPALIVE is on, and the first probe comes after this many seconds.
    pub keepalive_seconds: Option<u64>,
}

/// A connection that was used after a pause, in vain.
#[derive(Clone, Debug)]
pub struct Broken {
    /// CLOCK_MONOTONIC when it ended or was closed, or was found to hang.
    pub at_ns: u64,
    pub id: u64,
    pub process: Option<Process>,
    pub netns: u32,
    pub role: Role,
    pub peer: Peer,
    /// How long the pause had been.
    pub pause_ns: u64,
    /// It was answered by a reset; else by nothing.
    pub was_reset: bool,
}

#[derive(Debug, Default)]
pub(crate) struct SilentConns {
    /// Of the latest sweep that has ended, and of the one under way.
    latest: Vec<Silent>,
    under_way: Vec<Silent>,
    broken: VecDeque<Broken>,
}

impl SilentConns {
    pub(crate) fn end_sweep(&mut self) {
        self.latest = std::mem::take(&mut self.under_way);
    }

    pub(crate) fn begin_sweep(&mut self) {
        self.under_way.clear();
    }
}

impl Tracker {
    /// Connections that the latest sweep found silent for [`SILENT_NS`], at most some thousands.
    pub fn silent(&self) -> &[Silent] {
        &self.silent.latest
    }

    /// Connections that were used after a pause in vain, in the last hour, oldest first.
    pub fn broken(&self) -> impl DoubleEndedIterator<Item = &Broken> {
        self.silent.broken.iter()
    }

    /// By the first process that the sweep finds to hold it.
    pub(crate) fn note_silent(&mut self, key: ConnKey, seen: &Seen) {
        let Some(ticks) = self.ticks.filter(|_| seen.state == TcpState::Established) else { return };
        let conn = self.table.get(key);
        let time =
            |jiffies: u32| if jiffies == 0 { 0 } else { ticks.time_of_past(jiffies).min(seen.time_ns) };
        let received_ns = time(seen.data_received_jiffies).max(conn.opened_ns());
        if let Some(pause_ns) = hangs(conn, received_ns).filter(|_| answers(seen.traffic)) {
            self.keep_broken(key, seen.time_ns, pause_ns, false);
            return;
        }
        let active_ns = time(seen.sent_jiffies).max(time(seen.received_jiffies)).max(conn.opened_ns());
        if active_ns + SILENT_NS > seen.time_ns || self.silent.under_way.len() >= MAX_SILENT {
            return;
        }
        let keepalive = SocketOptions::new(&seen.options, self.tick_rate).keepalive;
        let keepalive_seconds = keepalive.on.then_some(keepalive.idle_seconds);
        self.silent.under_way.push(Silent { cookie: conn.cookie, active_ns, keepalive_seconds });
    }

    /// An ESTABLISHED connection ends, or this side closes it.
    pub(crate) fn note_broken(&mut self, key: ConnKey, now_ns: u64) {
        if let Some((pause_ns, was_reset)) = broken(self.table.get(key), now_ns) {
            self.keep_broken(key, now_ns, pause_ns, was_reset);
        }
    }

    /// Keeps it, once.
    fn keep_broken(&mut self, key: ConnKey, now_ns: u64, pause_ns: u64, was_reset: bool) {
        let conn = self.table.get(key);
        if self.silent.broken.iter().any(|one| one.id == conn.id()) {
            return;
        }
        let process = conn.process.map(|id| self.processes.get(id).clone());
        let Conn { netns, role, .. } = *conn;
        let broken = Broken {
            at_ns: now_ns,
            id: conn.id(),
            process,
            netns,
            role,
            peer: conn.peer(),
            pause_ns,
            was_reset,
        };
        let kept = &mut self.silent.broken;
        while kept.len() >= MAX_BROKEN || kept.front().is_some_and(|one| one.at_ns + KEPT_NS < now_ns) {
            kept.pop_front();
        }
        kept.push_back(broken);
    }
}

/// The pause before it was used in vain, and whether a reset answered; `None` of all others.
fn broken(conn: &Conn, now_ns: u64) -> Option<(u64, bool)> {
    let idle = conn.idle()?;
    if idle.receiving_ns < PAUSE_NS || !answers(conn.traffic()?) {
        return None;
    }
    if conn.reset().is_some_and(|reset| reset.reason == ResetReason::Established) {
        return (idle.sending_ns < ANSWER_NS).then_some((idle.receiving_ns - idle.sending_ns, true));
    }
    hangs(conn, now_ns.saturating_sub(idle.receiving_ns)).map(|pause_ns| (pause_ns, false))
}

/// The pause before what was sent last, to which nothing answers; `None` where that is not so, or the pause was short.
/// `received_ns`: when data was last received.
fn hangs(conn: &Conn, received_ns: u64) -> Option<u64> {
    let tally = conn.retransmits.as_ref()?;
    let stalled = tally.stalled.filter(|stalled| stalled.recovery == Recovery::Timeout)?;
    let pause_ns = stalled.since_ns.checked_sub(received_ns)?;
    let timeouts = tally.counted.segments[Kind::Timeout as usize];
    (timeouts >= TIMEOUTS && pause_ns >= PAUSE_NS).then_some(pause_ns)
}

/// Who only sends has never heard anything, and that nothing comes says nothing.
fn answers(traffic: Traffic) -> bool {
    traffic.received_bytes.saturating_mul(100) >= traffic.sent_bytes
}
