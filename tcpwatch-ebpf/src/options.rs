//! The options of one TCP socket, looked for in the reader's own network namespace by the iterator tcp. Read by the
//! daemon when somebody asks for that connection.

use aya_ebpf::{macros::map, maps::Array};
use tcpwatch_common::AskedOptions;

use crate::{
    field::{Kernel as _, Typed},
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
        let (sport, dport) = fill::ports(sk);
        iter::write(meta, &AskedOptions { options: fill::options(sk), sport, dport, zero: 0 });
    }
    0
}
