//! A record about one socket. In: what the hook knows, and the socket. Out: a [`SocketEvent`], alone or as the
//! beginning of a longer record. Deliberately absent: what the longer records add.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::debug;
use tcpwatch_common::{FLAG_MINISOCK, InterfaceEvent, KIND_INTERFACE, SocketEvent};

use crate::{
    out::{LOG_TARGET, ring},
    read::{
        endpoints, identity, netns,
        offsets::OFF_TW_SUBSTATE,
        pointer::{KernelPtr, bytes},
    },
};

/// What the hook knows; the rest of the record is read from the socket.
pub struct What {
    pub kind: u8,
    pub old_state: u8,
    pub new_state: u8,
    pub flags: u8,
    pub value: u32,
}

/// The record.
#[inline(always)]
pub fn describe(sk: impl KernelPtr, time_ns: u64, what: &What) -> SocketEvent {
    let (saddr, daddr) = endpoints::addresses(sk);
    let (sport, dport) = endpoints::ports(sk);
    SocketEvent {
        kind: what.kind,
        old_state: what.old_state,
        new_state: what.new_state,
        flags: what.flags,
        netns: netns::inode(sk),
        time_ns,
        cookie: identity::of(sk),
        value: what.value,
        sport,
        dport,
        saddr: bytes(saddr),
        daddr: bytes(daddr),
    }
}

/// The record of the interface that a socket is bound to; written just before `event`, a record about the socket.
#[inline(always)]
pub fn interface(sk: impl KernelPtr, event: &SocketEvent) -> InterfaceEvent {
    let SocketEvent { time_ns, cookie, .. } = *event;
    InterfaceEvent {
        kind: KIND_INTERFACE,
        zero: [0; 3],
        interface: endpoints::interface(sk),
        time_ns,
        cookie,
    }
}

/// The record of a minisock, whose interface takes the place of the cookie.
#[inline(always)]
pub fn describe_minisock(tw: impl KernelPtr, time_ns: u64, kind: u8) -> SocketEvent {
    let (saddr, daddr) = endpoints::addresses(tw);
    let state = tw.read(&OFF_TW_SUBSTATE);
    SocketEvent {
        kind,
        old_state: state,
        new_state: state,
        flags: FLAG_MINISOCK,
        netns: netns::inode(tw),
        time_ns,
        cookie: endpoints::interface(tw) as u64,
        value: 0,
        sport: endpoints::minisock_local_port(tw),
        dport: endpoints::remote_port(tw),
        saddr: bytes(saddr),
        daddr: bytes(daddr),
    }
}

/// Writes the record to the ring; `lost`: the signal's `counter::LOST_*`. A loss is reported in the log that `--debug`
/// shows, too.
#[inline(always)]
pub fn emit(ctx: &impl EbpfContext, sk: impl KernelPtr, time_ns: u64, what: &What, lost: u32) {
    let event = describe(sk, time_ns, what);
    if !ring::emit(event, lost) {
        let SocketEvent { cookie, old_state, new_state, .. } = event;
        debug!(ctx, target: LOG_TARGET, "no room for socket {:x}, state {} to {}", cookie, old_state, new_state);
    }
}
