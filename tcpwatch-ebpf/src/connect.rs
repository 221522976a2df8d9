//! Connects that fail before SYN_SENT, for want of a route for one, and so change no state: the return of tcp_v4_connect
//! (net/ipv4/tcp_ipv4.c) and tcp_v6_connect (net/ipv6/tcp_ipv6.c), in the context of whoever connects.
//!
//! Both return the failures after SYN_SENT too, which the change of state has told by then, and tcp_v6_connect returns what
//! tcp_v4_connect does for a v4-mapped address. So whoever tells of a failure that is to be returned once more leaves a
//! mark, and whoever finds it takes it away and says nothing.

use aya_ebpf::{
    helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel},
    macros::{fexit, map},
    maps::Array,
    programs::FExitContext,
};
use tcpwatch_common::{KIND_CONNECT_FAILED, SocketEvent, counter::LOST_CONNECT, state::CLOSE};

use crate::{
    event::{self, What},
    field::{AF_INET, AF_INET6, Kernel, OFF_SKC_FAMILY, Typed},
    fill, ring,
    task::{self, By},
};

/// One for each hash of a cookie. A mark stays for the microseconds until the function returns, so there are about as many
/// as processors. Never full: one that takes another's place makes that failure be told twice.
const MARKS_BITS: u32 = 10;

/// The cookies of sockets whose failure is told and not returned yet.
#[map]
static FAILED_CONNECTS: Array<u64> = Array::with_max_entries(1 << MARKS_BITS, 0);

/// 2^64 divided by the golden ratio: spreads numbers that follow each other, and addresses too.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

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

/// The failure is told, and tcp_v4_connect or tcp_v6_connect will return it.
#[inline(always)]
pub fn mark_told(cookie: u64) {
    if let Some(mark) = mark(cookie) {
        // SAFETY: a value of the map; 8 bytes are written as one.
        unsafe { *mark = cookie };
    }
}

#[inline(always)]
fn is_told(cookie: u64) -> bool {
    let Some(mark) = mark(cookie) else { return false };
    // SAFETY: a value of the map; 8 bytes are read and written as one.
    let told = unsafe { *mark == cookie };
    if told {
        // SAFETY: as above. 0 is no cookie.
        unsafe { *mark = 0 };
    }
    told
}

#[inline(always)]
fn mark(cookie: u64) -> Option<*mut u64> {
    FAILED_CONNECTS.get_ptr_mut((cookie.wrapping_mul(SPREAD) >> (u64::BITS - MARKS_BITS)) as u32)
}

/// `family`: which of the two functions it is.
#[inline(always)]
fn returned(ctx: &FExitContext, family: u16) {
    let error = ctx.arg::<i32>(3);
    if error >= 0 {
        return;
    }
    let Some(sk) = Typed::new(ctx.arg(0)).and_then(Kernel::tcp_sock) else { return };
    // A SYN that was sent came after SYN_SENT; nobody leaves a mark for that.
    if fill::unsent(sk) == 0 {
        return;
    }
    let cookie = fill::cookie(sk);
    if !is_told(cookie) {
        tell(ctx, sk, family, error);
    }
    if family == AF_INET && sk.read::<u16>(&OFF_SKC_FAMILY) == AF_INET6 {
        mark_told(cookie);
    }
}

#[inline(always)]
fn tell(ctx: &FExitContext, sk: Typed, family: u16, error: i32) {
    // Who names no address tries to connect to nothing.
    let Some((daddr, dport)) = destination(ctx, family) else { return };
    // SAFETY: no arguments.
    let mut time_ns = unsafe { bpf_ktime_get_ns() };
    let tgid = task::current_tgid(&mut time_ns, By::Ring, LOST_CONNECT);
    let error = if error < -255 { 255 } else { -error as u32 };
    let what = What {
        kind: KIND_CONNECT_FAILED,
        old_state: CLOSE,
        new_state: CLOSE,
        flags: fill::flags(sk),
        value: error << 24 | tgid,
        lost: LOST_CONNECT,
    };
    let event = SocketEvent { daddr: fill::bytes(daddr), dport, ..event::describe(sk, time_ns, &what) };
    let Some(mut entry) = ring::reserve::<SocketEvent>(what.lost) else { return };
    entry.write(event);
    ring::submit(entry);
}

/// The beginning of `struct sockaddr_in` (include/uapi/linux/in.h).
#[derive(Clone, Copy)]
#[repr(C)]
struct SockaddrIn {
    family: u16,
    port: u16,
    addr: u32,
}

/// Of the same length with all that fills it up.
const SOCKADDR_IN_LEN: i32 = 16;

/// `struct sockaddr_in6` (include/uapi/linux/in6.h) without its scope, which callers may leave out.
#[derive(Clone, Copy)]
#[repr(C)]
struct SockaddrIn6 {
    family: u16,
    port: u16,
    flowinfo: u32,
    addr: [u64; 2],
}

/// The address and port to connect to; `None` where the caller gave none of this family.
#[inline(always)]
fn destination(ctx: &FExitContext, family: u16) -> Option<([u64; 2], u16)> {
    let (uaddr, addr_len) = (ctx.arg::<*const u8>(1), ctx.arg::<i32>(2));
    // SAFETY: the helper checks the address; any bytes are numbers.
    let (found, port, addr) = unsafe {
        if family == AF_INET {
            if addr_len < SOCKADDR_IN_LEN {
                return None;
            }
            let uaddr = bpf_probe_read_kernel(uaddr.cast::<SockaddrIn>()).ok()?;
            (uaddr.family, uaddr.port, fill::v4_mapped(uaddr.addr))
        } else {
            if addr_len < size_of::<SockaddrIn6>() as i32 {
                return None;
            }
            let uaddr = bpf_probe_read_kernel(uaddr.cast::<SockaddrIn6>()).ok()?;
            (uaddr.family, uaddr.port, uaddr.addr)
        }
    };
    (found == family).then_some((addr, u16::from_be(port)))
}
