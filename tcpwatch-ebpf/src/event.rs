//! One record about one socket.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::debug;
use tcpwatch_common::{FLAG_MINISOCK, SocketEvent};

use crate::{
    field::{Kernel, OFF_SKC_DPORT, OFF_TW_SPORT, OFF_TW_SUBSTATE},
    fill, ring,
};

/// What the hook knows; the rest of the record is read from the socket.
pub struct What {
    pub kind: u8,
    pub old_state: u8,
    pub new_state: u8,
    pub flags: u8,
    pub value: u32,
    /// The calling program's `counter::LOST_*`.
    pub lost: u32,
}

/// The record.
#[inline(always)]
pub fn describe(sk: impl Kernel, time_ns: u64, what: &What) -> SocketEvent {
    let (saddr, daddr) = fill::addresses(sk);
    let (sport, dport) = fill::ports(sk);
    SocketEvent {
        kind: what.kind,
        old_state: what.old_state,
        new_state: what.new_state,
        flags: what.flags,
        netns: fill::netns(sk),
        time_ns,
        cookie: fill::cookie(sk),
        value: what.value,
        sport,
        dport,
        saddr: fill::bytes(saddr),
        daddr: fill::bytes(daddr),
    }
}

/// The record of a minisock, which has no cookie to be told by.
#[inline(always)]
pub fn describe_minisock(tw: impl Kernel, time_ns: u64, kind: u8) -> SocketEvent {
    let (saddr, daddr) = fill::addresses(tw);
    let state = tw.read(&OFF_TW_SUBSTATE);
    SocketEvent {
        kind,
        old_state: state,
        new_state: state,
        flags: FLAG_MINISOCK,
        netns: fill::netns(tw),
        time_ns,
        cookie: 0,
        value: 0,
        sport: u16::from_be(tw.read(&OFF_TW_SPORT)),
        dport: u16::from_be(tw.read(&OFF_SKC_DPORT)),
        saddr: fill::bytes(saddr),
        daddr: fill::bytes(daddr),
    }
}

/// Writes the record; where there is no room, says so in the log that `--debug` shows.
#[inline(always)]
pub fn send(ctx: &impl EbpfContext, sk: impl Kernel, time_ns: u64, what: What) {
    let event = describe(sk, time_ns, &what);
    let Some(mut entry) = ring::reserve::<SocketEvent>(what.lost) else {
        debug!(ctx, "no room for socket {:x}, state {} to {}", event.cookie, what.old_state, what.new_state);
        return;
    };
    entry.write(event);
    ring::submit(entry);
}
