//! Ends by a reset that rules still ask for when thousands of other connections have ended since: those whose peer had
//! closed them, or that got data after they were closed here; and those that the application aborted.
//!
//! Bounded: of each kind the latest are kept, for a quarter of an hour.

use std::collections::VecDeque;

use crate::{
    model::{
        groups::Role,
        table::{Conn, ConnFlags},
        tracker::Tracker,
    },
    tcp::reset_reason::ResetReason,
};

const MAX_MET: usize = 1024;
const MAX_ABORTED: usize = 4096;
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

    fn ring_of(&mut self, reason: ResetReason) -> Option<(&mut VecDeque<KeptEnd>, usize)> {
        match reason {
            ResetReason::PeerClosed | ResetReason::DataAfterClose => Some((&mut self.met_close, MAX_MET)),
            ResetReason::UnreadData | ResetReason::ZeroLinger | ResetReason::Disconnect => {
                Some((&mut self.aborted, MAX_ABORTED))
            }
            _ => None,
        }
    }
}

impl Tracker {
    /// Drops ends that no rule asks for any more.
    pub(crate) fn expire_kept_ends(&mut self, now_ns: u64) {
        let is_old = |end: &KeptEnd| end.ended_ns.saturating_add(KEPT_NS) < now_ns;
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
        let Some((ring, limit)) = self.kept_ends.ring_of(reset.reason) else { return };
        if conn.role == Role::Unknown {
            return;
        }
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
