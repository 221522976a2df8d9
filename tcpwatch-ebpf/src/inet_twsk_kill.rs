//! The end of a minisock: fentry of inet_twsk_kill (net/ipv4/inet_timewait_sock.c), which unhashes it when its
//! timer fires, a reset or SYN replaces it, or its namespace goes.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::fentry, programs::FEntryContext};
use tcpwatch_common::{FLAG_MINISOCK, KIND_MINISOCK_END, SocketEvent, counter::LOST_MINISOCK, state::CLOSE};

use crate::{
    field::{KernelPtr, OFF_SKC_DPORT, OFF_TW_SPORT, OFF_TW_SUBSTATE},
    fill, ring,
};

#[fentry(function = "inet_twsk_kill")]
pub fn inet_twsk_kill(ctx: FEntryContext) -> i32 {
    let Some(tw) = KernelPtr::new(ctx.arg::<*const u8>(0)) else { return 0 };
    let (saddr, daddr) = fill::addresses(tw);
    let Some(mut entry) = ring::reserve::<SocketEvent>(LOST_MINISOCK) else { return 0 };
    entry.write(SocketEvent {
        kind: KIND_MINISOCK_END,
        old_state: tw.read(&OFF_TW_SUBSTATE),
        new_state: CLOSE,
        flags: FLAG_MINISOCK,
        netns: fill::netns(tw),
        // SAFETY: no arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        cookie: 0,
        value: 0,
        sport: u16::from_be(tw.read(&OFF_TW_SPORT)),
        dport: u16::from_be(tw.read(&OFF_SKC_DPORT)),
        saddr: fill::bytes(saddr),
        daddr: fill::bytes(daddr),
    });
    ring::submit(entry);
    0
}
