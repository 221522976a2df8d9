//! State changes: the BTF tracepoint inet_sock_set_state (net/ipv4/af_inet.c, inet_sk_set_state).

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};
use tcpwatch_common::{
    KIND_TRANSITION,
    counter::LOST_STATE,
    state::{CLOSE, CLOSE_WAIT, FIN_WAIT1, LAST_ACK, LISTEN, SYN_RECV, SYN_SENT},
};

use crate::{
    event::{self, What},
    field::KernelPtr,
    fill, task,
};

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    let Some(sk) = KernelPtr::new(ctx.arg::<*const u8>(0)).and_then(fill::tcp_sock) else { return 0 };
    let old_state = ctx.arg::<i32>(1) as u8;
    let new_state = ctx.arg::<i32>(2) as u8;
    // A listener's child is SYN_RECV for the microseconds until the same softirq establishes it, and on
    // 5.10 has no remote address yet. Its life begins with SYN_RECV -> ESTABLISHED.
    if old_state == LISTEN && new_state == SYN_RECV {
        return 0;
    }
    // SAFETY: no arguments.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let flags = fill::flags(sk);
    let value = match new_state {
        // Only the application's own connect, listen, close or shutdown leads to these, in its context.
        SYN_SENT | LISTEN | FIN_WAIT1 | LAST_ACK => task::current_tgid(LOST_STATE),
        CLOSE_WAIT => fill::unread_bytes(sk, flags),
        CLOSE => fill::error_and_retransmits(sk),
        _ => 0,
    };
    event::send(
        &ctx,
        sk,
        time_ns,
        What { kind: KIND_TRANSITION, old_state, new_state, flags, value, lost: LOST_STATE },
    );
    0
}
