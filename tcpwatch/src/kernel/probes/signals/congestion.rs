//! Changes of the congestion state: when loss stops delivery, and when it goes on.

use super::{Spec, out_of_order};
use crate::kernel::{
    btf::offsets::Member,
    probes::way::{Arguments, Attach, Program, Way},
};

/// How long the oldest unacknowledged segment has been waiting.
pub(super) const STALL_MEMBERS: &[Member] = &[
    Member::new("OFF_UNDO_MARKER", "tcp_sock", "undo_marker"),
    Member::new("OFF_FIRST_TX_MSTAMP", "tcp_sock", "first_tx_mstamp"),
    Member::new("OFF_TCP_RTX_QUEUE", "sock", "tcp_rtx_queue"),
    Member::new("OFF_RB_LEFT", "rb_node", "rb_left"),
    Member::new("OFF_SKB_MSTAMP_NS", "sk_buff", "skb_mstamp_ns"),
    Member::new("OFF_SKB_RBNODE", "sk_buff", "rbnode"),
    out_of_order::SKB_CB,
    Member::new("OFF_SKB_CB_SACKED", "tcp_skb_cb", "sacked"),
    Member::new("OFF_SKB_CB_END_SEQ", "tcp_skb_cb", "end_seq"),
];

pub(super) const SPEC: Spec = Spec {
    key: "congestion",
    title: "head-of-line blocking",
    ways: &[
        Way::by(&[Program::new(
            "congestion_tp_btf",
            Attach::TpBtf("tcp_cong_state_set"),
            Arguments::First("sock", 2),
        )])
        .since("5.19"),
        Way::by(&[Program::new(
            "congestion_raw_tp",
            Attach::RawTp("tcp_cong_state_set"),
            Arguments::First("sock", 1),
        )])
        .since("5.19"),
    ],
    members: &[STALL_MEMBERS],
    lost: "only stalls ended by a tail loss probe are reported",
};
