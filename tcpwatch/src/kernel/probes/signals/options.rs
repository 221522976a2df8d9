//! The options of one socket, read on request.

use super::Spec;
use crate::kernel::{
    btf::offsets::Member,
    probes::way::{Arguments, Attach, Program, Way},
};

pub(super) const NONAGLE: Member = Member::new("OFF_NONAGLE", "tcp_sock", "nonagle:4");
pub(super) const USER_TIMEOUT: Member =
    Member::new("OFF_ICSK_USER_TIMEOUT", "inet_connection_sock", "icsk_user_timeout");

pub(super) const SPEC: Spec = Spec {
    key: "options",
    title: "socket options",
    ways: &[Way::by(&[Program::new("options_iter", Attach::Iter("tcp"), Arguments::Unchecked)])],
    members: &[&[
        NONAGLE,
        USER_TIMEOUT,
        Member::new("OFF_KEEPALIVE_TIME", "tcp_sock", "keepalive_time"),
        Member::new("OFF_KEEPALIVE_INTVL", "tcp_sock", "keepalive_intvl"),
        Member::new("OFF_KEEPALIVE_PROBES", "tcp_sock", "keepalive_probes"),
        Member::new("OFF_NET_KEEPALIVE_TIME", "net", "ipv4.sysctl_tcp_keepalive_time"),
        Member::new("OFF_NET_KEEPALIVE_INTVL", "net", "ipv4.sysctl_tcp_keepalive_intvl"),
        Member::new("OFF_NET_KEEPALIVE_PROBES", "net", "ipv4.sysctl_tcp_keepalive_probes"),
    ]],
    lost: "the options of a connection's socket are unknown",
};
