//! The kernel struct members that the BPF programs read, and the globals that carry their offsets.

use crate::kernel::btf::{Btf, BtfError};

/// The registers of a probed function's first four arguments and of its return value (the kernel's calling
/// convention; `PT_REGS_PARM1` and the like of tools/lib/bpf/bpf_tracing.h).
#[cfg(target_arch = "x86_64")]
const REGISTERS: [(&str, u32); 5] = [("di", 0), ("si", 0), ("dx", 0), ("cx", 0), ("ax", 0)];
#[cfg(target_arch = "aarch64")]
const REGISTERS: [(&str, u32); 5] = [("regs", 0), ("regs", 8), ("regs", 16), ("regs", 24), ("regs", 0)];

/// The register globals, in that order.
const REGISTER_GLOBALS: [&str; 5] =
    ["OFF_REGS_ARG0", "OFF_REGS_ARG1", "OFF_REGS_ARG2", "OFF_REGS_ARG3", "OFF_REGS_RETURN"];

/// Global of the BPF object (`tcpwatch-ebpf/src/field.rs`), struct, member.
const FIELDS: &[(&str, &str, &str)] = &[
    ("OFF_SKC_DADDR", "sock_common", "skc_daddr"),
    ("OFF_SKC_RCV_SADDR", "sock_common", "skc_rcv_saddr"),
    ("OFF_SKC_DPORT", "sock_common", "skc_dport"),
    ("OFF_SKC_FAMILY", "sock_common", "skc_family"),
    ("OFF_SKC_STATE", "sock_common", "skc_state"),
    ("OFF_SKC_FLAGS", "sock_common", "skc_flags"),
    ("OFF_SKC_NET", "sock_common", "skc_net"),
    ("OFF_SKC_V6_DADDR", "sock_common", "skc_v6_daddr"),
    ("OFF_SKC_V6_RCV_SADDR", "sock_common", "skc_v6_rcv_saddr"),
    ("OFF_SKC_COOKIE", "sock_common", "skc_cookie"),
    ("OFF_SK_TYPE", "sock", "sk_type"),
    ("OFF_SK_PROTOCOL", "sock", "sk_protocol"),
    ("OFF_SK_ERR", "sock", "sk_err"),
    ("OFF_SK_SOCKET", "sock", "sk_socket"),
    ("OFF_SK_DROPS", "sock", "sk_drops"),
    ("OFF_SK_ACK_BACKLOG", "sock", "sk_ack_backlog"),
    ("OFF_SK_MAX_ACK_BACKLOG", "sock", "sk_max_ack_backlog"),
    ("OFF_INET_SPORT", "inet_sock", "inet_sport"),
    ("OFF_RCV_NXT", "tcp_sock", "rcv_nxt"),
    ("OFF_COPIED_SEQ", "tcp_sock", "copied_seq"),
    ("OFF_TOTAL_RETRANS", "tcp_sock", "total_retrans"),
    ("OFF_BYTES_SENT", "tcp_sock", "bytes_sent"),
    ("OFF_BYTES_RETRANS", "tcp_sock", "bytes_retrans"),
    ("OFF_BYTES_RECEIVED", "tcp_sock", "bytes_received"),
    ("OFF_DSACK_DUPS", "tcp_sock", "dsack_dups"),
    ("OFF_ICSK_CA_STATE", "inet_connection_sock", "icsk_ca_state:5"),
    ("OFF_ICSK_PENDING", "inet_connection_sock", "icsk_pending"),
    ("OFF_UNDO_MARKER", "tcp_sock", "undo_marker"),
    ("OFF_FIRST_TX_MSTAMP", "tcp_sock", "first_tx_mstamp"),
    ("OFF_TCP_RTX_QUEUE", "sock", "tcp_rtx_queue"),
    ("OFF_RB_LEFT", "rb_node", "rb_left"),
    ("OFF_SKB_SK", "sk_buff", "sk"),
    ("OFF_SKB_HEAD", "sk_buff", "head"),
    ("OFF_SKB_NETWORK_HEADER", "sk_buff", "network_header"),
    ("OFF_SKB_LEN", "sk_buff", "len"),
    ("OFF_SKB_MSTAMP_NS", "sk_buff", "skb_mstamp_ns"),
    ("OFF_SKB_RBNODE", "sk_buff", "rbnode"),
    ("OFF_SKB_CB", "sk_buff", "cb"),
    ("OFF_SKB_CB_SEGMENTS", "tcp_skb_cb", "tcp_gso_segs"),
    ("OFF_SKB_CB_SACKED", "tcp_skb_cb", "sacked"),
    ("OFF_SKB_CB_END_SEQ", "tcp_skb_cb", "end_seq"),
    ("OFF_OUT_OF_ORDER_QUEUE", "tcp_sock", "out_of_order_queue"),
    ("OFF_OOO_LAST_SKB", "tcp_sock", "ooo_last_skb"),
    ("OFF_RCV_OOOPACK", "tcp_sock", "rcv_ooopack"),
    ("OFF_SKB_CB_SEQ", "tcp_skb_cb", "seq"),
    ("OFF_SEGS_OUT", "tcp_sock", "segs_out"),
    ("OFF_DATA_SEGS_OUT", "tcp_sock", "data_segs_out"),
    ("OFF_WRITE_SEQ", "tcp_sock", "write_seq"),
    ("OFF_SND_NXT", "tcp_sock", "snd_nxt"),
    ("OFF_SND_UNA", "tcp_sock", "snd_una"),
    ("OFF_SK_LINGERTIME", "sock", "sk_lingertime"),
    ("OFF_NONAGLE", "tcp_sock", "nonagle:4"),
    ("OFF_ICSK_USER_TIMEOUT", "inet_connection_sock", "icsk_user_timeout"),
    ("OFF_KEEPALIVE_TIME", "tcp_sock", "keepalive_time"),
    ("OFF_KEEPALIVE_INTVL", "tcp_sock", "keepalive_intvl"),
    ("OFF_KEEPALIVE_PROBES", "tcp_sock", "keepalive_probes"),
    ("OFF_NET_KEEPALIVE_TIME", "net", "ipv4.sysctl_tcp_keepalive_time"),
    ("OFF_NET_KEEPALIVE_INTVL", "net", "ipv4.sysctl_tcp_keepalive_intvl"),
    ("OFF_NET_KEEPALIVE_PROBES", "net", "ipv4.sysctl_tcp_keepalive_probes"),
    ("OFF_TCP_CLOCK_CACHE", "tcp_sock", "tcp_clock_cache"),
    ("OFF_RCV_TSTAMP", "tcp_sock", "rcv_tstamp"),
    ("OFF_LSNDTIME", "tcp_sock", "lsndtime"),
    ("OFF_LRCVTIME", "inet_connection_sock", "icsk_ack.lrcvtime"),
    ("OFF_PACKETS_OUT", "tcp_sock", "packets_out"),
    ("OFF_SRTT_US", "tcp_sock", "srtt_us"),
    ("OFF_CHRONO_TYPE", "tcp_sock", "chrono_type:2"),
    ("OFF_CHRONO_START", "tcp_sock", "chrono_start"),
    ("OFF_CHRONO_STAT", "tcp_sock", "chrono_stat"),
    ("OFF_RATE_DELIVERED", "tcp_sock", "rate_delivered"),
    ("OFF_RATE_INTERVAL_US", "tcp_sock", "rate_interval_us"),
    ("OFF_MSS_CACHE", "tcp_sock", "mss_cache"),
    ("OFF_ICSK_PROBES_OUT", "inet_connection_sock", "icsk_probes_out"),
    ("OFF_RTT_MIN", "tcp_sock", "rtt_min.s"),
    ("OFF_MDEV_US", "tcp_sock", "mdev_us"),
    ("OFF_SK_SNDBUF", "sock", "sk_sndbuf"),
    ("OFF_SK_RCVBUF", "sock", "sk_rcvbuf"),
    ("OFF_ICSK_CA_OPS", "inet_connection_sock", "icsk_ca_ops"),
    ("OFF_CA_OPS_NAME", "tcp_congestion_ops", "name"),
    ("OFF_TW_SUBSTATE", "inet_timewait_sock", "tw_substate"),
    ("OFF_TW_SPORT", "inet_timewait_sock", "tw_sport"),
    ("OFF_TW_EXPIRES", "inet_timewait_sock", "tw_timer.expires"),
    ("OFF_SKC_NUM", "sock_common", "skc_num"),
    ("OFF_NET_INUM", "net", "ns.inum"),
    ("OFF_NET_COOKIE", "net", "net_cookie"),
    ("OFF_SOCKET_SK", "socket", "sk"),
    ("OFF_FILE_PRIVATE_DATA", "file", "private_data"),
    ("OFF_FILE_INODE", "file", "f_inode"),
    ("OFF_INODE_SB", "inode", "i_sb"),
    ("OFF_SB_MAGIC", "super_block", "s_magic"),
    ("OFF_TASK_TGID", "task_struct", "tgid"),
    ("OFF_TASK_FLAGS", "task_struct", "flags"),
    ("OFF_TASK_COMM", "task_struct", "comm"),
    ("OFF_TASK_GROUP_LEADER", "task_struct", "group_leader"),
    ("OFF_TASK_START_BOOTTIME", "task_struct", "start_boottime"),
];

/// What tells how long delivery stands still.
const STALL: &[&str] = &[
    "OFF_UNDO_MARKER",
    "OFF_FIRST_TX_MSTAMP",
    "OFF_TCP_RTX_QUEUE",
    "OFF_RB_LEFT",
    "OFF_SKB_MSTAMP_NS",
    "OFF_SKB_RBNODE",
    "OFF_SKB_CB",
    "OFF_SKB_CB_SACKED",
    "OFF_SKB_CB_END_SEQ",
];

/// What sweeps tell of connections beside their state and owner.
const LIVE: &[&str] = &[
    "OFF_CHRONO_TYPE",
    "OFF_CHRONO_START",
    "OFF_CHRONO_STAT",
    "OFF_RATE_DELIVERED",
    "OFF_RATE_INTERVAL_US",
    "OFF_MSS_CACHE",
    "OFF_ICSK_PROBES_OUT",
    "OFF_RTT_MIN",
    "OFF_MDEV_US",
    "OFF_SK_SNDBUF",
    "OFF_SK_RCVBUF",
    "OFF_ICSK_CA_OPS",
    "OFF_CA_OPS_NAME",
    "OFF_NONAGLE",
    "OFF_ICSK_USER_TIMEOUT",
];

/// The signals that can do without the others, and the members that only they need.
const ONLY_FOR: &[(&str, &[&str])] = &[
    ("retransmit", &["OFF_ICSK_PENDING", "OFF_SKB_LEN", "OFF_SKB_CB_SEGMENTS"]),
    ("policy_reset", &["OFF_SKB_SK", "OFF_SKB_HEAD", "OFF_SKB_NETWORK_HEADER"]),
    ("retransmit", STALL),
    ("congestion", STALL),
    ("out_of_order", &["OFF_OUT_OF_ORDER_QUEUE", "OFF_OOO_LAST_SKB", "OFF_SKB_CB_SEQ", "OFF_SKB_CB"]),
    (
        "held",
        &[
            "OFF_SOCKET_SK",
            "OFF_FILE_PRIVATE_DATA",
            "OFF_FILE_INODE",
            "OFF_INODE_SB",
            "OFF_SB_MAGIC",
            "OFF_TASK_TGID",
        ],
    ),
    ("held", LIVE),
    ("unheld", &["OFF_TW_EXPIRES", "OFF_SKC_NUM"]),
    ("unheld", LIVE),
    (
        "options",
        &[
            "OFF_NONAGLE",
            "OFF_ICSK_USER_TIMEOUT",
            "OFF_KEEPALIVE_TIME",
            "OFF_KEEPALIVE_INTVL",
            "OFF_KEEPALIVE_PROBES",
            "OFF_NET_KEEPALIVE_TIME",
            "OFF_NET_KEEPALIVE_INTVL",
            "OFF_NET_KEEPALIVE_PROBES",
        ],
    ),
];

/// What the programs have to be told of the kernel's structs.
#[derive(Debug, Default)]
pub struct Offsets {
    /// Value of each `OFF_*` global.
    pub globals: Vec<(&'static str, u32)>,
    /// Signals that cannot be had on this kernel, and why.
    pub unavailable: Vec<(&'static str, BtfError)>,
}

/// The value of each `OFF_*` global on the kernel that `btf` describes.
///
/// # Errors
/// When a struct or member is missing that every program needs.
pub fn resolve(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    let mut offsets = Offsets::default();
    let members = FIELDS.iter().map(|(global, name, member)| (*global, *name, *member, 0));
    let registers = REGISTER_GLOBALS.into_iter().zip(REGISTERS);
    let registers = registers.map(|(global, (member, further))| (global, "pt_regs", member, further));
    for (global, name, member, further) in members.chain(registers) {
        match btf.offset_of(name, member) {
            Ok(offset) => offsets.globals.push((global, offset + further)),
            Err(error) => {
                let without = ONLY_FOR.iter().filter(|(_, globals)| globals.contains(&global));
                let known = offsets.unavailable.len();
                offsets.unavailable.extend(without.map(|(signal, _)| (*signal, error.clone())));
                if offsets.unavailable.len() == known {
                    return Err(error);
                }
            }
        }
    }
    Ok(offsets)
}
