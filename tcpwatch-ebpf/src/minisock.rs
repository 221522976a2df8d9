//! The end of a minisock: inet_twsk_kill (net/ipv4/inet_timewait_sock.c), which unhashes it when its timer fires,
//! a reset or SYN replaces it, or its namespace goes.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use tcpwatch_common::{KIND_MINISOCK_END, SocketEvent, counter::LOST_MINISOCK, state::CLOSE};

use crate::{
    event,
    field::{Kernel, OFF_REGS_ARG0, Raw, Typed},
    registers, ring,
};

#[fentry(function = "inet_twsk_kill")]
pub fn minisock_fentry(ctx: FEntryContext) -> i32 {
    if let Some(tw) = Typed::new(ctx.arg(0)) {
        ended(tw);
    }
    0
}

#[kprobe]
pub fn minisock_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(tw) = Raw::new(registers::read(&ctx, &OFF_REGS_ARG0) as *const u8) {
        ended(tw);
    }
    0
}

#[inline(always)]
fn ended(tw: impl Kernel) {
    // SAFETY: no arguments.
    let event = event::describe_minisock(tw, unsafe { bpf_ktime_get_ns() }, KIND_MINISOCK_END);
    let Some(mut entry) = ring::reserve::<SocketEvent>(LOST_MINISOCK) else { return };
    entry.write(SocketEvent { new_state: CLOSE, ..event });
    ring::submit(entry);
}
