//! Close by the application: tcp_close (net/ipv4/tcp.c), entered when the last descriptor of the socket is gone, in
//! the context of the process that dropped it. In: the socket. Out: a record with that process, and what it left
//! unread.
//!
//! Deliberately absent: closes that a state change reports with the same process, which are those from ESTABLISHED and
//! CLOSE_WAIT, unless they are abortive: then the socket goes straight to CLOSE, and the process is reported here.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use tcpwatch_common::{
    CloseEvent, KIND_CLOSE,
    counter::LOST_CLOSE,
    state::{CLOSE, LISTEN},
};

use crate::{
    out::{
        ring,
        socket_event::{self, What},
        task_event::{self, By},
    },
    read::{
        clock,
        offsets::{OFF_REGS_ARG0, OFF_SKC_STATE},
        pointer::{BtfPtr, KernelPtr, ProbedPtr},
        registers, tcp_sock,
    },
};

#[fentry(function = "tcp_close")]
pub fn close_fentry(ctx: FEntryContext) -> i32 {
    if let Some(sk) = BtfPtr::new(ctx.arg(0)).and_then(KernelPtr::tcp_sock) {
        closed(sk);
    }
    0
}

#[kprobe]
pub fn close_kprobe(ctx: ProbeContext) -> u32 {
    let sk = ProbedPtr::new(registers::read(&ctx, &OFF_REGS_ARG0) as *const u8);
    if let Some(sk) = sk.and_then(KernelPtr::tcp_sock) {
        closed(sk);
    }
    0
}

#[inline(always)]
fn closed(sk: impl KernelPtr) {
    let state = sk.read::<u8>(&OFF_SKC_STATE);
    let flags = tcp_sock::flags(sk);
    if state == CLOSE || state == LISTEN || tcp_sock::closes_in_order(sk, state, flags) {
        return;
    }
    let mut time_ns = clock::now_ns();
    let what = What {
        kind: KIND_CLOSE,
        old_state: state,
        new_state: state,
        flags,
        value: task_event::current_tgid(&mut time_ns, By::Ring, LOST_CLOSE),
    };
    let unread_bytes = tcp_sock::unread_bytes(sk, flags);
    let event = CloseEvent { socket: socket_event::describe(sk, time_ns, &what), unread_bytes, zero: 0 };
    ring::emit(event, LOST_CLOSE);
}
