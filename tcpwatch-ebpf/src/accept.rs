//! Accept by the application: the return of inet_csk_accept (net/ipv4/inet_connection_sock.c), in the context of
//! whoever accepted, by whichever system call or io_uring.

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_ktime_get_ns,
    macros::{fexit, kretprobe},
    programs::{FExitContext, RetProbeContext},
};
use tcpwatch_common::{KIND_ACCEPT, counter::LOST_ACCEPT};

use crate::{
    event::{self, What},
    field::{Kernel, OFF_REGS_RETURN, OFF_SKC_STATE, Raw, Typed},
    fill, registers,
    task::{self, By},
};

/// inet_csk_accept(sk, arg), since Linux 6.10: what it returned follows its two arguments.
#[fexit(function = "inet_csk_accept")]
pub fn accept_fexit(ctx: FExitContext) -> i32 {
    if let Some(sk) = Typed::new(ctx.arg(2)).and_then(Kernel::tcp_sock) {
        accepted(&ctx, sk);
    }
    0
}

/// inet_csk_accept(sk, flags, err, kern), before.
#[fexit(function = "inet_csk_accept")]
pub fn accept_fexit_4(ctx: FExitContext) -> i32 {
    if let Some(sk) = Typed::new(ctx.arg(4)).and_then(Kernel::tcp_sock) {
        accepted(&ctx, sk);
    }
    0
}

#[kretprobe]
pub fn accept_kprobe(ctx: RetProbeContext) -> u32 {
    let sk = Raw::new(registers::read(&ctx, &OFF_REGS_RETURN) as *const u8);
    if let Some(sk) = sk.and_then(Kernel::tcp_sock) {
        accepted(&ctx, sk);
    }
    0
}

#[inline(always)]
fn accepted(ctx: &impl EbpfContext, sk: impl Kernel) {
    let state = sk.read::<u8>(&OFF_SKC_STATE);
    // SAFETY: no arguments.
    let mut time_ns = unsafe { bpf_ktime_get_ns() };
    let what = What {
        kind: KIND_ACCEPT,
        old_state: state,
        new_state: state,
        flags: fill::flags(sk),
        value: task::current_tgid(&mut time_ns, By::Ring, LOST_ACCEPT),
        lost: LOST_ACCEPT,
    };
    event::send(ctx, sk, time_ns, what);
}
