//! The options of a TCP socket. In: a `struct tcp_sock`. Out: [`SocketOptions`]. Deliberately absent: buffer
//! sizes and the congestion control, which only a sweep reports (`iter::seen_socket`).

use tcpwatch_common::{
    OPTION_CORK, OPTION_KEEPALIVE, OPTION_LINGER, OPTION_NODELAY, OPTION_USER_TIMEOUT, SocketOptions,
};

use crate::read::{
    offsets::{
        OFF_ICSK_USER_TIMEOUT, OFF_KEEPALIVE_INTVL, OFF_KEEPALIVE_PROBES, OFF_KEEPALIVE_TIME,
        OFF_NET_KEEPALIVE_INTVL, OFF_NET_KEEPALIVE_PROBES, OFF_NET_KEEPALIVE_TIME, OFF_NONAGLE,
        OFF_SK_LINGERTIME, OFF_SKC_FLAGS, OFF_SKC_NET,
    },
    pointer::KernelPtr,
    tcp_sock::{SOCK_KEEPOPEN, SOCK_LINGER},
};

/// Bit numbers of `nonagle` (include/net/tcp.h), which has the lower four of its byte.
const TCP_NAGLE_OFF: u32 = 0;
const TCP_NAGLE_CORK: u32 = 1;

/// The options of the socket.
#[inline(always)]
pub fn read(sk: impl KernelPtr) -> SocketOptions {
    let net = sk.follow(&OFF_SKC_NET);
    SocketOptions {
        linger_jiffies: sk.read(&OFF_SK_LINGERTIME),
        user_timeout_ms: sk.read(&OFF_ICSK_USER_TIMEOUT),
        keepalive_time_jiffies: own_or_of_net(sk, net, &OFF_KEEPALIVE_TIME, &OFF_NET_KEEPALIVE_TIME),
        keepalive_intvl_jiffies: own_or_of_net(sk, net, &OFF_KEEPALIVE_INTVL, &OFF_NET_KEEPALIVE_INTVL),
        keepalive_probes: own_or_of_net::<u8>(sk, net, &OFF_KEEPALIVE_PROBES, &OFF_NET_KEEPALIVE_PROBES)
            .into(),
        flags: flags(sk),
    }
}

/// `OPTION_*` of the socket. Without a branch, which would double what older verifiers have to follow.
#[inline(always)]
fn flags(sk: impl KernelPtr) -> u16 {
    let sk_flags = sk.sock().read::<u64>(&OFF_SKC_FLAGS);
    let nonagle = sk.read::<u8>(&OFF_NONAGLE);
    let timeout = sk.read::<u32>(&OFF_ICSK_USER_TIMEOUT);
    let is_set = |bits: u64, bit: u32, option: u16| (bits >> bit & 1) as u16 * option;
    is_set(sk_flags, SOCK_KEEPOPEN, OPTION_KEEPALIVE)
        | is_set(sk_flags, SOCK_LINGER, OPTION_LINGER)
        | is_set(nonagle.into(), TCP_NAGLE_OFF, OPTION_NODELAY)
        | is_set(nonagle.into(), TCP_NAGLE_CORK, OPTION_CORK)
        // The highest bit of this expression is set unless `timeout` is 0.
        | is_set((timeout | timeout.wrapping_neg()).into(), 31, OPTION_USER_TIMEOUT)
}

/// The socket's own value, or its namespace's where that is 0: keepalive_time_when and the like in include/net/tcp.h.
#[inline(always)]
fn own_or_of_net<T: Copy + Default + PartialEq>(
    sk: impl KernelPtr,
    net: Option<impl KernelPtr>,
    own: &'static u32,
    of_net: &'static u32,
) -> T {
    let own = sk.read::<T>(own);
    if own == T::default() { net.map_or(own, |net| net.read(of_net)) } else { own }
}
