//! Segments in a socket's queues. In: a `struct sk_buff`, or the socket that has it queued. Out: its TCP control
//! block, and the first segment that is not acknowledged. Deliberately absent: headers and payload.

use crate::read::{
    offsets::{
        self, OFF_FIRST_TX_MSTAMP, OFF_RB_LEFT, OFF_SKB_CB, OFF_SKB_CB_END_SEQ, OFF_SKB_CB_SACKED,
        OFF_SKB_MSTAMP_NS, OFF_SKB_RBNODE, OFF_SKC_STATE, OFF_SND_NXT, OFF_TCP_RTX_QUEUE,
    },
    pointer::{KernelPtr, ProbedPtr},
    tcp_sock::sent_fin,
};

/// include/net/tcp.h: TCPCB_EVER_RETRANS, in `sacked` of `struct tcp_skb_cb`.
const EVER_RETRANSMITTED: u8 = 0x80;

/// Levels of a queue's red-black tree that are followed: one of 2^16 segments has no more.
const DEPTH: u32 = 32;

/// The segment's `struct tcp_skb_cb`.
#[inline(always)]
pub fn control_block(skb: ProbedPtr) -> Option<ProbedPtr> {
    ProbedPtr::new(skb.as_ptr().wrapping_add(offsets::value(&OFF_SKB_CB)))
}

/// The first segment that is not acknowledged.
pub struct Hole {
    /// When it was first sent, nanoseconds of CLOCK_MONOTONIC; `u64::MAX` where there is none.
    pub since_ns: u64,
    /// Bytes sent after it.
    pub bytes: u32,
}

impl Hole {
    const NONE: Self = Self { since_ns: u64::MAX, bytes: 0 };

    /// `sent`: the segment that was sent this moment, if one was.
    #[inline(always)]
    pub fn of(sk: impl KernelPtr, sent: Option<ProbedPtr>) -> Self {
        let Some(head) = first_unacknowledged(sk) else { return Self::NONE };
        let Some(cb) = control_block(head) else { return Self::NONE };
        let repeated = sent.is_some_and(|sent| core::ptr::eq(sent.as_ptr(), head.as_ptr()))
            || cb.read::<u8>(&OFF_SKB_CB_SACKED) & EVER_RETRANSMITTED != 0;
        let since_ns = if repeated {
            // Its own time of sending is overwritten by the last. `first_tx_mstamp` is the time of the first segment in
            // flight, which it was, or of the one before it, less than a round trip earlier (net/ipv4/tcp_rate.c).
            sk.read::<u64>(&OFF_FIRST_TX_MSTAMP).wrapping_mul(1000)
        } else {
            head.read(&OFF_SKB_MSTAMP_NS)
        };
        let behind = sk.read::<u32>(&OFF_SND_NXT).wrapping_sub(cb.read(&OFF_SKB_CB_END_SEQ));
        Self { since_ns, bytes: behind.saturating_sub(sent_fin(sk, sk.read(&OFF_SKC_STATE))) }
    }
}

/// The leftmost segment of `tcp_rtx_queue` (include/net/tcp.h, tcp_rtx_queue_head).
#[inline(always)]
fn first_unacknowledged(sk: impl KernelPtr) -> Option<ProbedPtr> {
    let mut node = ProbedPtr::new(sk.read(&OFF_TCP_RTX_QUEUE))?;
    for _ in 0..DEPTH {
        let Some(left) = node.follow(&OFF_RB_LEFT) else { break };
        node = left;
    }
    ProbedPtr::new(node.as_ptr().wrapping_sub(offsets::value(&OFF_SKB_RBNODE)))
}
