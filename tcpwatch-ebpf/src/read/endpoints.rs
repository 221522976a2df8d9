//! The two ends of a connection. In: a socket, a minisock or the request of a connection. Out: addresses as 16 bytes
//! in network byte order, ports in the machine's, the interface that it is bound to. Deliberately absent: the namespace
//! (`netns.rs`) and translated addresses.

use crate::read::{
    offsets::{
        OFF_INET_SPORT, OFF_SKC_BOUND_DEV_IF, OFF_SKC_DADDR, OFF_SKC_DPORT, OFF_SKC_FAMILY,
        OFF_SKC_RCV_SADDR, OFF_SKC_V6_DADDR, OFF_SKC_V6_RCV_SADDR, OFF_TW_SPORT,
    },
    pointer::{AF_INET6, KernelPtr},
};

/// Local and remote address; IPv4 as `::ffff:a.b.c.d`.
#[inline(always)]
pub fn addresses(sk: impl KernelPtr) -> ([u64; 2], [u64; 2]) {
    let sk = sk.sock();
    if sk.read::<u16>(&OFF_SKC_FAMILY) == AF_INET6 {
        (sk.read_16_bytes(&OFF_SKC_V6_RCV_SADDR), sk.read_16_bytes(&OFF_SKC_V6_DADDR))
    } else {
        (v4_mapped(sk.read(&OFF_SKC_RCV_SADDR)), v4_mapped(sk.read(&OFF_SKC_DADDR)))
    }
}

/// Index of the interface that it is bound to, 0 for none.
#[inline(always)]
pub fn interface(skc: impl KernelPtr) -> u32 {
    skc.sock().read(&OFF_SKC_BOUND_DEV_IF)
}

/// The address, in network byte order, as `::ffff:a.b.c.d`.
#[inline(always)]
pub fn v4_mapped(address: u32) -> [u64; 2] {
    // Bytes 8..16 of the address: 0 0 ff ff a b c d, as they lie in memory.
    [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]) | last_half_in_memory(address)]
}

/// A number whose last four bytes in memory are the address.
#[cfg(target_endian = "little")]
#[inline(always)]
fn last_half_in_memory(address: u32) -> u64 {
    (address as u64) << 32
}

#[cfg(target_endian = "big")]
#[inline(always)]
fn last_half_in_memory(address: u32) -> u64 {
    address as u64
}

/// Local and remote port of a full socket. Not `skc_num`: the kernel has cleared that when a socket reaches CLOSE.
#[inline(always)]
pub fn ports(sk: impl KernelPtr) -> (u16, u16) {
    (u16::from_be(sk.read(&OFF_INET_SPORT)), remote_port(sk.sock()))
}

/// Local port of a minisock.
#[inline(always)]
pub fn minisock_local_port(tw: impl KernelPtr) -> u16 {
    u16::from_be(tw.read(&OFF_TW_SPORT))
}

/// Remote port of any kind of socket.
#[inline(always)]
pub fn remote_port(skc: impl KernelPtr) -> u16 {
    u16::from_be(skc.read(&OFF_SKC_DPORT))
}
