//! What a record says about a socket: addresses, ports, namespace, flags.

use aya_ebpf::{helpers::bpf_probe_read_kernel, macros::map, maps::Array};
use tcpwatch_common::{
    FLAG_FIN_RECEIVED, FLAG_HELD, FLAG_ORPHAN, FLAG_PASSIVE, FLAG_UNSENT, OPTION_CORK, OPTION_KEEPALIVE,
    OPTION_LINGER, OPTION_NODELAY, OPTION_USER_TIMEOUT, SocketOptions,
    state::{CLOSE_WAIT, ESTABLISHED},
};

use crate::field::{
    self, AF_INET6, Kernel, OFF_BYTES_RECEIVED, OFF_BYTES_RETRANS, OFF_BYTES_SENT, OFF_COPIED_SEQ,
    OFF_ICSK_USER_TIMEOUT, OFF_INET_SPORT, OFF_KEEPALIVE_INTVL, OFF_KEEPALIVE_PROBES, OFF_KEEPALIVE_TIME,
    OFF_NET_COOKIE, OFF_NET_INUM, OFF_NET_KEEPALIVE_INTVL, OFF_NET_KEEPALIVE_PROBES, OFF_NET_KEEPALIVE_TIME,
    OFF_NONAGLE, OFF_RCV_NXT, OFF_SEGS_OUT, OFF_SK_ERR, OFF_SK_LINGERTIME, OFF_SK_MAX_ACK_BACKLOG,
    OFF_SK_SOCKET, OFF_SKC_DADDR, OFF_SKC_DPORT, OFF_SKC_FAMILY, OFF_SKC_FLAGS, OFF_SKC_NET,
    OFF_SKC_RCV_SADDR, OFF_SKC_V6_DADDR, OFF_SKC_V6_RCV_SADDR, OFF_SND_NXT, OFF_SND_UNA, OFF_TOTAL_RETRANS,
    OFF_WRITE_SEQ,
};

/// Bit numbers of `sk_flags` (enum sock_flags, include/net/sock.h): unchanged since Linux 2.6.
const SOCK_DEAD: u32 = 0;
const SOCK_DONE: u32 = 1;
const SOCK_KEEPOPEN: u32 = 3;
const SOCK_LINGER: u32 = 4;

/// Bit numbers of `nonagle` (include/net/tcp.h), which has the lower four of its byte.
const TCP_NAGLE_OFF: u32 = 0;
const TCP_NAGLE_CORK: u32 = 1;

/// Whether sockets are identified by their address, because this kernel, or the hook that sees them first, has
/// no cookie for them. An address is used again once its socket is gone.
#[unsafe(no_mangle)]
static IDENTITY_IS_ADDRESS: u32 = 0;

/// A secret of the loader: addresses of the kernel are nobody's business.
#[unsafe(no_mangle)]
static ADDRESS_KEY: u64 = 0;

#[inline(always)]
pub fn by_address() -> bool {
    field::value(&IDENTITY_IS_ADDRESS) != 0
}

/// The identity of the socket: `SocketEvent::cookie`.
#[inline(always)]
pub fn cookie(sk: impl Kernel) -> u64 {
    let sk = sk.sock();
    if !by_address() {
        return sk.cookie();
    }
    let pointer = sk.as_ptr();
    // SAFETY: a pointer is eight bytes. By way of a helper, because the verifier lets no one compute with pointers.
    hide_address(unsafe { bpf_probe_read_kernel((&raw const pointer).cast::<u64>()) }.unwrap_or(0))
}

/// An address as the daemon may see it.
#[inline(always)]
pub fn hide_address(address: u64) -> u64 {
    // SAFETY: a live static. Volatile, or the compiler folds its value at build time.
    address ^ unsafe { core::ptr::read_volatile(&raw const ADDRESS_KEY) }
}

/// Two namespaces whose cookies share the lower bits take turns in one place.
const NETNS_COUNT: u32 = 256;

/// Inode numbers of network namespaces (the lower half), each with the lower half of the namespace's cookie, which the
/// kernel never gives twice. The kernel keeps the inode number beside a count that each new and each gone socket
/// changes (struct ns_common), so reading it there costs a cache miss for nearly every record.
#[map]
static NETNS: Array<u64> = Array::with_max_entries(NETNS_COUNT, 0);

/// Inode number of the socket's network namespace, 0 where there is none.
#[inline(always)]
pub fn netns(sk: impl Kernel) -> u32 {
    let Some(net) = sk.sock().follow(&OFF_SKC_NET) else { return 0 };
    // 0 on 5.10, until somebody asks for it.
    let cookie = net.read::<u64>(&OFF_NET_COOKIE) as u32;
    let Some(known) = NETNS.get_ptr_mut(cookie % NETNS_COUNT) else { return 0 };
    // SAFETY: a value of the map; read and written at once, so another processor's is seen as a whole.
    let last = unsafe { known.read_volatile() };
    if (last >> 32) as u32 == cookie && cookie != 0 {
        return last as u32;
    }
    let inum = net.read::<u32>(&OFF_NET_INUM);
    if cookie != 0 {
        // SAFETY: as above.
        unsafe { known.write_volatile((cookie as u64) << 32 | inum as u64) };
    }
    inum
}

/// Local and remote address; IPv4 as `::ffff:a.b.c.d`.
#[inline(always)]
pub fn addresses(sk: impl Kernel) -> ([u64; 2], [u64; 2]) {
    let sk = sk.sock();
    if sk.read::<u16>(&OFF_SKC_FAMILY) == AF_INET6 {
        (sk.read_16_bytes(&OFF_SKC_V6_RCV_SADDR), sk.read_16_bytes(&OFF_SKC_V6_DADDR))
    } else {
        (v4_mapped(sk.read(&OFF_SKC_RCV_SADDR)), v4_mapped(sk.read(&OFF_SKC_DADDR)))
    }
}

#[inline(always)]
pub fn v4_mapped(address: u32) -> [u64; 2] {
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
pub fn ports(sk: impl Kernel) -> (u16, u16) {
    (u16::from_be(sk.read(&OFF_INET_SPORT)), u16::from_be(sk.sock().read(&OFF_SKC_DPORT)))
}

/// `FLAG_*` of the socket as it stands.
#[inline(always)]
pub fn flags(sk: impl Kernel) -> u8 {
    let sk = sk.sock();
    let sk_flags = sk.read::<u64>(&OFF_SKC_FLAGS);
    let mut flags = 0;
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

/// `FLAG_UNSENT` of a socket whose connect failed. tcp_disconnect (net/ipv4/tcp.c) sets `segs_out` to 0 for the next.
#[inline(always)]
pub fn unsent(sk: impl Kernel) -> u8 {
    if sk.read::<u32>(&OFF_SEGS_OUT) == 0 { FLAG_UNSENT } else { 0 }
}

/// Received bytes that the application has not read; a FIN takes one sequence number of its own.
#[inline(always)]
pub fn unread_bytes(sk: impl Kernel, flags: u8) -> u32 {
    let waiting = sk.read::<u32>(&OFF_RCV_NXT).wrapping_sub(sk.read::<u32>(&OFF_COPIED_SEQ));
    if flags & FLAG_FIN_RECEIVED != 0 { waiting.saturating_sub(1) } else { waiting }
}

/// Bytes of data sent and received, each once (`TrafficEvent`). tcp_rcv_nxt_update (net/ipv4/tcp_input.c) counts the FIN
/// as a byte received.
#[inline(always)]
pub fn traffic(sk: impl Kernel, flags: u8) -> (u64, u64) {
    let sent = sk.read::<u64>(&OFF_BYTES_SENT).wrapping_sub(sk.read(&OFF_BYTES_RETRANS));
    let fin = (flags & FLAG_FIN_RECEIVED != 0) as u64;
    (sent, sk.read::<u64>(&OFF_BYTES_RECEIVED).wrapping_sub(fin))
}

/// Sequence numbers written and not sent, and sent and not acknowledged: bytes, and one for a SYN or FIN.
#[inline(always)]
pub fn undelivered(sk: impl Kernel) -> (u32, u32) {
    let next = sk.read::<u32>(&OFF_SND_NXT);
    let unsent = sk.read::<u32>(&OFF_WRITE_SEQ).wrapping_sub(next);
    (unsent, next.wrapping_sub(sk.read(&OFF_SND_UNA)))
}

/// `OPTION_*` of the socket. Without a branch, which would double what older verifiers have to follow.
#[inline(always)]
fn option_flags(sk: impl Kernel) -> u16 {
    let sk_flags = sk.sock().read::<u64>(&OFF_SKC_FLAGS);
    let nonagle = sk.read::<u8>(&OFF_NONAGLE);
    let timeout = sk.read::<u32>(&OFF_ICSK_USER_TIMEOUT);
    let is_set = |bits: u64, bit: u32, option: u16| (bits >> bit & 1) as u16 * option;
    is_set(sk_flags, SOCK_KEEPOPEN, OPTION_KEEPALIVE)
        | is_set(sk_flags, SOCK_LINGER, OPTION_LINGER)
        | is_set(nonagle.into(), TCP_NAGLE_OFF, OPTION_NODELAY)
        | is_set(nonagle.into(), TCP_NAGLE_CORK, OPTION_CORK)
        // Its highest bit is set unless it is 0.
        | is_set((timeout | timeout.wrapping_neg()).into(), 31, OPTION_USER_TIMEOUT)
}

/// The options of the socket, with all of their figures.
#[inline(always)]
pub fn options(sk: impl Kernel) -> SocketOptions {
    let net = sk.follow(&OFF_SKC_NET);
    SocketOptions {
        linger_jiffies: sk.read(&OFF_SK_LINGERTIME),
        user_timeout_ms: sk.read(&OFF_ICSK_USER_TIMEOUT),
        keepalive_time_jiffies: of_net_unless_set(sk, net, &OFF_KEEPALIVE_TIME, &OFF_NET_KEEPALIVE_TIME),
        keepalive_intvl_jiffies: of_net_unless_set(sk, net, &OFF_KEEPALIVE_INTVL, &OFF_NET_KEEPALIVE_INTVL),
        keepalive_probes: of_net_unless_set::<u8>(sk, net, &OFF_KEEPALIVE_PROBES, &OFF_NET_KEEPALIVE_PROBES)
            .into(),
        flags: option_flags(sk),
    }
}

/// The socket's own value, or where that is 0 its namespace's: keepalive_time_when and the like in include/net/tcp.h.
#[inline(always)]
fn of_net_unless_set<T: Copy + Default + PartialEq>(
    sk: impl Kernel,
    net: Option<impl Kernel>,
    own: &'static u32,
    of_net: &'static u32,
) -> T {
    let own = sk.read::<T>(own);
    if own == T::default() { net.map_or(own, |net| net.read(of_net)) } else { own }
}

/// Whether closing the socket resets the connection in any case.
#[inline(always)]
pub fn has_zero_linger(sk: impl Kernel) -> bool {
    sk.read::<u64>(&OFF_SKC_FLAGS) & (1 << SOCK_LINGER) != 0 && sk.read::<u64>(&OFF_SK_LINGERTIME) == 0
}

/// The bits of `SocketEvent::value` that a transition to CLOSE has retransmitted segments in.
pub const RETRANSMITS: u32 = (1 << 24) - 1;

/// The error that ended the socket and its retransmits, as `SocketEvent::value` carries them.
#[inline(always)]
pub fn error_and_retransmits(sk: impl Kernel) -> u32 {
    let retransmits = sk.read::<u32>(&OFF_TOTAL_RETRANS);
    let retransmits = if retransmits > RETRANSMITS { RETRANSMITS } else { retransmits };
    sk.sock().read::<u32>(&OFF_SK_ERR) << 24 | retransmits
}

/// Whether tcp_close() will send a FIN, and so change the state to FIN_WAIT1 or LAST_ACK: with nothing
/// unread and no zero linger time (`__tcp_close`, net/ipv4/tcp.c).
#[inline(always)]
pub fn closes_in_order(sk: impl Kernel, state: u8, flags: u8) -> bool {
    let aborts = has_zero_linger(sk) || unread_bytes(sk, flags) != 0;
    (state == ESTABLISHED || state == CLOSE_WAIT) && !aborts
}
