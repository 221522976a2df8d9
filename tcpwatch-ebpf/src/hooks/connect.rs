//! Connects that fail before SYN_SENT, for want of a route for one, and so change no state: the return of
//! tcp_v4_connect (net/ipv4/tcp_ipv4.c) and tcp_v6_connect (net/ipv6/tcp_ipv6.c), in the context of the process that
//! connects. In: the socket, the address to connect to, the errno. Out: a record with all three and the process.
//! Deliberately absent: connects that fail later, which a state change reports.
//!
//! Both functions return the failures after SYN_SENT too, when the change of state is already reported, and
//! tcp_v6_connect returns what tcp_v4_connect does for a v4-mapped address. So a program that reports a failure which
//! will be returned once more leaves a mark, and the one that finds the mark removes it and reports nothing.

use aya_ebpf::{macros::fexit, programs::FExitContext};
use tcpwatch_common::{FLAG_BOUND, KIND_CONNECT_FAILED, SocketEvent, counter::LOST_CONNECT, state::CLOSE};

use crate::{
    out::{
        failed_connects, ring,
        socket_event::{self, What},
        task_event::{self, By},
    },
    read::{
        clock, identity,
        offsets::OFF_SKC_FAMILY,
        pointer::{AF_INET, AF_INET6, BtfPtr, KernelPtr, bytes},
        sockaddr, tcp_sock,
    },
};

/// tcp_v4_connect(sk, uaddr, addr_len).
#[fexit(function = "tcp_v4_connect")]
pub fn connect_v4_fexit(ctx: FExitContext) -> i32 {
    returned(&ctx, AF_INET);
    0
}

/// tcp_v6_connect(sk, uaddr, addr_len).
#[fexit(function = "tcp_v6_connect")]
pub fn connect_v6_fexit(ctx: FExitContext) -> i32 {
    returned(&ctx, AF_INET6);
    0
}

/// `family`: which of the two functions it is.
#[inline(always)]
fn returned(ctx: &FExitContext, family: u16) {
    let error = ctx.arg::<i32>(3);
    if error >= 0 {
        return;
    }
    let Some(sk) = BtfPtr::new(ctx.arg(0)).and_then(KernelPtr::tcp_sock) else { return };
    // If a SYN was sent, the socket was in SYN_SENT; no mark is left for that.
    if tcp_sock::unsent_flag(sk) == 0 {
        return;
    }
    let cookie = identity::of(sk);
    if !failed_connects::take_reported(cookie) {
        report(ctx, sk, family, error);
    }
    if family == AF_INET && sk.read::<u16>(&OFF_SKC_FAMILY) == AF_INET6 {
        failed_connects::mark_reported(cookie);
    }
}

#[inline(always)]
fn report(ctx: &FExitContext, sk: BtfPtr, family: u16, error: i32) {
    // Without a valid address, nothing was connected to.
    let Some((daddr, dport)) = sockaddr::read(ctx.arg(1), ctx.arg(2), family) else { return };
    let mut time_ns = clock::now_ns();
    let tgid = task_event::current_tgid(&mut time_ns, By::Ring, LOST_CONNECT);
    let error = if error < -255 { 255 } else { -error as u32 };
    let what = What {
        kind: KIND_CONNECT_FAILED,
        old_state: CLOSE,
        new_state: CLOSE,
        flags: tcp_sock::flags(sk),
        value: error << 24 | tgid,
    };
    let event = SocketEvent { daddr: bytes(daddr), dport, ..socket_event::describe(sk, time_ns, &what) };
    if event.flags & FLAG_BOUND != 0 {
        ring::emit(socket_event::interface(sk, &event), LOST_CONNECT);
    }
    ring::emit(event, LOST_CONNECT);
}
