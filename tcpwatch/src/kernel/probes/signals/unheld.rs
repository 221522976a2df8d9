//! Sockets that no process holds, listed by sweeps.

use super::{Spec, held};
use crate::kernel::{
    btf::offsets::Member,
    probes::way::{Arguments, Attach, Program, Way},
};

pub(super) const SPEC: Spec = Spec {
    key: "unheld",
    title: "sockets held by nobody",
    ways: &[Way::by(&[Program::new("unheld_iter", Attach::Iter("tcp"), Arguments::Unchecked)])],
    members: &[
        &[
            Member::new("OFF_TW_EXPIRES", "inet_timewait_sock", "tw_timer.expires"),
            Member::new("OFF_SKC_NUM", "sock_common", "skc_num"),
            Member::new(
                "OFF_ACCEPT_QUEUE_HEAD",
                "inet_connection_sock",
                "icsk_accept_queue.rskq_accept_head",
            ),
            Member::new("OFF_REQUEST_NEXT", "request_sock", "dl_next"),
            Member::new("OFF_REQUEST_SK", "request_sock", "sk"),
            Member::new("OFF_SKC_LISTENER", "sock_common", "skc_listener"),
            Member::bit("OFF_REQUEST_ACKED_BIT", "inet_request_sock", "acked:1"),
        ],
        held::LIVE_MEMBERS,
    ],
    lost: "TIME_WAIT and orphaned FIN_WAIT2 are computed, and lost records are repaired for held sockets only",
};
