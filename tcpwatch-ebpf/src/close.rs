//! Close by the application: tcp_close (net/ipv4/tcp.c), entered when the last descriptor of the socket is gone,
//! in the context of whoever dropped it.
//!
//! Only for sockets whose close no state change will tell: from ESTABLISHED and CLOSE_WAIT it does, with the
//! same process (unless the close is abortive: those sockets go straight to CLOSE, so they are told here).

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use tcpwatch_common::{
    CloseEvent, KIND_CLOSE,
    counter::LOST_CLOSE,
    state::{CLOSE, LISTEN},
};

use crate::{
    event::{self, What},
    field::{Kernel, OFF_REGS_ARG0, OFF_SKC_STATE, Raw, Typed},
    fill, registers, ring,
    task::{self, By},
};

#[fentry(function = "tcp_close")]
pub fn close_fentry(ctx: FEntryContext) -> i32 {
    if let Some(sk) = Typed::new(ctx.arg(0)).and_then(Kernel::tcp_sock) {
        closed(sk);
    }
    0
}

#[kprobe]
pub fn close_kprobe(ctx: ProbeContext) -> u32 {
    let sk = Raw::new(registers::read(&ctx, &OFF_REGS_ARG0) as *const u8);
    if let Some(sk) = sk.and_then(Kernel::tcp_sock) {
        closed(sk);
    }
    0
}

#[inline(always)]
fn closed(sk: impl Kernel) {
    let state = sk.read::<u8>(&OFF_SKC_STATE);
    let flags = fill::flags(sk);
    if state == CLOSE || state == LISTEN || fill::closes_in_order(sk, state, flags) {
        return;
    }
    // SAFETY: no arguments.
    let mut time_ns = unsafe { bpf_ktime_get_ns() };
    let what = What {
        kind: KIND_CLOSE,
        old_state: state,
        new_state: state,
        flags,
        value: task::current_tgid(&mut time_ns, By::Ring, LOST_CLOSE),
        lost: LOST_CLOSE,
    };
    let unread_bytes = fill::unread_bytes(sk, flags);
    let event = CloseEvent { socket: event::describe(sk, time_ns, &what), unread_bytes, zero: 0 };
    let Some(mut entry) = ring::reserve::<CloseEvent>(what.lost) else { return };
    entry.write(event);
    ring::submit(entry);
}
