//! Head-of-line blocking on the sending side: how long delivery stalls behind a lost segment, from when that was
//! first sent until it is acknowledged. In: the begin and end of a recovery, a retransmit, the end of the socket.
//! Out: stalls in the socket's counts. Deliberately absent: the receiving side (`waiting.rs`).
//!
//! In one recovery several segments may be lost; then delivery stalls from one to the next, which counts as one
//! stall. A recovery that the kernel undoes, because nothing was lost after all, is none.
//!
//! A segment that a tail loss probe made good causes no recovery, and no hook runs when it is acknowledged. That
//! happened a round trip after the probe, or a time-out would have followed; and if the probe was needless, the peer
//! reported that it received the segment twice (DSACK). So a probe is kept until the next event on the socket, and
//! then counted or discarded.
//!
//! The kernel does not run a program while the same one runs on that processor. A probe that no program saw is not
//! counted, and a stall whose end none saw is discarded, rather than prolonged until the next.

use tcpwatch_common::stall::PROBE;

use crate::{
    counts::{
        socket_counts::{SocketCounts, add_stall},
        tail_loss_probe::TailLossProbe,
    },
    read::{
        offsets::{OFF_DSACK_DUPS, OFF_SKC_STATE, OFF_SND_NXT, OFF_SRTT_US, OFF_UNDO_MARKER},
        pointer::{KernelPtr, ProbedPtr},
        segment::Hole,
        tcp_sock::{CA_RECOVERY, ca_state, outstanding_bytes},
    },
};

/// A stall begins; or a fast recovery becomes a time-out. `kind`: `stall::*`.
#[inline(always)]
pub fn begin(sk: impl KernelPtr, counts: *mut SocketCounts, time_ns: u64, kind: usize) {
    let hole = Hole::of(sk, None);
    // SAFETY: a value of the map, changed under the socket's lock. The same holds for the rest of this file.
    unsafe {
        let was_probed = !settle_probe(sk, counts);
        let event = &raw mut (*counts).event;
        // By the state before this one: if no program saw the last stall end, it is not the present one.
        if (*event).stalled_since_ns == 0 || ca_state(sk) < CA_RECOVERY {
            let probed_ns = if was_probed { (*counts).probe.since_ns } else { time_ns };
            (*event).stalled_since_ns = hole.since_ns.min(probed_ns).min(time_ns);
            (*event).stalled_bytes = 0;
            (*counts).may_be_undone = (sk.read::<u32>(&OFF_UNDO_MARKER) != 0) as u64;
        }
        (*counts).probe.at_ns = 0;
        (*event).stalled_kind = kind as u32;
        (*event).stalled_bytes = (*event).stalled_bytes.max(hole.bytes);
    }
}

/// The recovery is over: everything is acknowledged that was sent before it began.
#[inline(always)]
pub fn end(sk: impl KernelPtr, counts: *mut SocketCounts, time_ns: u64) {
    // SAFETY: as in `begin`.
    unsafe {
        let event = &raw mut (*counts).event;
        let since_ns = (*event).stalled_since_ns;
        (*event).stalled_since_ns = 0;
        // tcp_undo_cwnd_reduction (net/ipv4/tcp_input.c) clears it; else it stays as it is.
        let undone = (*counts).may_be_undone != 0 && sk.read::<u32>(&OFF_UNDO_MARKER) == 0;
        if !undone {
            let (kind, bytes) = ((*event).stalled_kind as usize, (*event).stalled_bytes);
            add_stall(counts, kind, time_ns.saturating_sub(since_ns), bytes);
        }
    }
}

/// The socket ends, and with it the present stall.
#[inline(always)]
pub fn cut_short(sk: impl KernelPtr, counts: *mut SocketCounts, time_ns: u64) {
    // SAFETY: as in `begin`.
    unsafe {
        let event = &raw mut (*counts).event;
        let (since_ns, probe) = ((*event).stalled_since_ns, (*counts).probe);
        (*event).stalled_since_ns = 0;
        let (kind, duration_ns, bytes) = if since_ns != 0 && ca_state(sk) >= CA_RECOVERY {
            ((*event).stalled_kind as usize, time_ns.saturating_sub(since_ns), (*event).stalled_bytes)
        } else if probe.at_ns == 0 {
            return;
        } else if !probe.is_acknowledged(sk) {
            (PROBE, time_ns.saturating_sub(probe.since_ns), probe.bytes)
        } else if probe.was_needless(sk) {
            return;
        } else {
            (PROBE, probe.took_ns(), probe.bytes)
        };
        add_stall(counts, kind, duration_ns, bytes);
    }
}

/// `skb` was retransmitted; `is_probe`: as a tail loss probe.
#[inline(always)]
pub fn note_retransmit(
    sk: impl KernelPtr,
    skb: ProbedPtr,
    counts: *mut SocketCounts,
    time_ns: u64,
    is_probe: bool,
) {
    // SAFETY: as in `begin`.
    unsafe {
        // Another retransmit before the probe is acknowledged belongs to a recovery.
        if !settle_probe(sk, counts) && !is_probe {
            (*counts).probe.at_ns = 0;
        }
        if !is_probe {
            return;
        }
        // The kernel sends no probe in a recovery.
        (*counts).event.stalled_since_ns = 0;
        if (*counts).probe.at_ns != 0 {
            return;
        }
        if outstanding_bytes(sk, sk.read(&OFF_SKC_STATE)) == 0 {
            return;
        }
        let hole = Hole::of(sk, Some(skb));
        (*counts).probe = TailLossProbe {
            at_ns: time_ns,
            since_ns: hole.since_ns.min(time_ns),
            rtt_us: sk.read::<u32>(&OFF_SRTT_US) >> 3,
            high: sk.read(&OFF_SND_NXT),
            duplicates: sk.read(&OFF_DSACK_DUPS),
            bytes: hole.bytes,
        };
    }
}

/// Counts or discards the last probe, if it is acknowledged by now. `false` while it is not.
///
/// # Safety
/// `counts` is a value of the map.
#[inline(always)]
unsafe fn settle_probe(sk: impl KernelPtr, counts: *mut SocketCounts) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let probe = (*counts).probe;
        if probe.at_ns == 0 {
            return true;
        }
        if !probe.is_acknowledged(sk) {
            return false;
        }
        if !probe.was_needless(sk) {
            add_stall(counts, PROBE, probe.took_ns(), probe.bytes);
        }
        (*counts).probe.at_ns = 0;
        true
    }
}
