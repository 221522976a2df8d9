//! The kernel struct members that the BPF programs read, and the globals that carry their offsets.

use crate::btf::{Btf, BtfError};

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
    ("OFF_SK_TYPE", "sock", "sk_type"),
    ("OFF_SK_ERR", "sock", "sk_err"),
    ("OFF_SK_SOCKET", "sock", "sk_socket"),
    ("OFF_SK_DROPS", "sock", "sk_drops"),
    ("OFF_SK_ACK_BACKLOG", "sock", "sk_ack_backlog"),
    ("OFF_SK_MAX_ACK_BACKLOG", "sock", "sk_max_ack_backlog"),
    ("OFF_INET_SPORT", "inet_sock", "inet_sport"),
    ("OFF_RCV_NXT", "tcp_sock", "rcv_nxt"),
    ("OFF_COPIED_SEQ", "tcp_sock", "copied_seq"),
    ("OFF_TOTAL_RETRANS", "tcp_sock", "total_retrans"),
    ("OFF_RCV_TSTAMP", "tcp_sock", "rcv_tstamp"),
    ("OFF_LSNDTIME", "tcp_sock", "lsndtime"),
    ("OFF_TW_SUBSTATE", "inet_timewait_sock", "tw_substate"),
    ("OFF_TW_SPORT", "inet_timewait_sock", "tw_sport"),
    ("OFF_TW_EXPIRES", "inet_timewait_sock", "tw_timer.expires"),
    ("OFF_SKC_NUM", "sock_common", "skc_num"),
    ("OFF_NET_INUM", "net", "ns.inum"),
    ("OFF_SOCKET_SK", "socket", "sk"),
    ("OFF_TASK_TGID", "task_struct", "tgid"),
    ("OFF_TASK_FLAGS", "task_struct", "flags"),
    ("OFF_TASK_COMM", "task_struct", "comm"),
    ("OFF_TASK_GROUP_LEADER", "task_struct", "group_leader"),
    ("OFF_TASK_START_BOOTTIME", "task_struct", "start_boottime"),
];

/// The value of each `OFF_*` global on the kernel that `btf` describes.
///
/// # Errors
/// When a struct or member is missing: every program needs nearly all of them.
pub fn resolve(btf: &Btf<'_>) -> Result<Vec<(&'static str, u32)>, BtfError> {
    FIELDS.iter().map(|(global, name, member)| Ok((*global, btf.offset_of(name, member)?))).collect()
}
