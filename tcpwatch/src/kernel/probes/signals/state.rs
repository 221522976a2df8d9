//! Changes of a socket's TCP state. Without them there is nothing to follow.

use super::Spec;
use crate::kernel::probes::{
    tracefs::Tracepoint,
    way::{Arguments, Attach, Program, Way},
};

/// sock:inet_sock_set_state reports a new listener, the function does not: inet_csk_listen_start sets the state itself.
const NEW_LISTENERS: &str = "new listeners are found by sweeps only";

const TRACEPOINT: Tracepoint = Tracepoint {
    category: "sock",
    name: "inet_sock_set_state",
    fields: &[
        ("TP_STATE_SKADDR", "skaddr"),
        ("TP_STATE_OLDSTATE", "oldstate"),
        ("TP_STATE_NEWSTATE", "newstate"),
        ("TP_STATE_PROTOCOL", "protocol"),
        ("TP_STATE_SPORT", "sport"),
        ("TP_STATE_DPORT", "dport"),
        ("TP_STATE_SADDR_V6", "saddr_v6"),
        ("TP_STATE_DADDR_V6", "daddr_v6"),
    ],
};

pub(super) const SPEC: Spec = Spec {
    key: "state",
    title: "state changes",
    ways: &[
        Way::by(&[Program::new(
            "state_tp_btf",
            Attach::TpBtf("inet_sock_set_state"),
            Arguments::First("sock", 3),
        )]),
        Way::by(&[Program::new(
            "state_raw_tp",
            Attach::RawTp("inet_sock_set_state"),
            Arguments::First("sock", 1),
        )]),
        Way::by(&[Program::new(
            "state_fentry",
            Attach::Fentry("tcp_set_state"),
            Arguments::First("sock", 1),
        )])
        .losing(NEW_LISTENERS),
        Way::by(&[Program::new(
            "state_kprobe",
            Attach::Kprobe("tcp_set_state"),
            Arguments::First("sock", 1),
        )])
        .losing(
            "new listeners are found by sweeps only; calls made inside another probe on the same processor are \
             skipped, uncounted",
        ),
        Way::by(&[Program::new("state_tracepoint", Attach::Tracepoint(&TRACEPOINT), Arguments::Unchecked)])
            .losing(
                "unknown without the kernel's types: network namespaces, executables and cgroups of processes, unread \
                 bytes, retransmits before the start, why connects fail, resets, which process holds a socket",
            ),
    ],
    members: &[],
    lost: "everything",
};
