//! The process that accepts a connection.

use super::Spec;
use crate::kernel::probes::way::{Arguments, Attach, Program, Way};

const LOST: &str = "which of several workers accepted is known only from the next sweep, or when it closes";

pub(super) const SPEC: Spec = Spec {
    key: "accept",
    title: "owner at accept",
    ways: &[
        // Two programs for one hook: inet_csk_accept had four parameters before Linux 6.10.
        Way::by(&[Program::new("accept_fexit", Attach::Fexit("inet_csk_accept"), Arguments::Exactly(2))]),
        Way::by(&[Program::new("accept_fexit_4", Attach::Fexit("inet_csk_accept"), Arguments::Exactly(4))]),
        Way::by(&[Program::new("accept_kprobe", Attach::Kretprobe("inet_csk_accept"), Arguments::Unchecked)])
            .losing(
                "accepts beyond the number of returns that the kernel follows at once are missed, uncounted",
            ),
        Way::inferred("from the listener, then from sweeps and closes").losing(LOST),
    ],
    members: &[],
    lost: LOST,
};
