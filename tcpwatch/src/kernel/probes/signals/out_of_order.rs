//! How long received data waits for a missing segment.

use super::Spec;
use crate::kernel::{
    btf::offsets::Member,
    probes::way::{Arguments, Attach, Program, Way},
};

pub(super) const SKB_CB: Member = Member::new("OFF_SKB_CB", "sk_buff", "cb");

pub(super) const SPEC: Spec = Spec {
    key: "out_of_order",
    title: "received data that waits",
    // The better way comes second: its program runs for many of the segments that are received, so only on demand.
    ways: &[
        Way::inferred("from the socket's count of packets (how long they wait: --hook out_of_order=fexit)"),
        Way::by(&[Program::new(
            "out_of_order_fexit",
            Attach::Fexit("tcp_data_queue"),
            Arguments::Exactly(2),
        )])
        .setting("FOLLOWS_OUT_OF_ORDER"),
    ],
    members: &[&[
        Member::new("OFF_OUT_OF_ORDER_QUEUE", "tcp_sock", "out_of_order_queue"),
        Member::new("OFF_OOO_LAST_SKB", "tcp_sock", "ooo_last_skb"),
        Member::new("OFF_SKB_CB_SEQ", "tcp_skb_cb", "seq"),
        SKB_CB,
    ]],
    lost: "how long received data waits for a missing segment is not measured",
};
