//! The end of a minisock: inet_twsk_kill (net/ipv4/inet_timewait_sock.c), which unhashes it when its timer fires,
//! a reset or SYN replaces it, or its namespace goes.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use tcpwatch_common::{FLAG_MINISOCK, KIND_MINISOCK_END, SocketEvent, counter::LOST_MINISOCK, state::CLOSE};

use crate::{
    field::{Kernel, OFF_REGS_ARG0, OFF_SKC_DPORT, OFF_TW_SPORT, OFF_TW_SUBSTATE, Raw, Typed},
    fill, registers, ring,
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
    let (saddr, daddr) = fill::addresses(tw);
    let netns = fill::netns(tw);
    let old_state = tw.read(&OFF_TW_SUBSTATE);
    let (sport, dport) = (tw.read(&OFF_TW_SPORT), tw.read(&OFF_SKC_DPORT));
    let Some(mut entry) = ring::reserve::<SocketEvent>(LOST_MINISOCK) else { return };
    entry.write(SocketEvent {
        kind: KIND_MINISOCK_END,
        old_state,
        new_state: CLOSE,
        flags: FLAG_MINISOCK,
        netns,
        // SAFETY: no arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        cookie: 0,
        value: 0,
        sport: u16::from_be(sport),
        dport: u16::from_be(dport),
        saddr: fill::bytes(saddr),
        daddr: fill::bytes(daddr),
    });
    ring::submit(entry);
}
