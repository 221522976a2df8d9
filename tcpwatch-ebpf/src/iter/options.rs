//! The options of one TCP socket, found in the reader's own network namespace by the iterator tcp. In: its identity,
//! from the daemon. Out: one record, or none if that socket is gone. Deliberately absent: all other sockets; what a
//! sweep reports of options is in `seen_socket.rs`.

use aya_ebpf::{macros::map, maps::Array};
use tcpwatch_common::AskedOptions;

use crate::{
    iter::seq::{self, TcpContext},
    read::{
        endpoints, identity,
        pointer::{BtfPtr, KernelPtr as _},
        socket_options,
    },
};

/// The identity of the socket that is asked for (`SocketEvent::cookie`), set before each reading. One element,
/// because one thread reads.
#[map]
static OPTIONS_OF: Array<u64> = Array::with_max_entries(1, 0);

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub extern "C" fn options_iter(ctx: *const TcpContext) -> i32 {
    // SAFETY: the kernel passes a context of this layout.
    let (meta, skc) = unsafe { ((*ctx).meta, (*ctx).sk_common) };
    if let Some(skc) = BtfPtr::new(skc)
        && OPTIONS_OF.get(0) == Some(&identity::of(skc))
        && let Some(sk) = skc.tcp_sock()
    {
        let (sport, dport) = endpoints::ports(sk);
        seq::write(meta, &AskedOptions { options: socket_options::read(sk), sport, dport, zero: 0 });
    }
    0
}
