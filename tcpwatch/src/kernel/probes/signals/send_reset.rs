//! Resets that this machine's TCP sends.

use super::Spec;
use crate::kernel::probes::way::{Arguments, Attach, Program, Way};

pub(super) const SPEC: Spec = Spec {
    key: "send_reset",
    title: "resets sent",
    ways: &[
        Way::by(&[Program::new(
            "send_reset_tp_btf",
            Attach::TpBtf("tcp_send_reset"),
            Arguments::First("sock", 2),
        )]),
        Way::by(&[Program::new(
            "send_reset_raw_tp",
            Attach::RawTp("tcp_send_reset"),
            Arguments::First("sock", 1),
        )]),
    ],
    members: &[],
    lost: "resets sent are not counted and their reasons are unknown",
};
