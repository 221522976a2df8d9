//! Calls of close() by the owner.

use super::{KPROBE_SKIPPED, Spec};
use crate::kernel::probes::way::{Arguments, Attach, Program, Way};

const LOST: &str = "which process closed is unknown for abortive closes and for closes after shutdown()";

pub(super) const SPEC: Spec = Spec {
    key: "close",
    title: "close by the owner",
    ways: &[
        Way::by(&[Program::new("close_fentry", Attach::Fentry("tcp_close"), Arguments::First("sock", 1))]),
        Way::by(&[Program::new("close_kprobe", Attach::Kprobe("tcp_close"), Arguments::First("sock", 1))])
            .losing(KPROBE_SKIPPED),
        Way::inferred("from state changes").losing(LOST),
    ],
    members: &[],
    lost: LOST,
};
