//! Members of kernel structs that the BPF programs read, and the globals that carry their byte offsets.
//!
//! Listed here: what every program needs. What only one signal's programs need is listed with that signal
//! (kernel/probes/signals/).

use crate::kernel::btf::{Btf, BtfError};

/// A member of a kernel struct, and the global of the BPF object that carries its offset
/// (`tcpwatch-ebpf/src/read/`).
#[derive(Debug)]
pub struct Member {
    pub global: &'static str,
    structure: &'static str,
    /// As [`Btf::offset_of`] takes it; where kernels differ, all names, with `|` between them.
    path: &'static str,
    /// Bytes from the beginning of the member.
    further: u32,
    /// Whether the global carries bits, not bytes.
    in_bits: bool,
}

impl Member {
    pub const fn new(global: &'static str, structure: &'static str, path: &'static str) -> Self {
        Self { global, structure, path, further: 0, in_bits: false }
    }

    /// A bit field that need not begin with a byte.
    pub const fn bit(global: &'static str, structure: &'static str, path: &'static str) -> Self {
        Self { global, structure, path, further: 0, in_bits: true }
    }

    const fn register(global: &'static str, (path, further): (&'static str, u32)) -> Self {
        Self { global, structure: "pt_regs", path, further, in_bits: false }
    }
}

/// A global of the BPF object, and the value that it gets before the object is loaded.
pub type Global = (&'static str, u32);

/// Resolves `members` on the kernel that `btf` describes: appends the value of each global to `globals`.
///
/// # Errors
/// The first member that this kernel does not have; the others are resolved all the same.
pub fn resolve<'a>(
    btf: &Btf<'_>,
    members: impl IntoIterator<Item = &'a Member>,
    globals: &mut Vec<Global>,
) -> Result<(), BtfError> {
    let mut missing = None;
    for member in members {
        let offset = |path| {
            if member.in_bits {
                btf.bit_offset_of(member.structure, path)
            } else {
                btf.offset_of(member.structure, path)
            }
        };
        match member.path.split('|').map(offset).reduce(Result::or) {
            Some(Ok(offset)) => globals.push((member.global, offset + member.further)),
            Some(Err(error)) => missing = missing.or(Some(error)),
            None => {}
        }
    }
    missing.map_or(Ok(()), Err)
}

/// What is known less exactly without one of these, whose offset is 0 then.
pub const OPTIONAL: &[Member] = &[
    Member::new("OFF_TASK_SELF_EXEC_ID", "task_struct", "self_exec_id"),
    Member::new("OFF_TASK_MM", "task_struct", "mm"),
    Member::new("OFF_MM_START_STACK", "mm_struct", "start_stack"),
];

/// The registers of a probed function's first four arguments and of its return value (the kernel's calling
/// convention; `PT_REGS_PARM1` and the like of tools/lib/bpf/bpf_tracing.h).
#[cfg(target_arch = "x86_64")]
const REGISTERS: [(&str, u32); 5] = [("di", 0), ("si", 0), ("dx", 0), ("cx", 0), ("ax", 0)];
#[cfg(target_arch = "aarch64")]
const REGISTERS: [(&str, u32); 5] = [("regs", 0), ("regs", 8), ("regs", 16), ("regs", 24), ("regs", 0)];

/// Without one of these nothing can be loaded.
pub const COMMON: &[Member] = &[
    Member::new("OFF_SKC_DADDR", "sock_common", "skc_daddr"),
    Member::new("OFF_SKC_RCV_SADDR", "sock_common", "skc_rcv_saddr"),
    Member::new("OFF_SKC_DPORT", "sock_common", "skc_dport"),
    Member::new("OFF_SKC_FAMILY", "sock_common", "skc_family"),
    Member::new("OFF_SKC_STATE", "sock_common", "skc_state"),
    Member::new("OFF_SKC_FLAGS", "sock_common", "skc_flags"),
    Member::new("OFF_SKC_REUSE", "sock_common", "skc_reuse:4"),
    Member::new("OFF_SKC_NET", "sock_common", "skc_net"),
    Member::new("OFF_SKC_BOUND_DEV_IF", "sock_common", "skc_bound_dev_if"),
    Member::new("OFF_SKC_V6_DADDR", "sock_common", "skc_v6_daddr"),
    Member::new("OFF_SKC_V6_RCV_SADDR", "sock_common", "skc_v6_rcv_saddr"),
    Member::new("OFF_SKC_COOKIE", "sock_common", "skc_cookie"),
    Member::new("OFF_SK_TYPE", "sock", "sk_type"),
    Member::new("OFF_SK_PROTOCOL", "sock", "sk_protocol"),
    Member::new("OFF_SK_ERR", "sock", "sk_err"),
    Member::new("OFF_SK_SHUTDOWN", "sock", "sk_shutdown"),
    Member::new("OFF_SK_SOCKET", "sock", "sk_socket"),
    Member::new("OFF_SK_DROPS", "sock", "sk_drops"),
    Member::new("OFF_SK_ACK_BACKLOG", "sock", "sk_ack_backlog"),
    Member::new("OFF_SK_MAX_ACK_BACKLOG", "sock", "sk_max_ack_backlog"),
    Member::new("OFF_INET_SPORT", "inet_sock", "inet_sport"),
    Member::new("OFF_RCV_NXT", "tcp_sock", "rcv_nxt"),
    Member::new("OFF_COPIED_SEQ", "tcp_sock", "copied_seq"),
    Member::new("OFF_TOTAL_RETRANS", "tcp_sock", "total_retrans"),
    Member::new("OFF_BYTES_SENT", "tcp_sock", "bytes_sent"),
    Member::new("OFF_BYTES_RETRANS", "tcp_sock", "bytes_retrans"),
    Member::new("OFF_BYTES_RECEIVED", "tcp_sock", "bytes_received"),
    Member::new("OFF_DSACK_DUPS", "tcp_sock", "dsack_dups"),
    Member::new("OFF_ICSK_CA_STATE", "inet_connection_sock", "icsk_ca_state:5"),
    Member::new("OFF_RCV_OOOPACK", "tcp_sock", "rcv_ooopack"),
    Member::new("OFF_SEGS_OUT", "tcp_sock", "segs_out"),
    Member::new("OFF_DATA_SEGS_OUT", "tcp_sock", "data_segs_out"),
    Member::new("OFF_WRITE_SEQ", "tcp_sock", "write_seq"),
    Member::new("OFF_SND_NXT", "tcp_sock", "snd_nxt"),
    Member::new("OFF_SND_UNA", "tcp_sock", "snd_una"),
    Member::new("OFF_SK_LINGERTIME", "sock", "sk_lingertime"),
    Member::new("OFF_TCP_CLOCK_CACHE", "tcp_sock", "tcp_clock_cache"),
    Member::new("OFF_RCV_TSTAMP", "tcp_sock", "rcv_tstamp"),
    Member::new("OFF_LSNDTIME", "tcp_sock", "lsndtime"),
    Member::new("OFF_LRCVTIME", "inet_connection_sock", "icsk_ack.lrcvtime"),
    Member::new("OFF_PACKETS_OUT", "tcp_sock", "packets_out"),
    Member::new("OFF_SRTT_US", "tcp_sock", "srtt_us"),
    Member::new("OFF_TW_SUBSTATE", "inet_timewait_sock", "tw_substate"),
    Member::new("OFF_TW_SPORT", "inet_timewait_sock", "tw_sport"),
    Member::new("OFF_NET_INUM", "net", "ns.inum"),
    Member::new("OFF_NET_COOKIE", "net", "net_cookie"),
    Member::new("OFF_TASK_FLAGS", "task_struct", "flags"),
    Member::new("OFF_TASK_COMM", "task_struct", "comm"),
    Member::new("OFF_TASK_GROUP_LEADER", "task_struct", "group_leader"),
    Member::new("OFF_TASK_START_BOOTTIME", "task_struct", "start_boottime"),
    Member::register("OFF_REGS_ARG0", REGISTERS[0]),
    Member::register("OFF_REGS_ARG1", REGISTERS[1]),
    Member::register("OFF_REGS_ARG2", REGISTERS[2]),
    Member::register("OFF_REGS_ARG3", REGISTERS[3]),
    Member::register("OFF_REGS_RETURN", REGISTERS[4]),
];

/// Of Multipath TCP, which not every kernel has. The globals of those that are missing stay 0, and then the programs do not
/// look for subflows.
pub const MPTCP: &[Member] = &[
    Member::new("OFF_IS_MPTCP", "tcp_sock", "is_mptcp"),
    Member::new("OFF_ICSK_ULP_DATA", "inet_connection_sock", "icsk_ulp_data"),
    Member::new("OFF_MPTCP_CONN_LIST", "mptcp_sock", "conn_list"),
    Member::new("OFF_SUBFLOW_NODE", "mptcp_subflow_context", "node"),
    Member::new("OFF_SUBFLOW_TCP_SOCK", "mptcp_subflow_context", "tcp_sock"),
    Member::new("OFF_SUBFLOW_CONN", "mptcp_subflow_context", "conn"),
];
