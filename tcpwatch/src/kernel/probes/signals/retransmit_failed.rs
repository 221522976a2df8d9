//! Retransmits that the kernel tried and could not send.

use super::Spec;
use crate::kernel::probes::way::{Arguments, Attach, Program, Way};

pub(super) const SPEC: Spec = Spec {
    key: "retransmit_failed",
    title: "retransmits that failed",
    ways: &[
        // The third argument is the error.
        Way::by(&[Program::new(
            "retransmit_failed_tp_btf",
            Attach::TpBtf("tcp_retransmit_skb"),
            Arguments::First("sock", 3),
        )])
        .since("6.18"),
        Way::by(&[Program::new(
            "retransmit_failed_fexit",
            Attach::Fexit("tcp_retransmit_skb"),
            Arguments::Exactly(3),
        )])
        .losing(
            "missed: failures of tail loss probes, and failures in fast recovery where the compiler inlined the \
             function",
        ),
    ],
    members: &[],
    lost: "retransmits that the kernel tried and could not send are not counted",
};
