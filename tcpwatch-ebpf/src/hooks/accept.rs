//! Accept by the application: the return of inet_csk_accept (net/ipv4/inet_connection_sock.c), in the context of
//! the process that accepts, by any system call or io_uring. In: the accepted socket. Out: a record with that process.
//! Deliberately absent: accepts that fail.

use aya_ebpf::{
    EbpfContext,
    macros::{fexit, kretprobe},
    programs::{FExitContext, RetProbeContext},
};
use tcpwatch_common::{KIND_ACCEPT, counter::LOST_ACCEPT};

use crate::{
    out::{
        socket_event::{self, What},
        task_event::{self, By},
    },
    read::{
        clock,
        offsets::{OFF_REGS_RETURN, OFF_SKC_STATE},
        pointer::{BtfPtr, KernelPtr, ProbedPtr},
        registers, tcp_sock,
    },
};

/// inet_csk_accept(sk, arg), since Linux 6.10: the return value follows its two arguments.
#[fexit(function = "inet_csk_accept")]
pub fn accept_fexit(ctx: FExitContext) -> i32 {
    if let Some(sk) = BtfPtr::new(ctx.arg(2)).and_then(KernelPtr::tcp_sock) {
        accepted(&ctx, sk);
    }
    0
}

/// inet_csk_accept(sk, flags, err, kern), before Linux 6.10.
#[fexit(function = "inet_csk_accept")]
pub fn accept_fexit_4(ctx: FExitContext) -> i32 {
    if let Some(sk) = BtfPtr::new(ctx.arg(4)).and_then(KernelPtr::tcp_sock) {
        accepted(&ctx, sk);
    }
    0
}

#[kretprobe]
pub fn accept_kprobe(ctx: RetProbeContext) -> u32 {
    let sk = ProbedPtr::new(registers::read(&ctx, &OFF_REGS_RETURN) as *const u8);
    if let Some(sk) = sk.and_then(KernelPtr::tcp_sock) {
        accepted(&ctx, sk);
    }
    0
}

#[inline(always)]
fn accepted(ctx: &impl EbpfContext, sk: impl KernelPtr) {
    let state = sk.read::<u8>(&OFF_SKC_STATE);
    let mut time_ns = clock::now_ns();
    let what = What {
        kind: KIND_ACCEPT,
        old_state: state,
        new_state: state,
        flags: tcp_sock::flags(sk),
        value: task_event::current_tgid(&mut time_ns, By::Ring, LOST_ACCEPT),
    };
    socket_event::emit(ctx, sk, time_ns, &what, LOST_ACCEPT);
}
