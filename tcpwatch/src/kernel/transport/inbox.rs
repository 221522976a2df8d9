//! Merges the records of several queues in the order of their times.
//!
//! Each processor has a queue of its own, and the ring is one more. Two records about one socket are written one after
//! the other, in whichever queues. So a reader that reads all queues after a moment has every record from before that
//! moment. Newer records wait for the next round.

use std::ops::Range;

use tcpwatch_common::{
    IdleEvent, InterfaceEvent, KIND_IDLE, KIND_INTERFACE, KIND_TASK, KIND_TRAFFIC, QueueSlot, TaskEvent,
    TrafficEvent,
};

/// Queues of state changes, each in the order of its times.
pub trait Queued {
    fn count(&self) -> usize;

    /// The time of the queue's next record.
    fn next_time(&self, queue: usize) -> Option<u64>;

    /// Passes the next record, in place, and removes it. Called only where there is one.
    fn take(&mut self, queue: usize, each: impl FnOnce(&QueueSlot));
}

/// A record of the ring: its place among the bytes of all.
#[derive(Clone, Copy)]
struct Raw {
    time_ns: u64,
    kind: u8,
    at: u32,
    len: u32,
}

impl Raw {
    fn range(&self) -> Range<usize> {
        self.at as usize..(self.at + self.len) as usize
    }
}

/// Records of the ring that were not yet taken.
#[derive(Default)]
pub struct Inbox {
    records: Vec<Raw>,
    bytes: Vec<u8>,
}

/// The source of the next record.
#[derive(Clone, Copy)]
enum From {
    Ring,
    Queue(usize),
}

impl Inbox {
    /// Adds a record of the ring. Every record has its time at byte 8; a shorter one is malformed, and comes first.
    pub fn push(&mut self, record: &[u8]) {
        let time = record.get(8..16).and_then(|bytes| bytes.try_into().ok());
        self.records.push(Raw {
            time_ns: time.map_or(0, u64::from_ne_bytes),
            kind: record.first().copied().unwrap_or(0),
            at: self.bytes.len() as u32,
            len: record.len() as u32,
        });
        self.bytes.extend_from_slice(record);
    }

    /// Takes the records up to `until_ns`, in order. Of equal times the ring's come first, and among those a process
    /// before the records that name it.
    pub fn take(&mut self, queues: &mut impl Queued, until_ns: u64, mut each: impl FnMut(&[u8])) {
        self.records.sort_by_key(|record| (record.time_ns, record.kind != KIND_TASK));
        let mut taken = 0;
        while let Some((from, until)) = self.next(queues, taken, until_ns) {
            match from {
                From::Ring => {
                    each(&self.bytes[self.records[taken].range()]);
                    taken += 1;
                }
                // As long as no other queue has an older one.
                From::Queue(queue) => loop {
                    queues.take(queue, |slot| each(record(bytemuck::bytes_of(slot))));
                    if queues.next_time(queue).is_none_or(|time| time >= until) {
                        break;
                    }
                },
            }
        }
        self.keep_from(taken);
    }

    fn keep_from(&mut self, taken: usize) {
        if taken == self.records.len() {
            self.records.clear();
            self.bytes.clear();
            return;
        }
        let left = self.records.split_off(taken);
        let bytes = std::mem::take(&mut self.bytes);
        self.records.clear();
        for record in left {
            self.push(&bytes[record.range()]);
        }
    }

    /// The source of the oldest record, and the time of the oldest record of the others.
    fn next(&self, queues: &impl Queued, taken: usize, until_ns: u64) -> Option<(From, u64)> {
        let after = until_ns.saturating_add(1);
        let (mut first, mut second) = ((after, None), after);
        let ring = self.records.get(taken).map(|record| (record.time_ns, From::Ring));
        let queues = (0..queues.count()).filter_map(|at| Some((queues.next_time(at)?, From::Queue(at))));
        for (time, from) in ring.into_iter().chain(queues) {
            if time < first.0 {
                second = first.0;
                first = (time, Some(from));
            } else {
                second = second.min(time);
            }
        }
        first.1.map(|from| (from, second))
    }
}

/// The record in a slot, without the rest.
fn record(slot: &[u8]) -> &[u8] {
    match slot[0] {
        KIND_TASK => &slot[..size_of::<TaskEvent>()],
        KIND_IDLE => &slot[..size_of::<IdleEvent>()],
        KIND_INTERFACE => &slot[..size_of::<InterfaceEvent>()],
        KIND_TRAFFIC => &slot[..size_of::<TrafficEvent>()],
        _ => slot,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bytemuck::Zeroable as _;
    use tcpwatch_common::{KIND_ACCEPT, KIND_TRANSITION, SocketEvent};

    use super::*;

    impl Queued for Vec<VecDeque<SocketEvent>> {
        fn count(&self) -> usize {
            self.len()
        }

        fn next_time(&self, queue: usize) -> Option<u64> {
            self[queue].front().map(|event| event.time_ns)
        }

        fn take(&mut self, queue: usize, each: impl FnOnce(&QueueSlot)) {
            each(&bytemuck::cast(self[queue].pop_front().unwrap()));
        }
    }

    fn event(kind: u8, (time_ns, cookie): (u64, u64)) -> SocketEvent {
        SocketEvent { kind, time_ns, cookie, ..SocketEvent::zeroed() }
    }

    fn queue(events: &[(u64, u64)]) -> VecDeque<SocketEvent> {
        events.iter().map(|one| event(KIND_TRANSITION, *one)).collect()
    }

    /// The number at byte 16 of each: a cookie, or the start of a process.
    fn taken(inbox: &mut Inbox, queues: &mut impl Queued, until_ns: u64) -> Vec<u64> {
        let mut taken = Vec::new();
        inbox.take(queues, until_ns, |record| {
            taken.push(u64::from_ne_bytes(record[16..24].try_into().unwrap()));
        });
        taken
    }

    #[test]
    fn records_come_in_the_order_of_their_times_and_what_is_newer_waits() {
        let mut inbox = Inbox::default();
        for one in [(9, 2), (4, 3)] {
            inbox.push(bytemuck::bytes_of(&event(KIND_ACCEPT, one)));
        }
        let mut queues =
            vec![queue(&[(1, 10), (2, 11), (5, 12), (11, 13)]), queue(&[(3, 20), (9, 21)]), queue(&[])];
        assert_eq!(taken(&mut inbox, &mut queues, 9), [10, 11, 20, 3, 12, 2, 21]);
        assert_eq!(taken(&mut inbox, &mut queues, 10), [] as [u64; 0]);
        queues[2] = queue(&[(10, 30)]);
        assert_eq!(taken(&mut inbox, &mut queues, 11), [30, 13], "late, and still in its place");
    }

    #[test]
    fn a_process_comes_before_the_records_that_name_it() {
        let mut inbox = Inbox::default();
        inbox.push(bytemuck::bytes_of(&event(KIND_ACCEPT, (5, 1))));
        let task = TaskEvent { kind: KIND_TASK, time_ns: 5, start_ns: 7, ..TaskEvent::zeroed() };
        inbox.push(bytemuck::bytes_of(&task));
        assert_eq!(taken(&mut inbox, &mut vec![queue(&[(4, 20), (5, 21)])], 5), [20, 7, 1, 21]);
    }

    #[test]
    fn malformed_records_are_passed_on() {
        let mut inbox = Inbox::default();
        inbox.push(&[1, 2, 3]);
        inbox.push(&[0; 200]);
        let mut lengths = Vec::new();
        inbox.take(&mut Vec::new(), u64::MAX, |record| lengths.push(record.len()));
        assert_eq!(lengths, [3, 200]);
    }
}
