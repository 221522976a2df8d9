//! The retransmits and stalls of one socket, and the growth of their counts from record to record.
//!
//! The BPF programs count segments by kind, the socket itself counts segments and bytes. Both counts only grow. They
//! are reported repeatedly, sometimes late or out of order, yet each segment counts once. The socket's own count
//! decides how many segments there are: it includes those that no program saw.

use crate::{
    events::decode::{FAILURES, Kind, Retransmits},
    tcp::{
        histogram::grown,
        stall::{Stalled, Stalls},
    },
};

/// Retransmits of one socket, or a sum of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retransmitted {
    /// Segments, by [`Kind`].
    pub segments: [u64; Kind::COUNT],
    pub bytes: u64,
    /// Segments that the peer reported as received twice: the retransmit was unnecessary.
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

    /// `segments` of [`Kind::Unknown`].
    pub fn unknown(segments: u64) -> Self {
        let mut unknown = Self::default();
        unknown.segments[Kind::Unknown as usize] = segments;
        unknown
    }
}

/// What the programs counted since their last report.
#[derive(Clone, Debug, Default)]
pub struct RetransmitDelta {
    /// Segments by kind; only those that a program saw.
    pub segments: [u64; Kind::COUNT],
    pub failures: [u64; FAILURES.len()],
    pub stalls: Stalls,
}

impl RetransmitDelta {
    pub fn is_only_segments(&self) -> bool {
        self.failures.iter().all(|count| *count == 0) && self.stalls == Stalls::default()
    }
}

/// The retransmits and stalls of one socket.
#[derive(Clone, Debug, Default)]
pub struct SocketRetransmits {
    /// Everything counted so far.
    pub counted: Retransmitted,
    pub failures: [u64; FAILURES.len()],
    pub stalls: Stalls,
    /// The present stall.
    pub stalled: Option<Stalled>,
    /// The programs' latest report.
    reported: Retransmits,
    /// The socket's own counts at the latest report, of retransmitted bytes and of segments received twice.
    bytes: Option<u64>,
    duplicates: Option<u32>,
}

impl SocketRetransmits {
    /// Adopts a report and returns the growth since the one before; nothing of a report that is older than the latest.
    pub fn delta(&mut self, report: &Retransmits) -> RetransmitDelta {
        // The programs lost their count and began another, or this is the first.
        if report.since_ns > self.reported.since_ns {
            self.reported = Retransmits { since_ns: report.since_ns, ..Retransmits::default() };
        } else if report.since_ns < self.reported.since_ns {
            return RetransmitDelta::default();
        }
        let mut stalls = Stalls::default();
        for ((new, known), latest) in stalls.iter_mut().zip(&mut self.reported.stalls).zip(&report.stalls) {
            *new = known.delta(latest);
        }
        for (mine, new) in self.stalls.iter_mut().zip(&stalls) {
            mine.add(new);
        }
        let failures = grown(&mut self.reported.failures, report.failures);
        for (mine, new) in self.failures.iter_mut().zip(failures) {
            *mine += new;
        }
        self.stalled = report.stalled;
        RetransmitDelta { segments: grown(&mut self.reported.segments, report.segments), failures, stalls }
    }

    /// Counts exactly `limit` new segments, and returns what it counted: of `segments`, by kind, as many as fit, and
    /// the rest of an unknown kind. `older`: the socket may have retransmitted before it was first seen.
    pub fn count(
        &mut self,
        report: &Retransmits,
        segments: [u64; Kind::COUNT],
        limit: u64,
        older: bool,
    ) -> Retransmitted {
        let mut new = Retransmitted::default();
        let mut left = limit;
        for (new, reported) in new.segments.iter_mut().zip(segments) {
            *new = reported.min(left);
            left -= *new;
        }
        new.segments[Kind::Unknown as usize] += left;
        let bytes = self.bytes.get_or_insert(if older { report.bytes_before } else { 0 });
        new.bytes = report.bytes.saturating_sub(*bytes);
        *bytes = report.bytes.max(*bytes);
        let duplicates = self.duplicates.get_or_insert(if older { report.duplicates } else { 0 });
        new.spurious = report.duplicates.saturating_sub(*duplicates).into();
        *duplicates = report.duplicates.max(*duplicates);
        self.counted.add(&new);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(since_ns: u64, fast: u64, bytes: u64) -> Retransmits {
        let mut report = Retransmits { since_ns, bytes, bytes_before: 500, ..Retransmits::default() };
        report.segments[Kind::Fast as usize] = fast;
        report
    }

    /// New segments of a known and of an unknown kind, and new bytes.
    fn count(
        socket: &mut SocketRetransmits,
        report: &Retransmits,
        limit: u64,
        older: bool,
    ) -> (u64, u64, u64) {
        let segments = socket.delta(report).segments;
        let new = socket.count(report, segments, limit, older);
        (new.segments[Kind::Fast as usize], new.segments[Kind::Unknown as usize], new.bytes)
    }

    #[test]
    fn each_segment_counts_once_in_repeated_and_late_reports() {
        let mut socket = SocketRetransmits::default();
        assert_eq!(count(&mut socket, &report(1, 2, 600), 2, false), (2, 0, 600));
        assert_eq!(count(&mut socket, &report(1, 5, 900), 3, false), (3, 0, 300));
        assert_eq!(count(&mut socket, &report(1, 4, 800), 0, false), (0, 0, 0), "late");
        assert_eq!(count(&mut socket, &report(9, 1, 950), 1, false), (1, 0, 50), "another count");
        assert_eq!(count(&mut socket, &report(1, 6, 900), 0, false), (0, 0, 0), "the count before it");
        assert_eq!((socket.counted.total(), socket.counted.bytes), (6, 950));
    }

    #[test]
    fn the_sockets_own_count_decides_how_many_segments_there_are() {
        let mut socket = SocketRetransmits::default();
        assert_eq!(count(&mut socket, &report(1, 2, 0), 5, false), (2, 3, 0), "no program saw three of them");
        assert_eq!(count(&mut socket, &report(1, 4, 0), 1, false), (1, 0, 0), "counted already");
    }

    #[test]
    fn retransmits_before_the_first_sight_of_a_socket_do_not_count() {
        let mut socket = SocketRetransmits::default();
        assert_eq!(count(&mut socket, &report(1, 2, 700), 2, true), (2, 0, 200));
    }
}
