//! Ends by a reset that rules still ask for when thousands of other connections have ended since: those whose peer had
//! closed them, or that got data after they were closed here; and those that the application aborted.
//!
//! Bounded: of each kind the latest are kept, for a quarter of an hour.

use std::{collections::VecDeque, sync::Arc};

use rustc_hash::FxHashMap;

use crate::{
    model::{
        groups::{Peer, Role},
        table::{Conn, ConnFlags, ConnKey},
        tracker::Tracker,
    },
    tcp::reset_reason::ResetReason,
};

const MAX_MET: usize = 1024;
const MAX_ABORTED: usize = 4096;
const MAX_CLOSING: usize = 1024;
const SPAN_NS: u64 = 10_000_000_000;
/// Six minutes' worth is more than any rule looks at.
const MAX_SPANS: usize = 36;
const KEPT_NS: u64 = 900_000_000_000;
/// For how long it is noted that a client dials its server again.
const AGAIN_NS: u64 = 1_000_000_000;
/// Within this time two ends of one socket are one, made more precise.
const SAME_NS: u64 = 1_000_000_000;

/// A connection that a reset ended.
#[derive(Clone, Debug)]
pub struct KeptEnd {
    /// Without its opener and closer.
    pub conn: Conn,
    /// CLOCK_MONOTONIC.
    pub ended_ns: u64,
    /// CLOCK_MONOTONIC when its process dialled the same server next, if that was within a second.
    pub dialled_ns: Option<u64>,
}

/// The kept ends.
#[derive(Debug, Default)]
pub struct KeptEnds {
    met_close: VecDeque<KeptEnd>,
    aborted: VecDeque<KeptEnd>,
    /// All closes, by spans of ten seconds, of those that aborted a connection lately.
    closes: FxHashMap<Closing, VecDeque<(u64, u64)>>,
}

/// Whose closes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Closing {
    netns: u32,
    process: Option<Arc<str>>,
    role: Role,
    peer: Peer,
}

impl KeptEnds {
    /// Connections on which data met a close, oldest first: of the side that sent it, or of the side that had closed.
    pub fn met_close(&self) -> &VecDeque<KeptEnd> {
        &self.met_close
    }

    /// Connections that the application aborted, oldest first.
    pub fn aborted(&self) -> &VecDeque<KeptEnd> {
        &self.aborted
    }

    /// A client begins to connect.
    pub(crate) fn note_connect(&mut self, conn: &Conn, now_ns: u64) {
        let recent = self.met_close.iter_mut().rev();
        let recent = recent.take_while(|end| end.ended_ns.saturating_add(AGAIN_NS) >= now_ns);
        for end in recent.filter(|end| end.dialled_ns.is_none()) {
            let other = &end.conn;
            let same = (other.process, other.netns, other.role, other.remote)
                == (conn.process, conn.netns, conn.role, conn.remote);
            if same {
                end.dialled_ns = Some(now_ns);
                return;
            }
        }
    }

    fn count_close(&mut self, key: Closing, now_ns: u64) {
        if !self.closes.contains_key(&key) && self.closes.len() >= MAX_CLOSING {
            let last = |spans: &VecDeque<(u64, u64)>| spans.back().map(|(began_ns, _)| *began_ns);
            let oldest = self.closes.iter().min_by_key(|(_, spans)| last(spans)).map(|(key, _)| key.clone());
            oldest.map(|key| self.closes.remove(&key));
        }
        let spans = self.closes.entry(key).or_default();
        match spans.back_mut() {
            Some((began_ns, count)) if began_ns.saturating_add(SPAN_NS) > now_ns => *count += 1,
            _ => spans.push_back((now_ns, 1)),
        }
        if spans.len() > MAX_SPANS {
            spans.pop_front();
        }
    }

    fn ring_of(&mut self, reason: ResetReason) -> Option<(&mut VecDeque<KeptEnd>, usize)> {
        match reason {
            ResetReason::PeerClosed | ResetReason::DataAfterClose => Some((&mut self.met_close, MAX_MET)),
            reason if reason.is_abort() => Some((&mut self.aborted, MAX_ABORTED)),
            _ => None,
        }
    }
}

impl Tracker {
    /// How many connections of the same process, role and peer were closed since then, as far as was counted since one of
    /// them was aborted; to ten seconds.
    pub fn closes_since(&self, like: &Conn, then_ns: u64) -> usize {
        let spans = self.kept_ends.closes.get(&self.closing(like)).map(VecDeque::iter).unwrap_or_default();
        let recent = spans.rev().take_while(|(began_ns, _)| began_ns.saturating_add(SPAN_NS) > then_ns);
        recent.map(|(_, count)| *count as usize).sum()
    }

    fn closing(&self, conn: &Conn) -> Closing {
        let process = conn.process.map(|id| self.processes.get(id).comm.clone());
        Closing { netns: conn.netns, process, role: conn.role, peer: conn.peer() }
    }

    /// A connection was closed, however that was.
    pub(crate) fn note_close(&mut self, key: ConnKey, now_ns: u64) {
        if self.kept_ends.closes.is_empty() {
            return;
        }
        let closing = self.closing(self.table.get(key));
        if self.kept_ends.closes.contains_key(&closing) {
            self.kept_ends.count_close(closing, now_ns);
        }
    }

    /// Drops ends that no rule asks for any more.
    pub(crate) fn expire_kept_ends(&mut self, now_ns: u64) {
        let is_old = |end: &KeptEnd| end.ended_ns.saturating_add(KEPT_NS) <= now_ns;
        let KeptEnds { met_close, aborted, .. } = &mut self.kept_ends;
        let mut old = Vec::new();
        for ring in [met_close, aborted] {
            while ring.front().is_some_and(is_old) {
                old.extend(ring.pop_front());
            }
        }
        for end in old {
            self.forget(&end.conn);
        }
    }

    /// Keeps the end of a connection, if a reset of these kinds ended it. An end that is kept already is replaced.
    pub(crate) fn keep_end(&mut self, conn: &Conn, ended_ns: u64) {
        let Some(reset) = conn.reset().filter(|_| conn.is(ConnFlags::ESTABLISHED)) else { return };
        if conn.role == Role::Unknown {
            return;
        }
        if reset.reason.is_abort() {
            let closing = self.closing(conn);
            // Its own close was not counted.
            if !self.kept_ends.closes.contains_key(&closing) {
                self.kept_ends.count_close(closing, ended_ns);
            }
        }
        let Some((ring, limit)) = self.kept_ends.ring_of(reset.reason) else { return };
        let mut recent = ring.iter().rev().take_while(|end| end.ended_ns.saturating_add(SAME_NS) >= ended_ns);
        let behind = recent.position(|end| end.conn.cookie == conn.cookie);
        let old = match behind {
            Some(behind) => ring.remove(ring.len() - 1 - behind),
            None if ring.len() >= limit => ring.pop_front(),
            None => None,
        };
        let mut conn = conn.clone();
        (conn.opener, conn.closer, conn.group, conn.retransmits) = (None, None, None, None);
        let (process, dialled_ns) = (conn.process, None);
        ring.push_back(KeptEnd { conn, ended_ns, dialled_ns });
        if let Some(id) = process {
            self.processes.add_user(id);
        }
        if let Some(old) = old {
            self.forget(&old.conn);
        }
    }
}
