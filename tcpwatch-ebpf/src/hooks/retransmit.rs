//! Retransmits: the tracepoint tcp_retransmit_skb (net/ipv4/tcp_output.c, __tcp_retransmit_skb), which runs after the
//! kernel has added the segments to `total_retrans`; and retransmits that failed, which that tracepoint reports from
//! Linux 6.18 on, some of them before that addition. In: the socket, the segment, the errno. Out: segments by kind,
//! and failures by errno, in the socket's counts. Deliberately absent: SYN-ACKs of a listener (`synack.rs`).

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, fexit, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, FExitContext, RawTracePointContext, TracePointContext},
};
use tcpwatch_common::{
    FLAG_HELD, KIND_RETRANSMIT, SocketEvent,
    counter::{HELD_BACK_RETRANSMIT, HELD_BACK_RETRANSMIT_FAILED, LOST_RETRANSMIT, LOST_RETRANSMIT_FAILED},
    errno, failure,
    retransmit::{FAST, PROBE, SLOW_START, SYN, SYN_ACK, TIMEOUT, UNKNOWN},
    state::{SYN_RECV, SYN_SENT},
};

use crate::{
    counts::{
        segments::{self, Retransmit},
        socket_counts::{self, SignalCounters},
        stall,
    },
    read::{
        clock, identity,
        offsets::{OFF_ICSK_PENDING, OFF_SKB_CB_SEGMENTS, OFF_SKB_LEN, OFF_SKC_STATE},
        pointer::{BtfPtr, KernelPtr, ProbedPtr},
        segment,
        tcp_sock::{CA_LOSS, CA_RECOVERY, ca_state},
        tracepoint::{
            self, TP_RETRANSMIT_DADDR_V6, TP_RETRANSMIT_DPORT, TP_RETRANSMIT_SADDR_V6, TP_RETRANSMIT_SKADDR,
            TP_RETRANSMIT_SPORT, TP_RETRANSMIT_STATE,
        },
    },
};

/// include/net/inet_connection_sock.h: the timer of the tail loss probe.
const ICSK_TIME_LOSS_PROBE: u8 = 5;

/// tcp_retransmit_skb(sk, skb, ...).
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn retransmit_tp_btf(ctx: BtfTracePointContext) -> i32 {
    if let Some(sk) = BtfPtr::new(ctx.arg(0)).and_then(KernelPtr::tcp_sock) {
        retransmitted(&ctx, sk, ctx.arg(1));
    }
    0
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn retransmit_raw_tp(ctx: RawTracePointContext) -> i32 {
    if let Some(sk) = ProbedPtr::new(ctx.arg(0)).and_then(KernelPtr::tcp_sock) {
        retransmitted(&ctx, sk, ctx.arg(1));
    }
    0
}

/// For a kernel whose types are not known.
#[tracepoint(category = "tcp", name = "tcp_retransmit_skb")]
pub fn retransmit_tracepoint(ctx: TracePointContext) -> u32 {
    retransmitted_as_printed(&ctx);
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
fn retransmitted(ctx: &impl EbpfContext, sk: impl KernelPtr, skb: *const u8) {
    let Some(skb) = ProbedPtr::new(skb) else { return };
    let cb = segment::control_block(skb);
    let what = Retransmit {
        segments: cb.map_or(1, |cb| cb.read::<u16>(&OFF_SKB_CB_SEGMENTS)) as u32,
        bytes: skb.read(&OFF_SKB_LEN),
        in_total: true,
        counters: SignalCounters { lost: LOST_RETRANSMIT, held_back: HELD_BACK_RETRANSMIT },
    };
    segments::add(ctx, sk, &what, |counts, time_ns| {
        let kind = kind(sk);
        stall::note_retransmit(sk, skb, counts, time_ns, kind == PROBE);
        kind
    });
}

/// Why the kernel retransmits on this socket now.
#[inline(always)]
fn kind(sk: impl KernelPtr) -> usize {
    match sk.read::<u8>(&OFF_SKC_STATE) {
        SYN_SENT => return SYN,
        // In a simultaneous open, where the SYN was made a SYN-ACK (tcp_send_synack, net/ipv4/tcp_output.c).
        SYN_RECV => return SYN_ACK,
        _ => {}
    }
    let ca_state = ca_state(sk);
    let timer = sk.read::<u8>(&OFF_ICSK_PENDING);
    if ca_state == CA_LOSS {
        // tcp_write_timer_handler (net/ipv4/tcp_timer.c) clears it before tcp_retransmit_timer, which sets the timer
        // again only after it retransmitted. During a retransmit that an acknowledgement causes, a timer is set.
        return if timer == 0 { TIMEOUT } else { SLOW_START };
    }
    // tcp_send_loss_probe (net/ipv4/tcp_output.c) clears it only after its retransmit. The timer may also run while
    // acknowledgements begin a recovery, but is not set in one (tcp_schedule_loss_probe).
    if timer == ICSK_TIME_LOSS_PROBE && ca_state < CA_RECOVERY { PROBE } else { FAST }
}

#[inline(always)]
fn retransmitted_as_printed(ctx: &TracePointContext) -> Option<()> {
    let state = tracepoint::read::<i32>(ctx, &TP_RETRANSMIT_STATE)? as u8;
    let event = SocketEvent {
        kind: KIND_RETRANSMIT,
        old_state: state,
        new_state: state,
        flags: FLAG_HELD,
        netns: 0,
        time_ns: clock::now_ns(),
        cookie: identity::hide_address(tracepoint::read(ctx, &TP_RETRANSMIT_SKADDR)?),
        // The record does not print how many there were before.
        value: 0,
        sport: tracepoint::read(ctx, &TP_RETRANSMIT_SPORT)?,
        dport: tracepoint::read(ctx, &TP_RETRANSMIT_DPORT)?,
        saddr: tracepoint::read(ctx, &TP_RETRANSMIT_SADDR_V6)?,
        daddr: tracepoint::read(ctx, &TP_RETRANSMIT_DADDR_V6)?,
    };
    let kind = match state {
        SYN_SENT => SYN,
        SYN_RECV => SYN_ACK,
        _ => UNKNOWN,
    };
    segments::emit_one(event, kind, LOST_RETRANSMIT)
}

#[inline(always)]
fn failed(ctx: &impl EbpfContext, sk: *const u8, error: i32) {
    if error >= 0 {
        return;
    }
    let Some(sk) = BtfPtr::new(sk).and_then(KernelPtr::tcp_sock) else { return };
    let counters = SignalCounters { lost: LOST_RETRANSMIT_FAILED, held_back: HELD_BACK_RETRANSMIT_FAILED };
    let time_ns = clock::now_ns();
    socket_counts::begin_or_change(ctx, sk, identity::of(sk), time_ns, 0, &counters, |counts| {
        // SAFETY: a value of the map, changed under the socket's lock.
        unsafe { (*counts).event.failures[failure_of(error)] += 1 };
    });
}

/// `failure::*` of what a kernel function returned.
#[inline(always)]
fn failure_of(error: i32) -> usize {
    // As constants of the matched type: a comparison in each arm costs the verifier more than one match.
    const EPERM: i32 = errno::EPERM as i32;
    const EAGAIN: i32 = errno::EAGAIN as i32;
    const ENOMEM: i32 = errno::ENOMEM as i32;
    const EBUSY: i32 = errno::EBUSY as i32;
    const ENETUNREACH: i32 = errno::ENETUNREACH as i32;
    const ENOBUFS: i32 = errno::ENOBUFS as i32;
    const EHOSTUNREACH: i32 = errno::EHOSTUNREACH as i32;
    match -error {
        EPERM => failure::EPERM,
        EAGAIN => failure::EAGAIN,
        ENOMEM => failure::ENOMEM,
        EBUSY => failure::EBUSY,
        ENETUNREACH => failure::ENETUNREACH,
        ENOBUFS => failure::ENOBUFS,
        EHOSTUNREACH => failure::EHOSTUNREACH,
        _ => failure::OTHER,
    }
}
