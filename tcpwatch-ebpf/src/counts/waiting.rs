//! Head-of-line blocking on the receiving side: how long received data waits in the out-of-order queue. In: the queue
//! after data was added or taken out, and the end of the socket. Out: waits in the socket's counts. Deliberately
//! absent: the sending side (`stall.rs`).
//!
//! A wait lasts from when the first segment behind a hole arrived until the queue is empty. Where several holes are
//! filled one after the other, that is one wait.

use tcpwatch_common::stall::PEER;

use crate::{
    counts::socket_counts::{SocketCounts, add_stall},
    read::{
        offsets::{self, OFF_OOO_LAST_SKB, OFF_SKB_CB_END_SEQ, OFF_SKB_CB_SEQ},
        pointer::{KernelPtr, ProbedPtr},
        segment, tcp_sock,
    },
};

/// 1 if the loader attaches the hook `out_of_order`; else no socket has waits to report at its end.
#[unsafe(no_mangle)]
static FOLLOWS_OUT_OF_ORDER: u32 = 0;

/// Whether waits of the socket may be counted.
#[inline(always)]
pub fn may_be_counted(sk: impl KernelPtr) -> bool {
    offsets::value(&FOLLOWS_OUT_OF_ORDER) != 0 && tcp_sock::was_out_of_order(sk)
}

/// Data waits: since now, or more than before.
///
/// # Safety
/// `counts` is a value of the map.
#[inline(always)]
pub unsafe fn begin_or_extend(sk: impl KernelPtr, counts: *mut SocketCounts, time_ns: u64) {
    let Some(last) = ProbedPtr::new(sk.read(&OFF_OOO_LAST_SKB)) else { return };
    let Some(cb) = segment::control_block(last) else { return };
    // SAFETY: the caller's.
    unsafe {
        let event = &raw mut (*counts).event;
        if (*event).waiting_since_ns == 0 {
            (*event).waiting_since_ns = time_ns;
            (*counts).waiting_seq = cb.read::<u32>(&OFF_SKB_CB_SEQ) as u64;
        }
        (*event).waiting_bytes =
            cb.read::<u32>(&OFF_SKB_CB_END_SEQ).wrapping_sub((*counts).waiting_seq as u32);
    }
}

/// The queue is empty again, or the socket ends. Does nothing if no data waited.
///
/// # Safety
/// `counts` is a value of the map.
#[inline(always)]
pub unsafe fn end(counts: *mut SocketCounts, time_ns: u64) {
    // SAFETY: the caller's.
    unsafe {
        let event = &raw mut (*counts).event;
        let since_ns = (*event).waiting_since_ns;
        if since_ns != 0 {
            (*event).waiting_since_ns = 0;
            add_stall(counts, PEER, time_ns.saturating_sub(since_ns), (*event).waiting_bytes);
        }
    }
}
