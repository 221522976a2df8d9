//! What a TCP socket knows about itself. In: a `struct tcp_sock`. Out: the numbers and flags that records carry. A subflow
//! of Multipath TCP is held as its MPTCP socket is. Deliberately absent: its ends, its namespace, its identity and its options, which have files of their own, and its
//! queues of segments (`segment.rs`).

use tcpwatch_common::{
    FLAG_BOUND, FLAG_CONNECTED, FLAG_FIN_RECEIVED, FLAG_HELD, FLAG_ORPHAN, FLAG_PASSIVE, FLAG_UNSENT,
    state::{CLOSE, CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT1, LAST_ACK},
};

use crate::read::{
    endpoints,
    offsets::{
        self, OFF_BYTES_RECEIVED, OFF_BYTES_RETRANS, OFF_BYTES_SENT, OFF_COPIED_SEQ, OFF_ICSK_CA_STATE,
        OFF_ICSK_ULP_DATA, OFF_IS_MPTCP, OFF_RCV_NXT, OFF_RCV_OOOPACK, OFF_SEGS_OUT, OFF_SK_ERR,
        OFF_SK_LINGERTIME, OFF_SK_MAX_ACK_BACKLOG, OFF_SK_SHUTDOWN, OFF_SK_SOCKET, OFF_SKC_FLAGS,
        OFF_SKC_REUSE, OFF_SND_NXT, OFF_SND_UNA, OFF_SRTT_US, OFF_SUBFLOW_CONN, OFF_TOTAL_RETRANS,
        OFF_WRITE_SEQ,
    },
    pointer::{KernelPtr, ProbedPtr},
};

/// Bit numbers of `sk_flags` (enum sock_flags, include/net/sock.h): unchanged since Linux 2.6.
const SOCK_DEAD: u32 = 0;
const SOCK_DONE: u32 = 1;
pub const SOCK_KEEPOPEN: u32 = 3;
pub const SOCK_LINGER: u32 = 4;

/// include/net/tcp_states.h: TCP_NEW_SYN_RECV, the state of the request of a connection, which is no full socket.
pub const NEW_SYN_RECV: u8 = 12;

/// include/net/tcp.h, enum tcp_ca_state: unchanged since Linux 2.6; five bits.
pub const CA_RECOVERY: u8 = 3;
pub const CA_LOSS: u8 = 4;
const CA_BITS: u8 = 0x1f;

/// `FLAG_*` of the socket as it is now.
#[inline(always)]
pub fn flags(tcp: impl KernelPtr) -> u8 {
    let sk = tcp.sock();
    let sk_flags = sk.read::<u64>(&OFF_SKC_FLAGS);
    // Without a branch: the index is positive.
    let mut flags = (endpoints::interface(sk).wrapping_neg() >> 31) as u8 * FLAG_BOUND;
    if sk_flags & (1 << SOCK_DONE) != 0 {
        flags |= FLAG_FIN_RECEIVED;
    }
    if sk_flags & (1 << SOCK_DEAD) != 0 {
        flags |= FLAG_ORPHAN;
    }
    if sk.read::<u64>(&OFF_SK_SOCKET) != 0 {
        flags |= FLAG_HELD;
    }
    if sk.read::<u32>(&OFF_SK_MAX_ACK_BACKLOG) != 0 {
        flags |= FLAG_PASSIVE;
    }
    if flags & (FLAG_HELD | FLAG_ORPHAN) == 0 && is_subflow(tcp) {
        flags |= holding_of_subflow(tcp);
    }
    flags
}

/// Whether it is a subflow of Multipath TCP. Never where this kernel has none.
#[inline(always)]
fn is_subflow(tcp: impl KernelPtr) -> bool {
    offsets::value(&OFF_IS_MPTCP) != 0 && tcp.read::<u8>(&OFF_IS_MPTCP) != 0
}

/// `FLAG_HELD` or `FLAG_ORPHAN` of the MPTCP socket of a subflow that has no file itself: mptcp_close
/// (net/mptcp/protocol.c) takes the file from the subflows, and only later closes them. None of the two while nobody has
/// accepted the MPTCP socket.
#[inline(always)]
fn holding_of_subflow(tcp: impl KernelPtr) -> u8 {
    let context = ProbedPtr::new(tcp.read(&OFF_ICSK_ULP_DATA));
    let Some(mptcp) = context.and_then(|context| context.follow(&OFF_SUBFLOW_CONN)) else { return 0 };
    if mptcp.read::<u64>(&OFF_SKC_FLAGS) & (1 << SOCK_DEAD) != 0 {
        FLAG_ORPHAN
    } else if mptcp.read::<u64>(&OFF_SK_SOCKET) != 0 {
        FLAG_HELD
    } else {
        0
    }
}

/// `FLAG_UNSENT` for a socket whose connect failed. tcp_disconnect (net/ipv4/tcp.c) sets `segs_out` to 0 for the next
/// connect.
#[inline(always)]
pub fn unsent_flag(sk: impl KernelPtr) -> u8 {
    if sk.read::<u32>(&OFF_SEGS_OUT) == 0 { FLAG_UNSENT } else { 0 }
}

/// The lower four bits of a byte: `skc_reuse`.
const REUSE_BITS: u8 = 0xf;
/// include/net/sock.h: SK_FORCE_REUSE, which only repair mode sets, until it is left (do_tcp_setsockopt in
/// net/ipv4/tcp.c).
const FORCE_REUSE: u8 = 2;

/// `FLAG_UNSENT` for a socket in repair mode, in which it connects and closes without a segment.
#[inline(always)]
pub fn repair_flag(sk: impl KernelPtr) -> u8 {
    if sk.sock().read::<u8>(&OFF_SKC_REUSE) & REUSE_BITS == FORCE_REUSE { FLAG_UNSENT } else { 0 }
}

/// Whether both directions are shut down (SHUTDOWN_MASK, include/net/sock.h), as close() does before it changes the
/// state. So a socket in SYN_SENT that has sent nothing, and waited for the first data (TCP_FASTOPEN_CONNECT), differs
/// from a connect() that fails.
#[inline(always)]
pub fn is_shut_down(sk: impl KernelPtr) -> bool {
    sk.sock().read::<u8>(&OFF_SK_SHUTDOWN) == 3
}

/// Microseconds from the SYN to its acknowledgement, when that has just come; 0 where the SYN was retransmitted. Until
/// then the smoothed time has this one measurement, in eighths.
#[inline(always)]
pub fn handshake_micros(sk: impl KernelPtr) -> u32 {
    if sk.read::<u32>(&OFF_TOTAL_RETRANS) == 0 { sk.read::<u32>(&OFF_SRTT_US) >> 3 } else { 0 }
}

/// Each time that a socket without a connection is disconnected its sequence number grows by 2 (tcp_disconnect in
/// net/ipv4/tcp.c); connect() sets it to a random one.
const MOST_UNCONNECTED_SEQ: u32 = 64;

/// `FLAG_CONNECTED` of a socket in this state.
#[inline(always)]
pub fn connected_flag(sk: impl KernelPtr, state: u8) -> u8 {
    let connected = (state == CLOSE) as u8 & (sk.read::<u32>(&OFF_WRITE_SEQ) > MOST_UNCONNECTED_SEQ) as u8;
    connected * FLAG_CONNECTED
}

/// Received bytes that the application has not read. A FIN takes one sequence number, which is no byte.
#[inline(always)]
pub fn unread_bytes(sk: impl KernelPtr, flags: u8) -> u32 {
    let waiting = sk.read::<u32>(&OFF_RCV_NXT).wrapping_sub(sk.read::<u32>(&OFF_COPIED_SEQ));
    if flags & FLAG_FIN_RECEIVED != 0 { waiting.saturating_sub(1) } else { waiting }
}

/// Bytes of data sent and received, each once (`TrafficEvent`). tcp_rcv_nxt_update (net/ipv4/tcp_input.c) counts the
/// FIN as a byte received.
#[inline(always)]
pub fn traffic(sk: impl KernelPtr, flags: u8) -> (u64, u64) {
    let sent = sk.read::<u64>(&OFF_BYTES_SENT).wrapping_sub(sk.read(&OFF_BYTES_RETRANS));
    let fin = (flags & FLAG_FIN_RECEIVED != 0) as u64;
    (sent, sk.read::<u64>(&OFF_BYTES_RECEIVED).wrapping_sub(fin))
}

/// Sequence numbers written and not sent, and sent and not acknowledged: one a byte, and one for a SYN or FIN.
#[inline(always)]
pub fn undelivered(sk: impl KernelPtr) -> (u32, u32) {
    let next = sk.read::<u32>(&OFF_SND_NXT);
    let unsent = sk.read::<u32>(&OFF_WRITE_SEQ).wrapping_sub(next);
    (unsent, next.wrapping_sub(sk.read(&OFF_SND_UNA)))
}

/// Bytes sent and not acknowledged.
#[inline(always)]
pub fn outstanding_bytes(sk: impl KernelPtr, state: u8) -> u32 {
    let numbers = sk.read::<u32>(&OFF_SND_NXT).wrapping_sub(sk.read(&OFF_SND_UNA));
    numbers.saturating_sub(sent_fin(sk, state))
}

/// 1 if a FIN was sent and is not acknowledged, which takes a sequence number; else 0.
#[inline(always)]
pub fn sent_fin(sk: impl KernelPtr, state: u8) -> u32 {
    let closed = matches!(state, FIN_WAIT1 | CLOSING | LAST_ACK);
    (closed && sk.read::<u32>(&OFF_SND_NXT) == sk.read::<u32>(&OFF_WRITE_SEQ)) as u32
}

/// The state of its congestion control, such as `CA_RECOVERY`.
#[inline(always)]
pub fn ca_state(sk: impl KernelPtr) -> u8 {
    sk.read::<u8>(&OFF_ICSK_CA_STATE) & CA_BITS
}

/// Whether a segment ever came out of order on this socket: for most none does.
#[inline(always)]
pub fn was_out_of_order(sk: impl KernelPtr) -> bool {
    sk.read::<u32>(&OFF_RCV_OOOPACK) != 0
}

/// Whether closing the socket resets the connection, whatever was read.
#[inline(always)]
pub fn has_zero_linger(sk: impl KernelPtr) -> bool {
    sk.read::<u64>(&OFF_SKC_FLAGS) & (1 << SOCK_LINGER) != 0 && sk.read::<u64>(&OFF_SK_LINGERTIME) == 0
}

/// Whether tcp_close() will send a FIN, and so change the state to FIN_WAIT1 or LAST_ACK: with nothing
/// unread and no zero linger time (`__tcp_close`, net/ipv4/tcp.c).
#[inline(always)]
pub fn closes_in_order(sk: impl KernelPtr, state: u8, flags: u8) -> bool {
    let aborts = has_zero_linger(sk) || unread_bytes(sk, flags) != 0;
    (state == ESTABLISHED || state == CLOSE_WAIT) && !aborts
}

/// The bits of `SocketEvent::value` that hold the retransmitted segments in a transition to CLOSE.
pub const RETRANSMITS: u32 = (1 << 24) - 1;

/// The errno that ended the socket and its retransmits, as `SocketEvent::value` carries them.
#[inline(always)]
pub fn error_and_retransmits(sk: impl KernelPtr) -> u32 {
    let retransmits = sk.read::<u32>(&OFF_TOTAL_RETRANS);
    let retransmits = if retransmits > RETRANSMITS { RETRANSMITS } else { retransmits };
    sk.sock().read::<u32>(&OFF_SK_ERR) << 24 | retransmits
}
