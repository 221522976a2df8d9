//! Retransmits of segments, and the stalls that they end.

use super::{Spec, congestion};
use crate::kernel::{
    btf::offsets::Member,
    probes::{
        tracefs::Tracepoint,
        way::{Arguments, Attach, Program, Way},
    },
};

const TRACEPOINT: Tracepoint = Tracepoint {
    category: "tcp",
    name: "tcp_retransmit_skb",
    fields: &[
        ("TP_RETRANSMIT_SKADDR", "skaddr"),
        ("TP_RETRANSMIT_STATE", "state"),
        ("TP_RETRANSMIT_SPORT", "sport"),
        ("TP_RETRANSMIT_DPORT", "dport"),
        ("TP_RETRANSMIT_SADDR_V6", "saddr_v6"),
        ("TP_RETRANSMIT_DADDR_V6", "daddr_v6"),
    ],
};

const MEMBERS: &[Member] = &[
    Member::new("OFF_ICSK_PENDING", "inet_connection_sock", "icsk_pending"),
    Member::new("OFF_SKB_LEN", "sk_buff", "len"),
    Member::new("OFF_SKB_CB_SEGMENTS", "tcp_skb_cb", "tcp_gso_segs"),
];

pub(super) const SPEC: Spec = Spec {
    key: "retransmit",
    title: "retransmits",
    ways: &[
        Way::by(&[Program::new(
            "retransmit_tp_btf",
            Attach::TpBtf("tcp_retransmit_skb"),
            Arguments::First("sock", 2),
        )]),
        Way::by(&[Program::new(
            "retransmit_raw_tp",
            Attach::RawTp("tcp_retransmit_skb"),
            Arguments::First("sock", 1),
        )]),
        Way::by(&[Program::new(
            "retransmit_tracepoint",
            Attach::Tracepoint(&TRACEPOINT),
            Arguments::Unchecked,
        )])
        .losing("packets are counted, not their segments or bytes, and only SYNs are distinguished"),
    ],
    members: &[MEMBERS, congestion::STALL_MEMBERS],
    lost: "retransmits are known only when a connection ends",
};
