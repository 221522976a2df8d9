//! Connections that Nagle's algorithm may hold back: sweeps find them, and then they are looked at by themselves, again and
//! again, until it is clear.
//!
//! Nagle's algorithm (RFC 896) lets a segment that is not full wait until everything before it is acknowledged.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use tcpwatch_common::{OPTION_CORK, OPTION_NODELAY};

use crate::{
    events::{frame::SenderLook, seen::Seen},
    model::tracker::Tracker,
    tcp::state::TcpState,
};

/// Connections that are looked at at once: a system call each, every few seconds.
const MAX_SUSPECTS: usize = 64;
/// For how long looks are kept.
const KEPT_NS: u64 = 60_000_000_000;
/// A connection that was not found held back in that many looks in a row is looked at no more.
const MISSES: u32 = 5;
/// More waits only where the segment is full, or the window is.
const MOST_BYTES: u32 = 65_536;

/// By the cookies of the sockets.
pub type Suspects = FxHashMap<u64, Suspect>;

/// The looks at one connection in the last minute, the earliest first.
#[derive(Clone, Debug, Default)]
pub struct Suspect {
    pub looks: VecDeque<SenderLook>,
    misses: u32,
}

/// Whether less than a segment waits though the peer has room, behind one that is not acknowledged.
pub fn is_held_back(look: &SenderLook) -> bool {
    let small = look.unsent_bytes > 0 && look.unsent_bytes < look.mss_bytes;
    small && look.unacknowledged_segments == 1 && look.peer_window_bytes >= look.unsent_bytes
}

impl Tracker {
    /// Connections that Nagle's algorithm may hold back, and what looks at them showed.
    pub fn suspects(&self) -> &Suspects {
        &self.suspects
    }

    /// Notes what a sighting through a descriptor shows of its sender.
    pub(crate) fn suspect(&mut self, seen: &Seen) {
        let cookie = seen.socket.cookie;
        if seen.options.flags & (OPTION_NODELAY | OPTION_CORK) != 0 || seen.state != TcpState::Established {
            self.suspects.remove(&cookie);
            return;
        }
        let waits = seen.unsent > 0 && seen.unsent < MOST_BYTES && seen.unacknowledged == 1;
        if waits && self.suspects.len() < MAX_SUSPECTS {
            self.suspects.entry(cookie).or_default();
        }
    }

    /// Notes a look at one of them; `None`: the connection is gone.
    pub fn note_look(&mut self, cookie: u64, look: Option<&SenderLook>) {
        let Some(look) = look else {
            self.suspects.remove(&cookie);
            return;
        };
        let Some(suspect) = self.suspects.get_mut(&cookie) else { return };
        suspect.misses = if is_held_back(look) { 0 } else { suspect.misses + 1 };
        if suspect.misses >= MISSES {
            self.suspects.remove(&cookie);
            return;
        }
        suspect.looks.push_back(*look);
        while suspect.looks.front().is_some_and(|first| first.time_ns.saturating_add(KEPT_NS) < look.time_ns)
        {
            suspect.looks.pop_front();
        }
    }

    /// Its socket ended.
    pub(crate) fn end_suspect(&mut self, cookie: u64) {
        self.suspects.remove(&cookie);
    }
}
