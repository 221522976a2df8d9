//! Full accept queues, counted by listener.

use super::Spec;
use crate::kernel::{
    btf::offsets::Member,
    probes::way::{Arguments, Attach, Program, Way},
};

const LOST: &str = "where several listeners of a network namespace refused connections at about the same time, or one did \
                    before the start, how many each refused because its accept queue was full is unknown";

pub(super) const SPEC: Spec = Spec {
    key: "overflow",
    title: "full accept queues",
    ways: &[
        Way::by(&[
            Program::new("overflow_syn_fentry", Attach::Fentry("tcp_conn_request"), Arguments::Exactly(4)),
            Program::new(
                "overflow_v4_fentry",
                Attach::Fentry("tcp_v4_syn_recv_sock"),
                Arguments::First("sock", 2),
            ),
            Program::new(
                "overflow_v6_fentry",
                Attach::Fentry("tcp_v6_syn_recv_sock"),
                Arguments::First("sock", 2),
            ),
        ]),
        Way::by(&[
            Program::new("overflow_syn_kprobe", Attach::Kprobe("tcp_conn_request"), Arguments::Exactly(4)),
            Program::new(
                "overflow_v4_kprobe",
                Attach::Kprobe("tcp_v4_syn_recv_sock"),
                Arguments::First("sock", 2),
            ),
            Program::new(
                "overflow_v6_kprobe",
                Attach::Kprobe("tcp_v6_syn_recv_sock"),
                Arguments::First("sock", 2),
            ),
        ])
        .losing(super::KPROBE_SKIPPED),
        Way::inferred("from the namespace's count and each listener's drops").losing(LOST),
    ],
    members: &[&[
        Member::new("OFF_REQUEST_QUEUE_LENGTH", "inet_connection_sock", "icsk_accept_queue.qlen"),
        Member::new("OFF_NET_SYNCOOKIES", "net", "ipv4.sysctl_tcp_syncookies"),
        Member::new("OFF_SKB_PROTOCOL", "sk_buff", "protocol"),
    ]],
    lost: LOST,
};
