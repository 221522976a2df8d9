//! A record about one reset. In: the socket or minisock, and what the hook knows, `RESET_*`. Out: a [`ResetEvent`] in
//! the ring. Deliberately absent: who sent the reset and why, which the hooks and the daemon know.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::debug;
use tcpwatch_common::{KIND_RESET, RESET_ZERO_LINGER, ResetEvent, SocketEvent};

use crate::{
    out::{
        LOG_TARGET, ring,
        socket_event::{self, What},
    },
    read::{clock, offsets::OFF_SKC_STATE, pointer::KernelPtr, tcp_sock},
};

/// Reports a reset of a full socket. `known`: `RESET_*` but for `RESET_ZERO_LINGER`; `lost`: the signal's
/// `counter::LOST_*`.
#[inline(always)]
pub fn emit(ctx: &impl EbpfContext, sk: impl KernelPtr, known: u32, lost: u32) {
    emit_by(ctx, sk, known, (clock::now_ns(), 0), lost);
}

/// The same with the time and `ResetEvent::tgid`.
#[inline(always)]
pub fn emit_by(
    ctx: &impl EbpfContext,
    sk: impl KernelPtr,
    known: u32,
    (time_ns, tgid): (u64, u32),
    lost: u32,
) {
    let state = sk.read::<u8>(&OFF_SKC_STATE);
    let flags = tcp_sock::flags(sk);
    let zero_linger = if tcp_sock::has_zero_linger(sk) { RESET_ZERO_LINGER } else { 0 };
    let what =
        What { kind: KIND_RESET, old_state: state, new_state: state, flags, value: known | zero_linger };
    let socket = socket_event::describe(sk, time_ns, &what);
    let unread_bytes = tcp_sock::unread_bytes(sk, flags);
    let (unsent, unacknowledged) = tcp_sock::undelivered(sk);
    write(ctx, ResetEvent { socket, unread_bytes, unsent, unacknowledged, tgid }, lost);
}

/// Reports a reset of a minisock; else as `emit`.
#[inline(always)]
pub fn emit_of_minisock(ctx: &impl EbpfContext, tw: impl KernelPtr, known: u32, lost: u32) {
    let event = socket_event::describe_minisock(tw, clock::now_ns(), KIND_RESET);
    let socket = SocketEvent { value: known, ..event };
    write(ctx, ResetEvent { socket, unread_bytes: 0, unsent: 0, unacknowledged: 0, tgid: 0 }, lost);
}

#[inline(always)]
fn write(ctx: &impl EbpfContext, event: ResetEvent, lost: u32) {
    if !ring::emit(event, lost) {
        debug!(ctx, target: LOG_TARGET, "no room for a reset of socket {:x}", event.socket.cookie);
    }
}
