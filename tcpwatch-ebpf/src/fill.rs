//! What a record says about a socket: addresses, ports, namespace, flags.

use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_skc_to_tcp_sock};
use tcpwatch_common::{
    FLAG_FIN_RECEIVED, FLAG_HELD, FLAG_IPV6, FLAG_ORPHAN, FLAG_PASSIVE,
    state::{CLOSE_WAIT, ESTABLISHED},
};

use crate::field::{
    KernelPtr, OFF_COPIED_SEQ, OFF_INET_SPORT, OFF_NET_INUM, OFF_RCV_NXT, OFF_SK_ERR, OFF_SK_MAX_ACK_BACKLOG,
    OFF_SK_SOCKET, OFF_SK_TYPE, OFF_SKC_DADDR, OFF_SKC_DPORT, OFF_SKC_FAMILY, OFF_SKC_FLAGS, OFF_SKC_NET,
    OFF_SKC_RCV_SADDR, OFF_SKC_V6_DADDR, OFF_SKC_V6_RCV_SADDR, OFF_TOTAL_RETRANS,
};

/// include/linux/socket.h
pub const AF_INET: u16 = 2;
/// include/linux/socket.h
pub const AF_INET6: u16 = 10;
/// include/linux/net.h
const SOCK_STREAM: u16 = 1;
/// Bit numbers of `sk_flags` (enum sock_flags, include/net/sock.h): unchanged since Linux 2.6.
const SOCK_DEAD: u32 = 0;
const SOCK_DONE: u32 = 1;
const SOCK_LINGER: u32 = 5;

/// The socket as a `struct tcp_sock`, if it is one: SCTP, DCCP and MPTCP sockets pass through the same
/// hooks, raw sockets carry protocol numbers too.
#[inline(always)]
pub fn tcp_sock(sk: KernelPtr) -> Option<KernelPtr> {
    // SAFETY: the verifier checks that the argument is a socket.
    let tcp = unsafe { bpf_skc_to_tcp_sock(sk.as_ptr().cast_mut().cast()) };
    KernelPtr::new(tcp.cast()).filter(|sk| sk.read::<u16>(&OFF_SK_TYPE) == SOCK_STREAM)
}

/// The kernel's own identity of the socket, made on first request.
#[inline(always)]
pub fn cookie(sk: KernelPtr) -> u64 {
    // SAFETY: the verifier checks that the argument is a socket.
    unsafe { bpf_get_socket_cookie(sk.as_ptr().cast_mut().cast()) }
}

/// Inode number of the socket's network namespace, 0 where there is none.
#[inline(always)]
pub fn netns(sk: KernelPtr) -> u32 {
    sk.follow(&OFF_SKC_NET).map_or(0, |net| net.read(&OFF_NET_INUM))
}

/// Local and remote address; IPv4 as `::ffff:a.b.c.d`.
#[inline(always)]
pub fn addresses(sk: KernelPtr) -> ([u64; 2], [u64; 2]) {
    if sk.read::<u16>(&OFF_SKC_FAMILY) == AF_INET6 {
        (sk.read_16_bytes(&OFF_SKC_V6_RCV_SADDR), sk.read_16_bytes(&OFF_SKC_V6_DADDR))
    } else {
        (v4_mapped(sk.read(&OFF_SKC_RCV_SADDR)), v4_mapped(sk.read(&OFF_SKC_DADDR)))
    }
}

#[inline(always)]
fn v4_mapped(address: u32) -> [u64; 2] {
    // Bytes 8..16 of the address: 0 0 ff ff a b c d, as they lie in memory.
    [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]) | low_half_of_memory(address)]
}

#[cfg(target_endian = "little")]
#[inline(always)]
fn low_half_of_memory(address: u32) -> u64 {
    (address as u64) << 32
}

#[cfg(target_endian = "big")]
#[inline(always)]
fn low_half_of_memory(address: u32) -> u64 {
    address as u64
}

/// The address as its 16 bytes.
#[inline(always)]
pub fn bytes<const N: usize, const M: usize>(words: [u64; N]) -> [u8; M] {
    const { assert!(N * 8 == M) };
    // SAFETY: the same number of bytes, all bit patterns are valid.
    unsafe { core::mem::transmute_copy(&words) }
}

/// Local and remote port. Not `skc_num`: the kernel has cleared that when a socket reaches CLOSE.
#[inline(always)]
pub fn ports(sk: KernelPtr) -> (u16, u16) {
    (u16::from_be(sk.read(&OFF_INET_SPORT)), u16::from_be(sk.read(&OFF_SKC_DPORT)))
}

/// `FLAG_*` of the socket as it stands.
#[inline(always)]
pub fn flags(sk: KernelPtr) -> u8 {
    let sk_flags = sk.read::<u64>(&OFF_SKC_FLAGS);
    let mut flags = 0;
    if sk.read::<u16>(&OFF_SKC_FAMILY) == AF_INET6 {
        flags |= FLAG_IPV6;
    }
    if sk_flags & (1 << SOCK_DONE) != 0 {
        flags |= FLAG_FIN_RECEIVED;
    }
    if sk_flags & (1 << SOCK_DEAD) != 0 {
        flags |= FLAG_ORPHAN;
    }
    if sk.read::<u64>(&OFF_SK_SOCKET) != 0 {
        flags |= FLAG_HELD;
    }
    if sk.read::<u32>(&OFF_SK_MAX_ACK_BACKLOG) != 0 {
        flags |= FLAG_PASSIVE;
    }
    flags
}

/// Received bytes that the application has not read; a FIN takes one sequence number of its own.
#[inline(always)]
pub fn unread_bytes(sk: KernelPtr, flags: u8) -> u32 {
    let waiting = sk.read::<u32>(&OFF_RCV_NXT).wrapping_sub(sk.read::<u32>(&OFF_COPIED_SEQ));
    if flags & FLAG_FIN_RECEIVED != 0 { waiting.saturating_sub(1) } else { waiting }
}

/// The error that ended the socket and its retransmits, as `SocketEvent::value` carries them.
#[inline(always)]
pub fn error_and_retransmits(sk: KernelPtr) -> u32 {
    const RETRANSMITS: u32 = (1 << 24) - 1;
    let retransmits = sk.read::<u32>(&OFF_TOTAL_RETRANS);
    let retransmits = if retransmits > RETRANSMITS { RETRANSMITS } else { retransmits };
    sk.read::<u32>(&OFF_SK_ERR) << 24 | retransmits
}

/// Whether tcp_close() will send a FIN, and so change the state to FIN_WAIT1 or LAST_ACK: with nothing
/// unread and no zero linger time (`__tcp_close`, net/ipv4/tcp.c).
#[inline(always)]
pub fn closes_in_order(sk: KernelPtr, state: u8, flags: u8) -> bool {
    let aborts = sk.read::<u64>(&OFF_SKC_FLAGS) & (1 << SOCK_LINGER) != 0 || unread_bytes(sk, flags) != 0;
    (state == ESTABLISHED || state == CLOSE_WAIT) && !aborts
}
