//! Resets that sockets receive.

use super::Spec;
use crate::kernel::probes::way::{Arguments, Attach, Program, Way};

pub(super) const SPEC: Spec = Spec {
    key: "receive_reset",
    title: "resets received",
    ways: &[
        Way::by(&[Program::new(
            "receive_reset_tp_btf",
            Attach::TpBtf("tcp_receive_reset"),
            Arguments::First("sock", 1),
        )]),
        Way::by(&[Program::new(
            "receive_reset_raw_tp",
            Attach::RawTp("tcp_receive_reset"),
            Arguments::First("sock", 1),
        )]),
    ],
    members: &[],
    lost: "resets received are not counted, nor the data that they discarded",
};
