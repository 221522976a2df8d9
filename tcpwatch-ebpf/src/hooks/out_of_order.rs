//! Data that arrives out of order: the return of tcp_data_queue (net/ipv4/tcp_input.c), where the kernel puts data
//! into the out-of-order queue and takes it out again. In: the socket. Out: the begin or end of a wait, in the
//! socket's counts. Deliberately absent: sockets on which nothing ever came out of order.
//!
//! That function runs for each segment that header prediction does not foresee, so this program is attached only where
//! the user asks for it (`--hook out_of_order=fexit`).

use aya_ebpf::{EbpfContext, macros::fexit, programs::FExitContext};
use tcpwatch_common::counter::{HELD_BACK_OUT_OF_ORDER, LOST_OUT_OF_ORDER};

use crate::{
    counts::{
        socket_counts::{self, SignalCounters},
        waiting,
    },
    read::{
        clock, identity,
        offsets::OFF_OUT_OF_ORDER_QUEUE,
        pointer::{BtfPtr, KernelPtr},
        tcp_sock,
    },
};

/// tcp_data_queue(sk, skb)
#[fexit(function = "tcp_data_queue")]
pub fn out_of_order_fexit(ctx: FExitContext) -> i32 {
    if let Some(sk) = BtfPtr::new(ctx.arg(0)).and_then(KernelPtr::tcp_sock)
        && tcp_sock::was_out_of_order(sk)
    {
        queued(&ctx, sk);
    }
    0
}

#[inline(always)]
fn queued(ctx: &impl EbpfContext, sk: impl KernelPtr) {
    let waits = sk.read::<u64>(&OFF_OUT_OF_ORDER_QUEUE) != 0;
    let counters = SignalCounters { lost: LOST_OUT_OF_ORDER, held_back: HELD_BACK_OUT_OF_ORDER };
    let time_ns = clock::now_ns();
    let cookie = identity::of(sk);
    if waits {
        socket_counts::begin_or_change(ctx, sk, cookie, time_ns, 0, &counters, |counts| {
            // SAFETY: a value of the map, changed under the socket's lock.
            unsafe { waiting::begin_or_extend(sk, counts, time_ns) };
        });
    } else if let Some(counts) = socket_counts::find(cookie) {
        // SAFETY: a value of the map.
        if unsafe { (*counts).event.waiting_since_ns } != 0 {
            socket_counts::change(ctx, sk, counts, time_ns, &counters, |counts| {
                // SAFETY: as above.
                unsafe { waiting::end(counts, time_ns) };
            });
        }
    }
}
