//! Sockets that processes hold, listed by sweeps.

use super::{Spec, options};
use crate::kernel::{
    btf::offsets::Member,
    probes::way::{Arguments, Attach, Program, Way},
};

/// What sweeps report of a live connection beside its state and owner.
pub(super) const LIVE_MEMBERS: &[Member] = &[
    Member::new("OFF_CHRONO_TYPE", "tcp_sock", "chrono_type:2"),
    Member::new("OFF_CHRONO_START", "tcp_sock", "chrono_start"),
    Member::new("OFF_CHRONO_STAT", "tcp_sock", "chrono_stat"),
    Member::new("OFF_RATE_DELIVERED", "tcp_sock", "rate_delivered"),
    Member::new("OFF_RATE_INTERVAL_US", "tcp_sock", "rate_interval_us"),
    Member::new("OFF_MSS_CACHE", "tcp_sock", "mss_cache"),
    Member::new("OFF_ICSK_PROBES_OUT", "inet_connection_sock", "icsk_probes_out"),
    Member::new("OFF_RTT_MIN", "tcp_sock", "rtt_min.s"),
    Member::new("OFF_MDEV_US", "tcp_sock", "mdev_us"),
    Member::new("OFF_SK_SNDBUF", "sock", "sk_sndbuf"),
    Member::new("OFF_SK_RCVBUF", "sock", "sk_rcvbuf"),
    Member::new("OFF_ICSK_CA_OPS", "inet_connection_sock", "icsk_ca_ops"),
    Member::new("OFF_CA_OPS_NAME", "tcp_congestion_ops", "name"),
    options::NONAGLE,
    options::USER_TIMEOUT,
    Member::new("OFF_DEFER_ACCEPT", "inet_connection_sock", "icsk_accept_queue.rskq_defer_accept"),
];

const MEMBERS: &[Member] = &[
    Member::new("OFF_SOCKET_SK", "socket", "sk"),
    Member::new("OFF_FILE_PRIVATE_DATA", "file", "private_data"),
    Member::new("OFF_FILE_INODE", "file", "f_inode"),
    Member::new("OFF_INODE_SB", "inode", "i_sb"),
    Member::new("OFF_SB_MAGIC", "super_block", "s_magic"),
    Member::new("OFF_TASK_TGID", "task_struct", "tgid"),
];

pub(super) const SPEC: Spec = Spec {
    key: "held",
    title: "sockets held by processes",
    ways: &[
        // Two programs for one hook: Linux 5.10 has no bpf_sock_from_file.
        Way::by(&[Program::new("held_iter", Attach::Iter("task_file"), Arguments::Unchecked)]),
        Way::by(&[Program::new("held_iter_probing", Attach::Iter("task_file"), Arguments::Unchecked)]),
    ],
    members: &[MEMBERS, LIVE_MEMBERS],
    lost: "connections opened before the start are unknown until they change, and a descriptor passed to another \
           process is noticed only when that process closes it",
};
