//! Head-of-line blocking: how long the delivery of what was sent stands still behind a lost segment, from when that was
//! first sent until it is acknowledged.
//!
//! A fast recovery or a time-out begins and ends a stall: the tracepoint tcp_cong_state_set (net/ipv4/tcp_cong.c,
//! tcp_set_ca_state), which runs before the state is set. In one recovery several segments may be lost; then delivery
//! stands still from one to the next. What the kernel takes back because nothing was lost after all (its undo) is none.
//!
//! A segment that a tail loss probe made good passes through no such state, and nothing tells when it was acknowledged.
//! That happened a round trip after the probe, or a time-out would have followed; and if the probe was needless, the peer
//! said that it had the segment twice (DSACK). So a probe is kept until the next that happens on the socket, and then
//! counted or not.
//!
//! The kernel does not run a program for everything: not while the same one runs on that processor. A probe that no
//! program saw is not told, and a stall whose end none saw is forgotten, rather than go on until the next.

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_ktime_get_ns,
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use tcpwatch_common::{
    DURATION_BOUNDS_NS,
    counter::{HELD_BACK_CONGESTION, LOST_CONGESTION},
    stall::{COUNT, FAST, PROBE, TIMEOUT},
    state::{CLOSE, CLOSING, FIN_WAIT1, LAST_ACK, LISTEN, SYN_RECV, SYN_SENT},
};

use crate::{
    counted::{self, Counted, Counters},
    field::{
        self, Kernel, OFF_DSACK_DUPS, OFF_FIRST_TX_MSTAMP, OFF_ICSK_CA_STATE, OFF_RB_LEFT, OFF_SKB_CB,
        OFF_SKB_CB_END_SEQ, OFF_SKB_CB_SACKED, OFF_SKB_MSTAMP_NS, OFF_SKB_RBNODE, OFF_SKC_STATE, OFF_SND_NXT,
        OFF_SND_UNA, OFF_SRTT_US, OFF_TCP_RTX_QUEUE, OFF_UNDO_MARKER, OFF_WRITE_SEQ, Raw, Typed,
    },
    fill, ring,
};

/// include/net/tcp.h, enum tcp_ca_state: unchanged since Linux 2.6; five bits.
pub const CA_RECOVERY: u8 = 3;
pub const CA_LOSS: u8 = 4;
const CA_BITS: u8 = 0x1f;

/// include/net/tcp.h: TCPCB_EVER_RETRANS, in `sacked` of `struct tcp_skb_cb`.
const EVER_RETRANSMITTED: u8 = 0x80;

/// A red-black tree of 2^16 segments is no deeper.
const DEPTH: u32 = 32;

/// The last tail loss probe, while it is not known what came of it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Probe {
    /// When it was sent; 0 for none.
    at_ns: u64,
    /// When the segment was first sent that it makes good, if one was lost.
    since_ns: u64,
    /// Smoothed round-trip time then.
    rtt_us: u32,
    /// The sequence number that its acknowledgement reaches.
    high: u32,
    /// Segments that the peer had said it had twice.
    duplicates: u32,
    /// Bytes behind the segment.
    bytes: u32,
}

impl Probe {
    #[inline(always)]
    fn is_acknowledged(&self, sk: impl Kernel) -> bool {
        sk.read::<u32>(&OFF_SND_UNA).wrapping_sub(self.high) as i32 >= 0
    }

    /// The peer said since that it had something twice.
    #[inline(always)]
    fn was_needless(&self, sk: impl Kernel) -> bool {
        sk.read::<u32>(&OFF_DSACK_DUPS) != self.duplicates
    }

    /// Until the acknowledgement came, as far as is known.
    #[inline(always)]
    fn took_ns(&self) -> u64 {
        self.at_ns - self.since_ns + self.rtt_us as u64 * 1000
    }
}

/// tcp_cong_state_set(sk, ca_state).
#[btf_tracepoint(function = "tcp_cong_state_set")]
pub fn congestion_tp_btf(ctx: BtfTracePointContext) -> i32 {
    changes(&ctx, Typed::new(ctx.arg(0)), ctx.arg::<u32>(1) as u8);
    0
}

#[raw_tracepoint(tracepoint = "tcp_cong_state_set")]
pub fn congestion_raw_tp(ctx: RawTracePointContext) -> i32 {
    changes(&ctx, Raw::new(ctx.arg(0)), ctx.arg::<u32>(1) as u8);
    0
}

#[inline(always)]
pub fn ca_state(sk: impl Kernel) -> u8 {
    sk.read::<u8>(&OFF_ICSK_CA_STATE) & CA_BITS
}

#[inline(always)]
fn changes(ctx: &impl EbpfContext, sk: Option<impl Kernel>, new: u8) {
    // Nearly always a socket that a listener made, which starts so: asked first, because that costs least.
    let state = sk.map_or(CLOSE, |sk| sk.read::<u8>(&OFF_SKC_STATE));
    if matches!(state, SYN_SENT | SYN_RECV | LISTEN | CLOSE) {
        return;
    }
    let Some(sk) = sk.and_then(Kernel::tcp_sock) else { return };
    if new < CA_RECOVERY && ca_state(sk) < CA_RECOVERY {
        return;
    }
    let counters = Counters { lost: LOST_CONGESTION, held_back: HELD_BACK_CONGESTION };
    // SAFETY: no arguments.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let cookie = fill::cookie(sk);
    if new < CA_RECOVERY {
        let Some(counted) = counted::find(cookie) else { return };
        // SAFETY: a value of the map.
        if unsafe { (*counted).event.stalled_since_ns } != 0 {
            counted::change(ctx, sk, counted, time_ns, &counters, |counted| end(sk, counted, time_ns));
        }
    } else if outstanding(sk, state) != 0 {
        let Some(counted) = counted::find_or_begin(sk, cookie, time_ns, 0) else {
            ring::count(counters.lost);
            return;
        };
        counted::change(ctx, sk, counted, time_ns, &counters, |counted| {
            begin(sk, counted, time_ns, if new == CA_LOSS { TIMEOUT } else { FAST });
        });
    }
}

/// Delivery stands still; or a fast recovery goes over into a time-out.
#[inline(always)]
fn begin(sk: impl Kernel, counted: *mut Counted, time_ns: u64, kind: usize) {
    let hole = hole(sk, None);
    // SAFETY: a value of the map, changed under the socket's lock. So in all that follows.
    unsafe {
        let was_probed = !settle(sk, counted);
        let event = &raw mut (*counted).event;
        // By the state before this one: if none saw the last stall end, it is not the present one.
        if (*event).stalled_since_ns == 0 || ca_state(sk) < CA_RECOVERY {
            let probed_ns = if was_probed { (*counted).probe.since_ns } else { time_ns };
            (*event).stalled_since_ns = hole.since_ns.min(probed_ns).min(time_ns);
            (*event).stalled_bytes = 0;
            (*counted).may_be_undone = (sk.read::<u32>(&OFF_UNDO_MARKER) != 0) as u64;
        }
        (*counted).probe.at_ns = 0;
        (*event).stalled_kind = kind as u32;
        (*event).stalled_bytes = (*event).stalled_bytes.max(hole.bytes);
    }
}

/// Everything is acknowledged that was sent before it began.
#[inline(always)]
fn end(sk: impl Kernel, counted: *mut Counted, time_ns: u64) {
    // SAFETY: as in `begin`.
    unsafe {
        let event = &raw mut (*counted).event;
        let since_ns = (*event).stalled_since_ns;
        (*event).stalled_since_ns = 0;
        // tcp_undo_cwnd_reduction (net/ipv4/tcp_input.c) clears it; else it stays as it is.
        let undone = (*counted).may_be_undone != 0 && sk.read::<u32>(&OFF_UNDO_MARKER) == 0;
        if !undone {
            let (kind, bytes) = ((*event).stalled_kind as usize, (*event).stalled_bytes);
            count(counted, kind, time_ns.saturating_sub(since_ns), bytes);
        }
    }
}

/// The socket ends, and what stands still with it.
#[inline(always)]
pub fn cut_short(sk: impl Kernel, counted: *mut Counted, time_ns: u64) {
    // SAFETY: as in `begin`.
    unsafe {
        let event = &raw mut (*counted).event;
        let (since_ns, probe) = ((*event).stalled_since_ns, (*counted).probe);
        (*event).stalled_since_ns = 0;
        let (kind, nanos, bytes) = if since_ns != 0 && ca_state(sk) >= CA_RECOVERY {
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
        count(counted, kind, nanos, bytes);
    }
}

/// Something was retransmitted.
#[inline(always)]
pub fn retransmitted(sk: impl Kernel, skb: Raw, counted: *mut Counted, time_ns: u64, probe: bool) {
    // SAFETY: as in `begin`.
    unsafe {
        // What else is retransmitted before it is acknowledged belongs to a recovery.
        if !settle(sk, counted) && !probe {
            (*counted).probe.at_ns = 0;
        }
        if !probe {
            return;
        }
        // A probe is sent in no recovery.
        (*counted).event.stalled_since_ns = 0;
        if (*counted).probe.at_ns != 0 {
            return;
        }
        if outstanding(sk, sk.read(&OFF_SKC_STATE)) == 0 {
            return;
        }
        let hole = hole(sk, Some(skb));
        (*counted).probe = Probe {
            at_ns: time_ns,
            since_ns: hole.since_ns.min(time_ns),
            rtt_us: sk.read::<u32>(&OFF_SRTT_US) >> 3,
            high: sk.read(&OFF_SND_NXT),
            duplicates: sk.read(&OFF_DSACK_DUPS),
            bytes: hole.bytes,
        };
    }
}

/// Counts what the last probe made good, if it is acknowledged by now. `false` while it is not.
///
/// # Safety
/// `counted` is a value of the map.
#[inline(always)]
unsafe fn settle(sk: impl Kernel, counted: *mut Counted) -> bool {
    // SAFETY: the caller's.
    unsafe {
        let probe = (*counted).probe;
        if probe.at_ns == 0 {
            return true;
        }
        if !probe.is_acknowledged(sk) {
            return false;
        }
        if !probe.was_needless(sk) {
            count(counted, PROBE, probe.took_ns(), probe.bytes);
        }
        (*counted).probe.at_ns = 0;
        true
    }
}

/// # Safety
/// `counted` is a value of the map.
#[inline(always)]
pub unsafe fn count(counted: *mut Counted, kind: usize, nanos: u64, bytes: u32) {
    // Without a branch for each bound, of which the verifier would follow both ways. All are far from overflow.
    let bucket =
        DURATION_BOUNDS_NS.iter().map(|bound| (bound.wrapping_sub(nanos) >> 63) as usize).sum::<usize>();
    if kind >= COUNT || bucket > DURATION_BOUNDS_NS.len() {
        return;
    }
    // SAFETY: the caller's.
    unsafe {
        let event = &raw mut (*counted).event;
        (*event).stalls[kind][bucket] += 1;
        (*event).stalls_ns[kind] += nanos;
        (*event).stalls_bytes[kind] += bytes as u64;
    }
}

/// The first segment that is not acknowledged.
struct Hole {
    /// When it was first sent.
    since_ns: u64,
    /// Bytes sent after it.
    bytes: u32,
}

/// `sent`: the segment that was sent this moment.
#[inline(always)]
fn hole(sk: impl Kernel, sent: Option<Raw>) -> Hole {
    let Some(head) = first_unacknowledged(sk) else { return Hole { since_ns: u64::MAX, bytes: 0 } };
    let Some(cb) = Raw::new(head.as_ptr().wrapping_add(field::value(&OFF_SKB_CB))) else {
        return Hole { since_ns: u64::MAX, bytes: 0 };
    };
    let repeated = sent.is_some_and(|sent| core::ptr::eq(sent.as_ptr(), head.as_ptr()))
        || cb.read::<u8>(&OFF_SKB_CB_SACKED) & EVER_RETRANSMITTED != 0;
    let since_ns = if repeated {
        // The time of its first sending is overwritten. It was the first on its way, and this says when; or this says
        // when the one before it was sent, less than a round trip earlier (net/ipv4/tcp_rate.c).
        sk.read::<u64>(&OFF_FIRST_TX_MSTAMP).wrapping_mul(1000)
    } else {
        head.read(&OFF_SKB_MSTAMP_NS)
    };
    let behind = sk.read::<u32>(&OFF_SND_NXT).wrapping_sub(cb.read(&OFF_SKB_CB_END_SEQ));
    Hole { since_ns, bytes: behind.saturating_sub(fin_sent(sk, sk.read(&OFF_SKC_STATE))) }
}

/// The leftmost of `tcp_rtx_queue` (include/net/tcp.h, tcp_rtx_queue_head).
#[inline(always)]
fn first_unacknowledged(sk: impl Kernel) -> Option<Raw> {
    let mut node = Raw::new(sk.read(&OFF_TCP_RTX_QUEUE))?;
    for _ in 0..DEPTH {
        let Some(left) = node.follow(&OFF_RB_LEFT) else { break };
        node = left;
    }
    Raw::new(node.as_ptr().wrapping_sub(field::value(&OFF_SKB_RBNODE)))
}

/// Bytes that are not acknowledged.
#[inline(always)]
fn outstanding(sk: impl Kernel, state: u8) -> u32 {
    let numbers = sk.read::<u32>(&OFF_SND_NXT).wrapping_sub(sk.read(&OFF_SND_UNA));
    numbers.saturating_sub(fin_sent(sk, state))
}

/// 1 if a FIN is on its way, which takes a sequence number.
#[inline(always)]
fn fin_sent(sk: impl Kernel, state: u8) -> u32 {
    let closed = matches!(state, FIN_WAIT1 | CLOSING | LAST_ACK);
    (closed && sk.read::<u32>(&OFF_SND_NXT) == sk.read::<u32>(&OFF_WRITE_SEQ)) as u32
}
