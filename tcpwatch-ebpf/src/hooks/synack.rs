//! Retransmits of SYN-ACKs: the tracepoint tcp_retransmit_synack (net/ipv4/tcp_output.c, tcp_rtx_synack), which runs
//! after the kernel counted one segment for its namespace. In: the listener. Out: one SYN-ACK more in the listener's
//! counts. Deliberately absent: the request, which is no full socket, and for which its listener keeps no count.
//!
//! The socket that is made from the request inherits their number as its own `total_retrans` (tcp_create_openreq_child,
//! net/ipv4/tcp_minisocks.c). With TCP Fast Open there is a socket already, which counts them itself.

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};
use tcpwatch_common::{
    FLAG_HELD, KIND_RETRANSMIT, SocketEvent,
    counter::{HELD_BACK_SYN_ACK, LOST_SYN_ACK},
    retransmit::SYN_ACK,
    state::LISTEN,
};

use crate::{
    counts::{
        segments::{self, Retransmit},
        socket_counts::SignalCounters,
    },
    read::{
        clock, identity,
        pointer::{BtfPtr, KernelPtr, ProbedPtr},
        tracepoint::{self, TP_SYNACK_SADDR_V6, TP_SYNACK_SKADDR, TP_SYNACK_SPORT},
    },
};

#[btf_tracepoint(function = "tcp_retransmit_synack")]
pub fn synack_tp_btf(ctx: BtfTracePointContext) -> i32 {
    if let Some(sk) = BtfPtr::new(ctx.arg(0)).and_then(KernelPtr::tcp_sock) {
        retransmitted(&ctx, sk);
    }
    0
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_synack")]
pub fn synack_raw_tp(ctx: RawTracePointContext) -> i32 {
    if let Some(sk) = ProbedPtr::new(ctx.arg(0)).and_then(KernelPtr::tcp_sock) {
        retransmitted(&ctx, sk);
    }
    0
}

/// For a kernel whose types are not known.
#[tracepoint(category = "tcp", name = "tcp_retransmit_synack")]
pub fn synack_tracepoint(ctx: TracePointContext) -> u32 {
    retransmitted_as_printed(&ctx);
    0
}

#[inline(always)]
fn retransmitted(ctx: &impl EbpfContext, sk: impl KernelPtr) {
    let what = Retransmit {
        segments: 1,
        bytes: 0,
        in_total: false,
        counters: SignalCounters { lost: LOST_SYN_ACK, held_back: HELD_BACK_SYN_ACK },
    };
    segments::add(ctx, sk, &what, |_, _| SYN_ACK);
}

#[inline(always)]
fn retransmitted_as_printed(ctx: &TracePointContext) -> Option<()> {
    let event = SocketEvent {
        kind: KIND_RETRANSMIT,
        // Nearly always; with TCP Fast Open it is the new socket's.
        old_state: LISTEN,
        new_state: LISTEN,
        flags: FLAG_HELD,
        netns: 0,
        time_ns: clock::now_ns(),
        cookie: identity::hide_address(tracepoint::read(ctx, &TP_SYNACK_SKADDR)?),
        value: 0,
        sport: tracepoint::read(ctx, &TP_SYNACK_SPORT)?,
        dport: 0,
        saddr: tracepoint::read(ctx, &TP_SYNACK_SADDR_V6)?,
        daddr: [0; 16],
    };
    segments::emit_one(event, SYN_ACK, LOST_SYN_ACK)
}
