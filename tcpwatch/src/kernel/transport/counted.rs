//! The counts of retransmits and stalls that the programs keep, read for changes that no record has reported yet.
//!
//! A program reports the first change of a socket at once, and later ones at most once a second. In between, and for a
//! while after, its counts are read here: one system call for each socket that changed in the last two seconds.

use aya::maps::{HashMap, MapData};
use rustc_hash::FxHashMap;
use tcpwatch_common::{KIND_RETRANSMIT, RetransmitEvent, state::LISTEN};

/// A socket's counts (`Counted` in the BPF crate): first the record as a program would emit it, last the time of the
/// change in progress. What lies between is the programs' own.
type Entry = [u64; EVENT_WORDS + PRIVATE_WORDS + 1];
const EVENT_WORDS: usize = size_of::<RetransmitEvent>() / 8;
const PRIVATE_WORDS: usize = 7;

/// Longer than the programs hold records back.
const BUSY_NS: u64 = 2_000_000_000;

pub struct CountedRetransmits {
    counted: HashMap<MapData, u64, Entry>,
    /// Sockets that changed lately, by cookie.
    busy: FxHashMap<u64, Busy>,
}

#[derive(PartialEq, Eq)]
struct Busy {
    /// Time of the last change.
    time_ns: u64,
    /// Segments at that time: two processors may change a listener's counts at once.
    segments: u64,
}

impl CountedRetransmits {
    pub(crate) fn new(counted: HashMap<MapData, u64, Entry>) -> Self {
        Self { counted, busy: FxHashMap::default() }
    }

    /// Notes the socket of a record from the ring, if it reports a retransmit.
    pub fn note(&mut self, record: &[u8]) {
        if record.first() == Some(&KIND_RETRANSMIT)
            && let Ok(event) = bytemuck::try_pod_read_unaligned::<RetransmitEvent>(record)
        {
            let reported = Busy { time_ns: event.socket.time_ns, segments: segments(&event) };
            self.busy.insert(event.socket.cookie, reported);
        }
    }

    /// Emits a record for each socket that changed since its last record, dated `until_ns` at the latest.
    pub fn look(&mut self, until_ns: u64, mut emit: impl FnMut(&[u8])) {
        let counted = &self.counted;
        self.busy.retain(|cookie, busy| {
            // Removed with its socket, after its last record, or evicted for another.
            let Ok(entry) = counted.get(cookie, 0) else { return false };
            let Ok(mut event) = bytemuck::try_pod_read_unaligned::<RetransmitEvent>(bytemuck::cast_slice(
                &entry[..EVENT_WORDS],
            )) else {
                return false;
            };
            // Changed while it was copied. Several processors change a listener's counts at once: there each number is
            // right by itself.
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
            emit(bytemuck::bytes_of(&event));
            true
        });
    }
}

fn segments(event: &RetransmitEvent) -> u64 {
    event.segments.iter().sum()
}
