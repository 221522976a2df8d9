//! Retransmits: the tracepoint tcp_retransmit_skb (net/ipv4/tcp_output.c, __tcp_retransmit_skb), which runs after
//! the kernel has added the segments to `total_retrans`.

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_ktime_get_ns,
    macros::{btf_tracepoint, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};
use tcpwatch_common::{KIND_RETRANSMIT, counter::LOST_RETRANSMIT};

use crate::{
    event::{self, What},
    field::{Kernel, OFF_SKC_STATE, OFF_TOTAL_RETRANS, Raw, Typed},
    fill, format,
};

#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn retransmit_tp_btf(ctx: BtfTracePointContext) -> i32 {
    if let Some(sk) = Typed::new(ctx.arg(0)).and_then(Kernel::tcp_sock) {
        retransmitted(&ctx, sk);
    }
    0
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn retransmit_raw_tp(ctx: RawTracePointContext) -> i32 {
    if let Some(sk) = Raw::new(ctx.arg(0)).and_then(Kernel::tcp_sock) {
        retransmitted(&ctx, sk);
    }
    0
}

/// For a kernel without BTF.
#[tracepoint(category = "tcp", name = "tcp_retransmit_skb")]
pub fn retransmit_tracepoint(ctx: TracePointContext) -> u32 {
    format::retransmit(&ctx);
    0
}

#[inline(always)]
fn retransmitted(ctx: &impl EbpfContext, sk: impl Kernel) {
    let state = sk.read::<u8>(&OFF_SKC_STATE);
    // SAFETY: no arguments.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let what = What {
        kind: KIND_RETRANSMIT,
        old_state: state,
        new_state: state,
        flags: fill::flags(sk),
        value: sk.read(&OFF_TOTAL_RETRANS),
        lost: LOST_RETRANSMIT,
    };
    event::send(ctx, sk, time_ns, what);
}
