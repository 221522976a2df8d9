//! Retransmits: the BTF tracepoint tcp_retransmit_skb (net/ipv4/tcp_output.c, __tcp_retransmit_skb), which
//! runs after the kernel has added the segments to `total_retrans`.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};
use tcpwatch_common::{KIND_RETRANSMIT, counter::LOST_RETRANSMIT};

use crate::{
    event::{self, What},
    field::{KernelPtr, OFF_SKC_STATE, OFF_TOTAL_RETRANS},
    fill,
};

#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn tcp_retransmit_skb(ctx: BtfTracePointContext) -> i32 {
    let Some(sk) = KernelPtr::new(ctx.arg::<*const u8>(0)).and_then(fill::tcp_sock) else { return 0 };
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
    event::send(&ctx, sk, time_ns, what);
    0
}
