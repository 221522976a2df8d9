//! Resets: the tracepoints tcp_send_reset and tcp_receive_reset.
//!
//! Sent ones are told by tcp_send_active_reset (net/ipv4/tcp_output.c), for the application or a timer and without a
//! segment that they answer, and by tcp_v4_send_reset and tcp_v6_send_reset, of minisocks and of no socket at all from
//! Linux 6.10 on. Whoever closes in an abortive way has set the state to CLOSE before that.
//!
//! tcp_receive_reset is told by tcp_reset (net/ipv4/tcp_input.c), before the state changes. That is also how the kernel
//! ends a connection on which data comes that nobody can receive any more: then it sends a reset at once, in answer.

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_ktime_get_ns,
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use aya_log_ebpf::debug;
use tcpwatch_common::{
    KIND_RESET, RESET_ANSWERS, RESET_EXITING, RESET_RECEIVED, RESET_ZERO_LINGER, ResetEvent, SocketEvent,
    counter::{LOST_RECEIVED_RESET, LOST_SENT_RESET, RESET_LISTENER, RESET_NO_SOCKET},
    state::LISTEN,
};

use crate::{
    event::{self, What},
    field::{Kernel, OFF_SKC_STATE, Raw, Typed},
    fill, ring, task,
};

/// include/net/tcp_states.h: TCP_NEW_SYN_RECV, of the request of a connection, which is no full socket.
pub const NEW_SYN_RECV: u8 = 12;

/// tcp_send_reset(sk, skb, ...).
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn send_reset_tp_btf(ctx: BtfTracePointContext) -> i32 {
    sent(&ctx, Typed::new(ctx.arg(0)), ctx.arg(1));
    0
}

#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn send_reset_raw_tp(ctx: RawTracePointContext) -> i32 {
    sent(&ctx, Raw::new(ctx.arg(0)), ctx.arg(1));
    0
}

/// tcp_receive_reset(sk).
#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn receive_reset_tp_btf(ctx: BtfTracePointContext) -> i32 {
    if let Some(sk) = Typed::new(ctx.arg(0)).and_then(Kernel::tcp_sock) {
        tell(&ctx, sk, RESET_RECEIVED, LOST_RECEIVED_RESET);
    }
    0
}

#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn receive_reset_raw_tp(ctx: RawTracePointContext) -> i32 {
    if let Some(sk) = Raw::new(ctx.arg(0)).and_then(Kernel::tcp_sock) {
        tell(&ctx, sk, RESET_RECEIVED, LOST_RECEIVED_RESET);
    }
    0
}

#[inline(always)]
fn sent(ctx: &impl EbpfContext, sk: Option<impl Kernel>, answered: *const u8) {
    let Some(sk) = sk else {
        ring::count(RESET_NO_SOCKET);
        return;
    };
    // Whoever scans ports or floods makes many of these: counted only.
    let state = sk.read::<u8>(&OFF_SKC_STATE);
    if state == LISTEN || state == NEW_SYN_RECV {
        ring::count(RESET_LISTENER);
        return;
    }
    let answers = if answered.is_null() { 0 } else { RESET_ANSWERS };
    if let Some(tw) = sk.minisock() {
        // SAFETY: no arguments.
        let event = event::describe_minisock(tw, unsafe { bpf_ktime_get_ns() }, KIND_RESET);
        let socket = SocketEvent { value: answers, ..event };
        send(
            ctx,
            ResetEvent { socket, unread_bytes: 0, unsent: 0, unacknowledged: 0, zero: 0 },
            LOST_SENT_RESET,
        );
    } else if let Some(sk) = sk.tcp_sock() {
        // An answer is sent in a softirq, on top of anyone.
        let exiting = if answers == 0 && task::exits() { RESET_EXITING } else { 0 };
        tell(ctx, sk, answers | exiting, LOST_SENT_RESET);
    }
}

#[inline(always)]
pub fn tell(ctx: &impl EbpfContext, sk: impl Kernel, told: u32, lost: u32) {
    let state = sk.read::<u8>(&OFF_SKC_STATE);
    let flags = fill::flags(sk);
    let zero_linger = if fill::has_zero_linger(sk) { RESET_ZERO_LINGER } else { 0 };
    let what =
        What { kind: KIND_RESET, old_state: state, new_state: state, flags, value: told | zero_linger, lost };
    // SAFETY: no arguments.
    let socket = event::describe(sk, unsafe { bpf_ktime_get_ns() }, &what);
    let unread_bytes = fill::unread_bytes(sk, flags);
    let (unsent, unacknowledged) = fill::undelivered(sk);
    send(ctx, ResetEvent { socket, unread_bytes, unsent, unacknowledged, zero: 0 }, lost);
}

#[inline(always)]
fn send(ctx: &impl EbpfContext, event: ResetEvent, lost: u32) {
    let Some(mut entry) = ring::reserve::<ResetEvent>(lost) else {
        debug!(ctx, "no room for a reset of socket {:x}", event.socket.cookie);
        return;
    };
    entry.write(event);
    ring::submit(entry);
}
