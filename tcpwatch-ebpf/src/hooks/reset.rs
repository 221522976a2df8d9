//! Resets: the tracepoints tcp_send_reset and tcp_receive_reset. In: the socket, and the segment that a reset
//! answers. Out: a record of a reset. Deliberately absent: records of resets that no socket, a listener or a request
//! sends: a port scan or flood makes many, so they are counted only.
//!
//! tcp_send_reset is called by tcp_send_active_reset (net/ipv4/tcp_output.c), for the application or a timer and
//! without a segment that it answers, and by tcp_v4_send_reset and tcp_v6_send_reset, from Linux 6.10 on also for
//! minisocks and without any socket. An abortive close has set the state to CLOSE before that, and runs in the process that
//! closes or exits; timers send their resets before they set it. The one exception is a connection that is established
//! while its listener closes: the softirq that would have queued it may reset it (inet_csk_reqsk_queue_add in
//! net/ipv4/inet_connection_sock.c).
//!
//! tcp_receive_reset is called by tcp_reset (net/ipv4/tcp_input.c), before the state changes. That is also how the
//! kernel ends a connection on which data comes that no process can receive any more: then it sends a reset at once,
//! in answer.

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use tcpwatch_common::{
    RESET_ANSWERS, RESET_EXITING, RESET_RECEIVED,
    counter::{LOST_RECEIVED_RESET, LOST_SENT_RESET, RESET_LISTENER, RESET_NO_SOCKET},
    state::{CLOSE, LISTEN},
};

use crate::{
    out::{
        counters, reset_event,
        task_event::{self, By},
    },
    read::{
        clock,
        offsets::OFF_SKC_STATE,
        pointer::{BtfPtr, KernelPtr, ProbedPtr},
        process,
        tcp_sock::NEW_SYN_RECV,
    },
};

/// tcp_send_reset(sk, skb, ...).
#[btf_tracepoint(function = "tcp_send_reset")]
pub fn send_reset_tp_btf(ctx: BtfTracePointContext) -> i32 {
    sent(&ctx, BtfPtr::new(ctx.arg(0)), ctx.arg(1));
    0
}

#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub fn send_reset_raw_tp(ctx: RawTracePointContext) -> i32 {
    sent(&ctx, ProbedPtr::new(ctx.arg(0)), ctx.arg(1));
    0
}

/// tcp_receive_reset(sk).
#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn receive_reset_tp_btf(ctx: BtfTracePointContext) -> i32 {
    if let Some(sk) = BtfPtr::new(ctx.arg(0)).and_then(KernelPtr::tcp_sock) {
        reset_event::emit(&ctx, sk, RESET_RECEIVED, LOST_RECEIVED_RESET);
    }
    0
}

#[raw_tracepoint(tracepoint = "tcp_receive_reset")]
pub fn receive_reset_raw_tp(ctx: RawTracePointContext) -> i32 {
    if let Some(sk) = ProbedPtr::new(ctx.arg(0)).and_then(KernelPtr::tcp_sock) {
        reset_event::emit(&ctx, sk, RESET_RECEIVED, LOST_RECEIVED_RESET);
    }
    0
}

#[inline(always)]
fn sent(ctx: &impl EbpfContext, sk: Option<impl KernelPtr>, answered: *const u8) {
    let Some(sk) = sk else {
        counters::add_one(RESET_NO_SOCKET);
        return;
    };
    let state = sk.read::<u8>(&OFF_SKC_STATE);
    if state == LISTEN || state == NEW_SYN_RECV {
        counters::add_one(RESET_LISTENER);
        return;
    }
    let answers = if answered.is_null() { 0 } else { RESET_ANSWERS };
    if let Some(tw) = sk.minisock() {
        reset_event::emit_of_minisock(ctx, tw, answers, LOST_SENT_RESET);
    } else if let Some(sk) = sk.tcp_sock() {
        // An answer is sent in a softirq, where the current process has nothing to do with the socket.
        let exiting = if answers == 0 && process::exits() { RESET_EXITING } else { 0 };
        let mut time_ns = clock::now_ns();
        let closes = answers == 0 && state == CLOSE;
        let tgid = if closes { task_event::current_tgid(&mut time_ns, By::Ring, LOST_SENT_RESET) } else { 0 };
        reset_event::emit_by(ctx, sk, answers | exiting, (time_ns, tgid), LOST_SENT_RESET);
    }
}
