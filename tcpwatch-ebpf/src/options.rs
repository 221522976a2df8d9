//! The options of one TCP socket, looked for in the reader's own network namespace by the iterator tcp. Read by the
//! daemon when somebody asks for that connection.

use aya_ebpf::{macros::map, maps::Array};
use tcpwatch_common::SocketOptions;

use crate::{
    field::{
        Kernel, OFF_ICSK_USER_TIMEOUT, OFF_KEEPALIVE_INTVL, OFF_KEEPALIVE_PROBES, OFF_KEEPALIVE_TIME,
        OFF_NET_KEEPALIVE_INTVL, OFF_NET_KEEPALIVE_PROBES, OFF_NET_KEEPALIVE_TIME, OFF_SK_LINGERTIME,
        OFF_SKC_NET, Typed,
    },
    fill, iter,
    tcp::Context,
};

/// The identity of the socket that is asked for (`SocketEvent::cookie`), set before each reading: one, because one
/// thread reads.
#[map]
static OPTIONS_OF: Array<u64> = Array::with_max_entries(1, 0);

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub extern "C" fn options_iter(ctx: *const Context) -> i32 {
    // SAFETY: the kernel passes a context of this layout.
    let (meta, skc) = unsafe { ((*ctx).meta, (*ctx).sk_common) };
    // Null once, after the last one.
    if let Some(skc) = Typed::new(skc)
        && OPTIONS_OF.get(0) == Some(&fill::cookie(skc))
        && let Some(sk) = skc.tcp_sock()
    {
        iter::write(meta, &options(sk));
    }
    0
}

#[inline(always)]
fn options(sk: impl Kernel) -> SocketOptions {
    let (sport, dport) = fill::ports(sk);
    SocketOptions {
        flags: fill::options(sk),
        user_timeout_ms: sk.read(&OFF_ICSK_USER_TIMEOUT),
        linger_jiffies: sk.read(&OFF_SK_LINGERTIME),
        keepalive_time_jiffies: of_net_unless_set::<u32>(sk, &OFF_KEEPALIVE_TIME, &OFF_NET_KEEPALIVE_TIME),
        keepalive_intvl_jiffies: of_net_unless_set::<u32>(sk, &OFF_KEEPALIVE_INTVL, &OFF_NET_KEEPALIVE_INTVL),
        keepalive_probes: of_net_unless_set::<u8>(sk, &OFF_KEEPALIVE_PROBES, &OFF_NET_KEEPALIVE_PROBES),
        sport,
        dport,
    }
}

/// The socket's own value, or where that is 0 its namespace's: keepalive_time_when and the like in include/net/tcp.h.
#[inline(always)]
fn of_net_unless_set<T: Copy + Into<u32>>(sk: impl Kernel, own: &'static u32, of_net: &'static u32) -> u32 {
    match sk.read::<T>(own).into() {
        0 => sk.follow(&OFF_SKC_NET).map_or(0, |net| net.read::<T>(of_net).into()),
        set => set,
    }
}
