//! The end of a minisock: inet_twsk_kill (net/ipv4/inet_timewait_sock.c), which unhashes it when its timer fires, a
//! reset or SYN replaces it, or its namespace goes. In: the minisock. Out: a record with its ends. Deliberately
//! absent: why it ended, which the function does not know.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use tcpwatch_common::{KIND_MINISOCK_END, SocketEvent, counter::LOST_MINISOCK, state::CLOSE};

use crate::{
    out::{ring, socket_event},
    read::{
        clock,
        offsets::OFF_REGS_ARG0,
        pointer::{BtfPtr, KernelPtr, ProbedPtr},
        registers,
    },
};

#[fentry(function = "inet_twsk_kill")]
pub fn minisock_fentry(ctx: FEntryContext) -> i32 {
    if let Some(tw) = BtfPtr::new(ctx.arg(0)) {
        ended(tw);
    }
    0
}

#[kprobe]
pub fn minisock_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(tw) = ProbedPtr::new(registers::read(&ctx, &OFF_REGS_ARG0) as *const u8) {
        ended(tw);
    }
    0
}

#[inline(always)]
fn ended(tw: impl KernelPtr) {
    let event = socket_event::describe_minisock(tw, clock::now_ns(), KIND_MINISOCK_END);
    ring::emit(SocketEvent { new_state: CLOSE, ..event }, LOST_MINISOCK);
}
