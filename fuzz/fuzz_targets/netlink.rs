//! Answers of the kernel about sockets and translated connections.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_sock_diag::SockDiagMessage;
use tcpwatch::kernel::{conntrack, netlink, sock_diag};

fuzz_target!(|bytes: &[u8]| {
    let _ = netlink::read_all(bytes, &mut |answer: SockDiagMessage| {
        if let SockDiagMessage::InetResponse(response) = answer {
            let _ = sock_diag::figures(1, &response);
            let _ = sock_diag::transfer(&response, true);
        }
        true
    });
    let _ = netlink::read_all(bytes, &mut |answer: NetfilterMessage| {
        let _ = conntrack::read(&answer);
        true
    });
});
