//! What was retransmitted on one socket and how its delivery stood still, and what is new of it each time that the kernel
//! tells.
//!
//! The programs count segments by kind, the socket itself counts segments and bytes. Both grow only, are told again and
//! again, and may be told late or out of order; each segment counts once. The socket's own count decides how many there
//! are: it has also those that no program saw.

use crate::{
    events::decode::{FAILURES, Kind, Retransmits},
    tcp::{
        histogram::grown,
        stall::{Stalled, Stalls},
    },
};

/// Of one socket, or summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retransmitted {
    /// Segments, by [`Kind`].
    pub segments: [u64; Kind::COUNT],
    pub bytes: u64,
    /// Segments that the peer said it had twice: they need not have been sent again.
    pub spurious: u64,
}

impl Retransmitted {
    pub fn total(&self) -> u64 {
        self.segments.iter().sum()
    }

    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.segments.iter_mut().zip(other.segments) {
            *mine += theirs;
        }
        self.bytes += other.bytes;
        self.spurious += other.spurious;
    }

    /// So many segments of a kind that is not known.
    pub fn unknown(segments: u64) -> Self {
        let mut unknown = Self::default();
        unknown.segments[Kind::Unknown as usize] = segments;
        unknown
    }
}

/// What the programs counted since they last told.
#[derive(Clone, Debug, Default)]
pub struct RetransmitDelta {
    /// Segments by kind, as far as the programs saw them.
    pub segments: [u64; Kind::COUNT],
    pub failures: [u64; FAILURES.len()],
    pub stalls: Stalls,
}

impl RetransmitDelta {
    pub fn is_only_segments(&self) -> bool {
        self.failures.iter().all(|count| *count == 0) && self.stalls == Stalls::default()
    }
}

#[derive(Clone, Debug, Default)]
pub struct SocketRetransmits {
    /// Everything counted so far.
    pub counted: Retransmitted,
    pub failures: [u64; FAILURES.len()],
    pub stalls: Stalls,
    /// Now.
    pub stalled: Option<Stalled>,
    /// What the programs told last.
    told: Retransmits,
    bytes: Option<u64>,
    duplicates: Option<u32>,
}

impl SocketRetransmits {
    pub fn news(&mut self, told: &Retransmits) -> RetransmitDelta {
        // The programs lost their count and began another, or had none.
        if told.since_ns > self.told.since_ns {
            self.told = Retransmits { since_ns: told.since_ns, ..Retransmits::default() };
        } else if told.since_ns < self.told.since_ns {
            return RetransmitDelta::default();
        }
        let mut stalls = Stalls::default();
        for ((new, known), told) in stalls.iter_mut().zip(&mut self.told.stalls).zip(&told.stalls) {
            *new = known.news(told);
        }
        for (mine, new) in self.stalls.iter_mut().zip(&stalls) {
            mine.add(new);
        }
        let failures = grown(&mut self.told.failures, told.failures);
        for (mine, new) in self.failures.iter_mut().zip(failures) {
            *mine += new;
        }
        self.stalled = told.stalled;
        RetransmitDelta { segments: grown(&mut self.told.segments, told.segments), failures, stalls }
    }

    /// Counts what is new: `segments` by kind, but no more than `limit`, and up to there of an unknown kind. Returns it.
    /// `older`: the socket may have retransmitted before it was first seen.
    pub fn count(
        &mut self,
        told: &Retransmits,
        segments: [u64; Kind::COUNT],
        limit: u64,
        older: bool,
    ) -> Retransmitted {
        let mut new = Retransmitted::default();
        let mut left = limit;
        for (new, told) in new.segments.iter_mut().zip(segments) {
            *new = told.min(left);
            left -= *new;
        }
        new.segments[Kind::Unknown as usize] += left;
        let bytes = self.bytes.get_or_insert(if older { told.bytes_before } else { 0 });
        new.bytes = told.bytes.saturating_sub(*bytes);
        *bytes = told.bytes.max(*bytes);
        let duplicates = self.duplicates.get_or_insert(if older { told.duplicates } else { 0 });
        new.spurious = told.duplicates.saturating_sub(*duplicates).into();
        *duplicates = told.duplicates.max(*duplicates);
        self.counted.add(&new);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(since_ns: u64, fast: u64, bytes: u64) -> Retransmits {
        let mut told = Retransmits { since_ns, bytes, bytes_before: 500, ..Retransmits::default() };
        told.segments[Kind::Fast as usize] = fast;
        told
    }

    /// Segments of a known and of an unknown kind, and bytes.
    fn count(tally: &mut SocketRetransmits, told: &Retransmits, limit: u64, older: bool) -> (u64, u64, u64) {
        let segments = tally.news(told).segments;
        let new = tally.count(told, segments, limit, older);
        (new.segments[Kind::Fast as usize], new.segments[Kind::Unknown as usize], new.bytes)
    }

    #[test]
    fn each_segment_counts_once_however_often_and_late_it_is_told() {
        let mut tally = SocketRetransmits::default();
        assert_eq!(count(&mut tally, &told(1, 2, 600), 2, false), (2, 0, 600));
        assert_eq!(count(&mut tally, &told(1, 5, 900), 3, false), (3, 0, 300));
        assert_eq!(count(&mut tally, &told(1, 4, 800), 0, false), (0, 0, 0), "late");
        assert_eq!(count(&mut tally, &told(9, 1, 950), 1, false), (1, 0, 50), "another count");
        assert_eq!(count(&mut tally, &told(1, 6, 900), 0, false), (0, 0, 0), "the count before it");
        assert_eq!((tally.counted.total(), tally.counted.bytes), (6, 950));
    }

    #[test]
    fn the_sockets_own_count_decides_how_many_there_are() {
        let mut tally = SocketRetransmits::default();
        assert_eq!(count(&mut tally, &told(1, 2, 0), 5, false), (2, 3, 0), "no program saw three of them");
        assert_eq!(count(&mut tally, &told(1, 4, 0), 1, false), (1, 0, 0), "counted already");
    }

    #[test]
    fn of_an_older_socket_what_was_before_does_not_count() {
        let mut tally = SocketRetransmits::default();
        assert_eq!(count(&mut tally, &told(1, 2, 700), 2, true), (2, 0, 200));
    }
}
