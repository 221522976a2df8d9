//! Close by the application: fentry of tcp_close (net/ipv4/tcp.c), entered when the last descriptor of the
//! socket is gone, in the context of whoever dropped it.
//!
//! Only for sockets whose close no state change will tell: from ESTABLISHED and CLOSE_WAIT it does, with the
//! same process (unless the close is abortive: those sockets go straight to CLOSE, so they are told here).

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::fentry, programs::FEntryContext};
use tcpwatch_common::{
    KIND_CLOSE,
    counter::LOST_CLOSE,
    state::{CLOSE, LISTEN},
};

use crate::{
    event::{self, What},
    field::{KernelPtr, OFF_SKC_STATE},
    fill, task,
};

#[fentry(function = "tcp_close")]
pub fn tcp_close(ctx: FEntryContext) -> i32 {
    let Some(sk) = KernelPtr::new(ctx.arg::<*const u8>(0)).and_then(fill::tcp_sock) else { return 0 };
    let state = sk.read::<u8>(&OFF_SKC_STATE);
    let flags = fill::flags(sk);
    if state == CLOSE || state == LISTEN || fill::closes_in_order(sk, state, flags) {
        return 0;
    }
    // SAFETY: no arguments.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let what = What {
        kind: KIND_CLOSE,
        old_state: state,
        new_state: state,
        flags,
        value: task::current_tgid(LOST_CLOSE),
        lost: LOST_CLOSE,
    };
    event::send(&ctx, sk, time_ns, what);
    0
}
