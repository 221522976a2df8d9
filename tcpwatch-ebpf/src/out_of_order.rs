//! Head-of-line blocking as the receiving side has it: how long received data waits in the out-of-order queue, from when
//! the first segment behind a hole arrived until the hole is filled: the return of tcp_data_queue
//! (net/ipv4/tcp_input.c), where the kernel puts data into that queue and takes it out again.
//!
//! That function runs for each segment that header prediction does not foresee, so this program is attached only where
//! somebody asked for it (`--hook out_of_order=fexit`). Where several holes are filled one after the other, delivery stands
//! still from one to the next, which counts as one.

use aya_ebpf::{EbpfContext, helpers::bpf_ktime_get_ns, macros::fexit, programs::FExitContext};
use tcpwatch_common::{
    counter::{HELD_BACK_OUT_OF_ORDER, LOST_OUT_OF_ORDER},
    stall::PEER,
};

use crate::{
    counted::{self, Counted, Counters},
    field::{
        self, Kernel, OFF_OOO_LAST_SKB, OFF_OUT_OF_ORDER_QUEUE, OFF_RCV_OOOPACK, OFF_SKB_CB,
        OFF_SKB_CB_END_SEQ, OFF_SKB_CB_SEQ, Raw, Typed,
    },
    fill, ring, stall,
};

/// Whether the loader will attach this: the end of a socket has more to tell then.
#[unsafe(no_mangle)]
static FOLLOWS_OUT_OF_ORDER: u32 = 0;

/// tcp_data_queue(sk, skb)
#[fexit(function = "tcp_data_queue")]
pub fn out_of_order_fexit(ctx: FExitContext) -> i32 {
    if let Some(sk) = Typed::new(ctx.arg(0)).and_then(Kernel::tcp_sock)
        && has_waited(sk)
    {
        queued(&ctx, sk);
    }
    0
}

/// Something came out of order on this socket: of most nothing ever does.
#[inline(always)]
fn has_waited(sk: impl Kernel) -> bool {
    sk.read::<u32>(&OFF_RCV_OOOPACK) != 0
}

/// Of a socket that ends: whether its waits were counted.
#[inline(always)]
pub fn was_counted(sk: impl Kernel) -> bool {
    field::value(&FOLLOWS_OUT_OF_ORDER) != 0 && has_waited(sk)
}

#[inline(always)]
fn queued(ctx: &impl EbpfContext, sk: impl Kernel) {
    let waits = sk.read::<u64>(&OFF_OUT_OF_ORDER_QUEUE) != 0;
    let counters = Counters { lost: LOST_OUT_OF_ORDER, held_back: HELD_BACK_OUT_OF_ORDER };
    // SAFETY: no arguments.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let cookie = fill::cookie(sk);
    if waits {
        let Some(counted) = counted::find_or_begin(sk, cookie, time_ns, 0) else {
            ring::count(counters.lost);
            return;
        };
        counted::change(ctx, sk, counted, time_ns, &counters, |counted| wait(sk, counted, time_ns));
    } else if let Some(counted) = counted::find(cookie) {
        // SAFETY: a value of the map.
        if unsafe { (*counted).event.waiting_since_ns } != 0 {
            // SAFETY: a value of the map, changed under the socket's lock. So in all that follows.
            counted::change(ctx, sk, counted, time_ns, &counters, |counted| unsafe { end(counted, time_ns) });
        }
    }
}

/// Data waits: since now, or more than before.
#[inline(always)]
fn wait(sk: impl Kernel, counted: *mut Counted, time_ns: u64) {
    let Some(last) = Raw::new(sk.read(&OFF_OOO_LAST_SKB)) else { return };
    let Some(cb) = Raw::new(last.as_ptr().wrapping_add(field::value(&OFF_SKB_CB))) else { return };
    // SAFETY: as above.
    unsafe {
        let event = &raw mut (*counted).event;
        if (*event).waiting_since_ns == 0 {
            (*event).waiting_since_ns = time_ns;
            (*counted).waiting_seq = cb.read::<u32>(&OFF_SKB_CB_SEQ) as u64;
        }
        (*event).waiting_bytes =
            cb.read::<u32>(&OFF_SKB_CB_END_SEQ).wrapping_sub((*counted).waiting_seq as u32);
    }
}

/// The queue is empty again, or the socket ends. Nothing if none waited.
///
/// # Safety
/// `counted` is a value of the map.
#[inline(always)]
pub unsafe fn end(counted: *mut Counted, time_ns: u64) {
    // SAFETY: the caller's.
    unsafe {
        let event = &raw mut (*counted).event;
        let since_ns = (*event).waiting_since_ns;
        if since_ns != 0 {
            (*event).waiting_since_ns = 0;
            stall::count(counted, PEER, time_ns.saturating_sub(since_ns), (*event).waiting_bytes);
        }
    }
}
