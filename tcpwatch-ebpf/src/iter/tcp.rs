//! Every TCP socket of one network namespace, the reader's own: the iterator tcp (net/ipv4/tcp_ipv4.c), which also
//! visits what no process holds: connections not yet accepted, orphans, minisocks, requests. In: a socket of any
//! kind. Out: one record for each, and behind a listener's the list of its accept queue. Deliberately absent: how data flows, and who holds a socket (`task_file.rs`).

use core::mem::MaybeUninit;

use aya_ebpf::helpers::bpf_skc_to_tcp_request_sock;
use tcpwatch_common::{
    FLAG_MINISOCK, FLAG_REQUEST,
    state::{LISTEN, SYN_RECV},
};

use crate::{
    iter::{
        seen_socket,
        seq::{self, TcpContext},
        socket_list,
    },
    read::{
        endpoints, identity,
        offsets::{OFF_SKC_LISTENER, OFF_SKC_NUM, OFF_TW_EXPIRES, OFF_TW_SUBSTATE},
        pointer::{BtfPtr, KernelPtr as _, ProbedPtr},
    },
};

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub extern "C" fn unheld_iter(ctx: *const TcpContext) -> i32 {
    // SAFETY: the kernel passes a context of this layout.
    let (meta, skc) = unsafe { ((*ctx).meta, (*ctx).sk_common) };
    let Some(skc) = BtfPtr::new(skc) else { return 0 };
    let mut room = MaybeUninit::uninit();
    let record = seen_socket::zeroed(&mut room);
    if let Some(sk) = skc.tcp_sock() {
        seen_socket::fill_full_socket(record, sk);
        seen_socket::fill_listener(record);
        seq::write(meta, record);
        if record.state == LISTEN {
            socket_list::write_queued(meta, sk, &mut room);
        }
    } else if let Some(tw) = skc.minisock() {
        seen_socket::fill_any_socket(record, tw);
        record.state = tw.read(&OFF_TW_SUBSTATE);
        record.flags = FLAG_MINISOCK;
        record.cookie = identity::of(skc);
        record.sport = endpoints::minisock_local_port(tw);
        record.dport = endpoints::remote_port(tw);
        record.expires_jiffies = tw.read(&OFF_TW_EXPIRES);
        seq::write(meta, record);
    } else if let Some(request) = request(skc) {
        seen_socket::fill_any_socket(record, request);
        record.state = SYN_RECV;
        record.flags = FLAG_REQUEST;
        record.cookie = identity::of(skc);
        record.listener = ProbedPtr::new(request.read(&OFF_SKC_LISTENER)).map_or(0, identity::of);
        record.sport = request.read(&OFF_SKC_NUM);
        record.dport = endpoints::remote_port(request);
        seen_socket::fill_request(record, request);
        seq::write(meta, record);
    }
    0
}

/// The socket as a `struct tcp_request_sock`, if it is one.
#[inline(always)]
fn request(skc: BtfPtr) -> Option<BtfPtr> {
    // SAFETY: the verifier checks that the argument is a socket.
    BtfPtr::new(unsafe { bpf_skc_to_tcp_request_sock(skc.as_ptr().cast_mut().cast()) }.cast())
}
