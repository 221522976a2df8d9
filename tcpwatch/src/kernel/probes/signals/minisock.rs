//! The end of a minisock: of TIME_WAIT, and of an orphan in FIN_WAIT2.

use super::{KPROBE_SKIPPED, Spec};
use crate::kernel::probes::way::{Arguments, Attach, Program, Way};

const LOST: &str = "a minisock ended early by a reset or a reused port is noticed only by the next sweep";

pub(super) const SPEC: Spec = Spec {
    key: "minisock",
    title: "end of TIME_WAIT and orphaned FIN_WAIT2",
    ways: &[
        Way::by(&[Program::new(
            "minisock_fentry",
            Attach::Fentry("inet_twsk_kill"),
            Arguments::First("inet_timewait_sock", 1),
        )]),
        Way::by(&[Program::new(
            "minisock_kprobe",
            Attach::Kprobe("inet_twsk_kill"),
            Arguments::First("inet_timewait_sock", 1),
        )])
        .losing(KPROBE_SKIPPED),
        Way::inferred("from the kernel's timer wheel, corrected by iter tcp").losing(LOST),
    ],
    members: &[],
    lost: LOST,
};
