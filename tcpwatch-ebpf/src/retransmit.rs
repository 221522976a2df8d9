//! Retransmits: the tracepoint tcp_retransmit_skb (net/ipv4/tcp_output.c, __tcp_retransmit_skb), which runs after
//! the kernel has added the segments to `total_retrans`. From Linux 6.18 on it also tells of failures, of which some
//! come before that. Those of SYN-ACKs are told elsewhere (`synack.rs`).

use core::arch::asm;

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_ktime_get_ns,
    macros::{btf_tracepoint, fexit, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, FExitContext, RawTracePointContext, TracePointContext},
};
use tcpwatch_common::{
    SocketEvent,
    counter::{
        HELD_BACK_RETRANSMIT, HELD_BACK_RETRANSMIT_FAILED, LOST_RETRANSMIT, LOST_RETRANSMIT_FAILED,
        LOST_STATE,
    },
    failure,
    retransmit::{COUNT, FAST, PROBE, SLOW_START, SYN, SYN_ACK, TIMEOUT},
    state::{SYN_RECV, SYN_SENT},
};

use crate::{
    counted::{self, Counted, Counters},
    field::{
        self, Kernel, OFF_ICSK_PENDING, OFF_SKB_CB, OFF_SKB_CB_SEGMENTS, OFF_SKB_LEN, OFF_SKC_STATE,
        OFF_TOTAL_RETRANS, Raw, Typed,
    },
    fill, format, out_of_order, ring,
    stall::{self, CA_LOSS, CA_RECOVERY},
};

/// include/net/inet_connection_sock.h: the tail loss probe's timer.
const ICSK_TIME_LOSS_PROBE: u8 = 5;

/// tcp_retransmit_skb(sk, skb, ...).
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn retransmit_tp_btf(ctx: BtfTracePointContext) -> i32 {
    if let Some(sk) = Typed::new(ctx.arg(0)).and_then(Kernel::tcp_sock) {
        retransmitted(&ctx, sk, ctx.arg(1));
    }
    0
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn retransmit_raw_tp(ctx: RawTracePointContext) -> i32 {
    if let Some(sk) = Raw::new(ctx.arg(0)).and_then(Kernel::tcp_sock) {
        retransmitted(&ctx, sk, ctx.arg(1));
    }
    0
}

/// For a kernel without BTF.
#[tracepoint(category = "tcp", name = "tcp_retransmit_skb")]
pub fn retransmit_tracepoint(ctx: TracePointContext) -> u32 {
    format::retransmit(&ctx);
    0
}

/// tcp_retransmit_skb(sk, skb, err), since Linux 6.18.
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn retransmit_failed_tp_btf(ctx: BtfTracePointContext) -> i32 {
    failed(&ctx, ctx.arg(0), ctx.arg::<i32>(2));
    0
}

/// The function tcp_retransmit_skb(sk, skb, segs), which returns the same. Loss probes do not pass through it.
#[fexit(function = "tcp_retransmit_skb")]
pub fn retransmit_failed_fexit(ctx: FExitContext) -> i32 {
    failed(&ctx, ctx.arg(0), ctx.arg::<i32>(3));
    0
}

#[inline(always)]
fn retransmitted(ctx: &impl EbpfContext, sk: impl Kernel, skb: *const u8) {
    let Some(skb) = Raw::new(skb) else { return };
    let cb = Raw::new(skb.as_ptr().wrapping_add(field::value(&OFF_SKB_CB)));
    let what = Retransmitted {
        segments: cb.map_or(1, |cb| cb.read::<u16>(&OFF_SKB_CB_SEGMENTS)) as u32,
        bytes: skb.read(&OFF_SKB_LEN),
        in_total: true,
        counters: Counters { lost: LOST_RETRANSMIT, held_back: HELD_BACK_RETRANSMIT },
    };
    count(ctx, sk, &what, |counted, time_ns| {
        let kind = kind(sk);
        stall::retransmitted(sk, skb, counted, time_ns, kind == PROBE);
        kind
    });
}

/// Why the kernel retransmits on this socket now.
#[inline(always)]
fn kind(sk: impl Kernel) -> usize {
    match sk.read::<u8>(&OFF_SKC_STATE) {
        SYN_SENT => return SYN,
        // Of a simultaneous open: its SYN was made a SYN-ACK (tcp_send_synack, net/ipv4/tcp_output.c).
        SYN_RECV => return SYN_ACK,
        _ => {}
    }
    let ca_state = stall::ca_state(sk);
    let timer = sk.read::<u8>(&OFF_ICSK_PENDING);
    if ca_state == CA_LOSS {
        // tcp_write_timer_handler (net/ipv4/tcp_timer.c) clears it before tcp_retransmit_timer, which sets the timer
        // again only after it retransmitted; whatever an acknowledgement brings about, a timer runs.
        return if timer == 0 { TIMEOUT } else { SLOW_START };
    }
    // tcp_send_loss_probe (net/ipv4/tcp_output.c) clears it only after its retransmit. The timer may also run while
    // acknowledgements begin a recovery, but not be set in one (tcp_schedule_loss_probe).
    if timer == ICSK_TIME_LOSS_PROBE && ca_state < CA_RECOVERY { PROBE } else { FAST }
}

/// One retransmit.
pub struct Retransmitted {
    pub segments: u32,
    pub bytes: u32,
    /// Whether the socket's `total_retrans` has it, if it was retransmitted at all.
    pub in_total: bool,
    pub counters: Counters,
}

/// Counts it. `kind` gives `retransmit::*`; asked last, because the verifier follows whatever comes after it once for
/// each of them.
#[inline(always)]
pub fn count(
    ctx: &impl EbpfContext,
    sk: impl Kernel,
    what: &Retransmitted,
    kind: impl FnOnce(*mut Counted, u64) -> usize,
) {
    // SAFETY: no arguments.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let cookie = fill::cookie(sk);
    // SAFETY: a value of the map; `total_retrans` of one socket is changed under its lock.
    let before = counted::find(cookie).map_or(0, |counted| unsafe { (*counted).event.socket.value });
    // What failed early (no memory, no route, still on its way out of this machine) the kernel does not count.
    if what.in_total && sk.read::<u32>(&OFF_TOTAL_RETRANS) == before {
        return;
    }
    let Some(counted) = counted::find_or_begin(sk, cookie, time_ns, what.bytes) else {
        ring::count(what.counters.lost);
        return;
    };
    counted::change(ctx, sk, counted, time_ns, &what.counters, |counted| {
        let kind = kind(counted, time_ns);
        if kind < COUNT {
            // SAFETY: a value of the map. Of a listener several processors may come here at once.
            unsafe { add(&raw mut (*counted).event.segments[kind], what.segments as u64) };
        }
    });
}

/// Adds to a count that other processors may add to: one instruction, which any kernel with BPF has.
///
/// # Safety
/// As for a store to `count`.
#[inline(always)]
unsafe fn add(count: *mut u64, what: u64) {
    // SAFETY: the caller's. Rust's own atomics have no addition for this target.
    unsafe { asm!("lock *(u64 *)({count} + 0) += {what}", count = in(reg) count, what = in(reg) what) }
}

#[inline(always)]
fn failed(ctx: &impl EbpfContext, sk: *const u8, error: i32) {
    if error >= 0 {
        return;
    }
    let Some(sk) = Typed::new(sk).and_then(Kernel::tcp_sock) else { return };
    let counters = Counters { lost: LOST_RETRANSMIT_FAILED, held_back: HELD_BACK_RETRANSMIT_FAILED };
    // SAFETY: no arguments.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let Some(counted) = counted::find_or_begin(sk, fill::cookie(sk), time_ns, 0) else {
        ring::count(counters.lost);
        return;
    };
    counted::change(ctx, sk, counted, time_ns, &counters, |counted| {
        // SAFETY: a value of the map, changed under the socket's lock.
        unsafe { (*counted).event.failures[failure_of(error)] += 1 };
    });
}

/// include/uapi/asm-generic/errno-base.h and errno.h.
#[inline(always)]
fn failure_of(error: i32) -> usize {
    match -error {
        1 => failure::EPERM,
        11 => failure::EAGAIN,
        12 => failure::ENOMEM,
        16 => failure::EBUSY,
        101 => failure::ENETUNREACH,
        105 => failure::ENOBUFS,
        113 => failure::EHOSTUNREACH,
        _ => failure::OTHER,
    }
}

/// The socket that `event` is the end of.
#[inline(always)]
pub fn end(sk: impl Kernel, event: &SocketEvent) {
    counted::finish(sk, event, LOST_STATE, |counted| {
        if out_of_order::was_counted(sk) {
            // SAFETY: a value of the map.
            unsafe { out_of_order::end(counted, event.time_ns) };
        }
        stall::cut_short(sk, counted, event.time_ns);
    });
}
