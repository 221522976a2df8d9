//! Retransmits of SYN-ACKs: the tracepoint tcp_retransmit_synack (net/ipv4/tcp_output.c, tcp_rtx_synack), which runs
//! after the kernel counted one segment for its namespace. The request is no full socket, and its listener keeps no
//! count of them; they are counted here as the listener's. The socket that comes of the request inherits how many they
//! were as its own `total_retrans` (tcp_create_openreq_child, net/ipv4/tcp_minisocks.c).
//!
//! With TCP Fast Open there is a socket already, which counts them itself.

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};
use tcpwatch_common::{
    counter::{HELD_BACK_SYN_ACK, LOST_SYN_ACK},
    retransmit::SYN_ACK,
};

use crate::{
    counted::Counters,
    field::{Kernel, Raw, Typed},
    format,
    retransmit::{self, Retransmitted},
};

#[btf_tracepoint(function = "tcp_retransmit_synack")]
pub fn synack_tp_btf(ctx: BtfTracePointContext) -> i32 {
    if let Some(sk) = Typed::new(ctx.arg(0)).and_then(Kernel::tcp_sock) {
        retransmitted(&ctx, sk);
    }
    0
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_synack")]
pub fn synack_raw_tp(ctx: RawTracePointContext) -> i32 {
    if let Some(sk) = Raw::new(ctx.arg(0)).and_then(Kernel::tcp_sock) {
        retransmitted(&ctx, sk);
    }
    0
}

/// For a kernel without BTF.
#[tracepoint(category = "tcp", name = "tcp_retransmit_synack")]
pub fn synack_tracepoint(ctx: TracePointContext) -> u32 {
    format::retransmit_synack(&ctx);
    0
}

#[inline(always)]
fn retransmitted(ctx: &impl EbpfContext, sk: impl Kernel) {
    let what = Retransmitted {
        segments: 1,
        bytes: 0,
        in_total: false,
        counters: Counters { lost: LOST_SYN_ACK, held_back: HELD_BACK_SYN_ACK },
    };
    retransmit::count(ctx, sk, &what, |_, _| SYN_ACK);
}
