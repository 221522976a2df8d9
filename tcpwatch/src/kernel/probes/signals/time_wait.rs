//! The TIME_WAIT of an orphan, which its minisock enters from FIN_WAIT2.

use super::{KPROBE_SKIPPED, Spec};
use crate::kernel::probes::way::{Arguments, Attach, Program, Way};

const LOST: &str = "that the peer of an orphan in FIN_WAIT2 has closed too is noticed only by the next sweep, \
                    unless the peer is in the same network namespace";

pub(super) const SPEC: Spec = Spec {
    key: "time_wait",
    title: "TIME_WAIT of an orphan in FIN_WAIT2",
    ways: &[
        Way::by(&[Program::new(
            "time_wait_fentry",
            Attach::Fentry("__inet_twsk_schedule"),
            Arguments::First("inet_timewait_sock", 3),
        )]),
        Way::by(&[Program::new(
            "time_wait_kprobe",
            Attach::Kprobe("__inet_twsk_schedule"),
            Arguments::First("inet_timewait_sock", 3),
        )])
        .losing(KPROBE_SKIPPED),
        Way::inferred("from the peer's last state change, corrected by iter tcp").losing(LOST),
    ],
    members: &[],
    lost: LOST,
};
