//! The timer of a TIME_WAIT that is set anew: __inet_twsk_schedule (net/ipv4/inet_timewait_sock.c) with `rearm`.
//! tcp_timewait_state_process (net/ipv4/tcp_minisocks.c) calls it so when the peer's FIN has turned a minisock's
//! FIN_WAIT2 into TIME_WAIT, which nothing else reports, and for segments that a TIME_WAIT answers. In: the minisock.
//! Out: a record with its ends. Deliberately absent: the first start of its timer, which the socket's state change
//! implies, and whether the state is new, which the function does not know.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use tcpwatch_common::{KIND_TIME_WAIT, counter::LOST_TIME_WAIT, state::TIME_WAIT};

use crate::{
    out::{ring, socket_event},
    read::{
        clock,
        offsets::{OFF_REGS_ARG0, OFF_REGS_ARG2, OFF_TW_SUBSTATE},
        pointer::{BtfPtr, KernelPtr, ProbedPtr},
        registers,
    },
};

#[fentry(function = "__inet_twsk_schedule")]
pub fn time_wait_fentry(ctx: FEntryContext) -> i32 {
    if ctx.arg::<u8>(2) != 0
        && let Some(tw) = BtfPtr::new(ctx.arg(0))
    {
        rearmed(tw);
    }
    0
}

#[kprobe]
pub fn time_wait_kprobe(ctx: ProbeContext) -> u32 {
    // A bool: the upper bits of its register are undefined.
    if registers::read(&ctx, &OFF_REGS_ARG2) as u8 != 0
        && let Some(tw) = ProbedPtr::new(registers::read(&ctx, &OFF_REGS_ARG0) as *const u8)
    {
        rearmed(tw);
    }
    0
}

#[inline(always)]
fn rearmed(tw: impl KernelPtr) {
    if tw.read::<u8>(&OFF_TW_SUBSTATE) == TIME_WAIT {
        ring::emit(socket_event::describe_minisock(tw, clock::now_ns(), KIND_TIME_WAIT), LOST_TIME_WAIT);
    }
}
