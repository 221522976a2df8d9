//! The counts of retransmits and stalls that the programs keep, looked into for what they have not told yet.
//!
//! A program tells of a socket's at once, and then once a second (`TELL_NS` in tcpwatch-ebpf/src/counted.rs). In between,
//! and for a while after, its counts are read here, one system call for each socket of which something changed in the
//! last two seconds.

use aya::maps::{HashMap, MapData};
use rustc_hash::FxHashMap;
use tcpwatch_common::{KIND_RETRANSMIT, RetransmitEvent, state::LISTEN};

/// A count of the programs (`Counted` in tcpwatch-ebpf/src/counted.rs): the record as it would be told first, and last of
/// when the change under way is. What is between is theirs.
type Entry = [u64; EVENT_WORDS + PRIVATE_WORDS + 1];
const EVENT_WORDS: usize = size_of::<RetransmitEvent>() / 8;
const PRIVATE_WORDS: usize = 7;

/// Longer than the programs hold back.
const BUSY_NS: u64 = 2_000_000_000;

pub struct CountedRetransmits {
    counted: HashMap<MapData, u64, Entry>,
    /// Sockets of which something changed lately, by cookie.
    busy: FxHashMap<u64, Busy>,
}

#[derive(PartialEq, Eq)]
struct Busy {
    /// Of the last change.
    time_ns: u64,
    /// Segments then: two processors may change a listener's at one time.
    segments: u64,
}

impl CountedRetransmits {
    pub(crate) fn new(counted: HashMap<MapData, u64, Entry>) -> Self {
        Self { counted, busy: FxHashMap::default() }
    }

    /// Notes which socket a record of the ring tells of, if it is one of a retransmit.
    pub fn note(&mut self, record: &[u8]) {
        if record.first() == Some(&KIND_RETRANSMIT)
            && let Ok(event) = bytemuck::try_pod_read_unaligned::<RetransmitEvent>(record)
        {
            let told = Busy { time_ns: event.socket.time_ns, segments: segments(&event) };
            self.busy.insert(event.socket.cookie, told);
        }
    }

    /// Hands out a record for each socket that changed since it was last told of, as of `until_ns` at the latest.
    pub fn look(&mut self, until_ns: u64, mut tell: impl FnMut(&[u8])) {
        let counted = &self.counted;
        self.busy.retain(|cookie, busy| {
            // Gone with its socket, after the last word on it, or given up for others.
            let Ok(entry) = counted.get(cookie, 0) else { return false };
            let Ok(mut event) = bytemuck::try_pod_read_unaligned::<RetransmitEvent>(bytemuck::cast_slice(
                &entry[..EVENT_WORDS],
            )) else {
                return false;
            };
            // Changed while it was copied. Of a listener, which several processors change at once, each number is right
            // by itself.
            if event.socket.time_ns != entry[EVENT_WORDS + PRIVATE_WORDS] && event.socket.new_state != LISTEN
            {
                return true;
            }
            let now = Busy { time_ns: event.socket.time_ns, segments: segments(&event) };
            if now == *busy {
                return busy.time_ns.saturating_add(BUSY_NS) > until_ns;
            }
            *busy = now;
            event.socket.time_ns = event.socket.time_ns.min(until_ns);
            tell(bytemuck::bytes_of(&event));
            true
        });
    }
}

fn segments(event: &RetransmitEvent) -> u64 {
    event.segments.iter().sum()
}
