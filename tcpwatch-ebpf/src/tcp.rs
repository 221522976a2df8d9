//! Every TCP socket of one network namespace, the reader's own: the iterator tcp (net/ipv4/tcp_ipv4.c), which
//! also visits what no process holds: connections not yet accepted, orphans, minisocks, requests.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::bpf_skc_to_tcp_request_sock;
use tcpwatch_common::{FLAG_MINISOCK, FLAG_REQUEST, state::SYN_RECV};

use crate::{
    field::{Kernel as _, OFF_SKC_DPORT, OFF_SKC_NUM, OFF_TW_EXPIRES, OFF_TW_SPORT, OFF_TW_SUBSTATE, Typed},
    fill,
    iter::{self, Meta},
};

/// `struct bpf_iter__tcp` (net/ipv4/tcp_ipv4.c), without its last member.
#[repr(C)]
pub struct Context {
    pub meta: *const Meta,
    pub sk_common: *const u8,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub extern "C" fn unheld_iter(ctx: *const Context) -> i32 {
    // SAFETY: the kernel passes a context of this layout.
    let (meta, skc) = unsafe { ((*ctx).meta, (*ctx).sk_common) };
    // Null once, after the last one.
    let Some(skc) = Typed::new(skc) else { return 0 };
    let mut room = MaybeUninit::uninit();
    let record = iter::zeroed(&mut room);
    if let Some(sk) = skc.tcp_sock() {
        iter::full_socket(record, sk);
        iter::write(meta, record);
    } else if let Some(tw) = skc.minisock() {
        iter::any_socket(record, tw);
        record.state = tw.read(&OFF_TW_SUBSTATE);
        record.flags = FLAG_MINISOCK;
        record.cookie = fill::cookie(skc);
        record.sport = u16::from_be(tw.read(&OFF_TW_SPORT));
        record.dport = u16::from_be(tw.read(&OFF_SKC_DPORT));
        record.expires_jiffies = tw.read(&OFF_TW_EXPIRES);
        iter::write(meta, record);
    } else if let Some(request) = request(skc) {
        iter::any_socket(record, request);
        record.state = SYN_RECV;
        record.flags = FLAG_REQUEST;
        record.cookie = fill::cookie(skc);
        record.sport = request.read(&OFF_SKC_NUM);
        record.dport = u16::from_be(request.read(&OFF_SKC_DPORT));
        iter::write(meta, record);
    }
    0
}

/// The socket as a `struct tcp_request_sock`, if it is one.
#[inline(always)]
fn request(skc: Typed) -> Option<Typed> {
    // SAFETY: the verifier checks that the argument is a socket.
    Typed::new(unsafe { bpf_skc_to_tcp_request_sock(skc.as_ptr().cast_mut().cast()) }.cast())
}
