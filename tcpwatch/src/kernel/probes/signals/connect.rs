//! Connects that fail before the first SYN.

use super::Spec;
use crate::kernel::probes::way::{Arguments, Attach, Program, Way};

pub(super) const SPEC: Spec = Spec {
    key: "connect",
    title: "connects that fail at once",
    ways: &[Way::by(&[
        Program::new("connect_v4_fexit", Attach::Fexit("tcp_v4_connect"), Arguments::Exactly(3)),
        Program::new("connect_v6_fexit", Attach::Fexit("tcp_v6_connect"), Arguments::Exactly(3)),
    ])],
    members: &[],
    lost: "connects that fail before SYN_SENT (without a route, for example) are not counted",
};
