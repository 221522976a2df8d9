//! Retransmits of SYN-ACKs.

use super::Spec;
use crate::kernel::probes::{
    tracefs::Tracepoint,
    way::{Arguments, Attach, Program, Way},
};

const TRACEPOINT: Tracepoint = Tracepoint {
    category: "tcp",
    name: "tcp_retransmit_synack",
    fields: &[
        ("TP_SYNACK_SKADDR", "skaddr"),
        ("TP_SYNACK_SPORT", "sport"),
        ("TP_SYNACK_SADDR_V6", "saddr_v6"),
    ],
};

pub(super) const SPEC: Spec = Spec {
    key: "synack",
    title: "retransmits of SYN-ACKs",
    ways: &[
        Way::by(&[Program::new(
            "synack_tp_btf",
            Attach::TpBtf("tcp_retransmit_synack"),
            Arguments::First("sock", 1),
        )]),
        Way::by(&[Program::new(
            "synack_raw_tp",
            Attach::RawTp("tcp_retransmit_synack"),
            Arguments::First("sock", 1),
        )]),
        Way::by(&[Program::new("synack_tracepoint", Attach::Tracepoint(&TRACEPOINT), Arguments::Unchecked)]),
    ],
    members: &[],
    lost: "retransmits of SYN-ACKs are not counted",
};
