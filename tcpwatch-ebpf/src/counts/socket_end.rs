//! The end of a socket that has counts. In: a transition to CLOSE. Out: the last record about the socket's counts,
//! which are removed. Deliberately absent: the record of the transition itself.

use tcpwatch_common::{SocketEvent, counter::LOST_STATE, state::LISTEN};

use crate::{
    counts::{socket_counts, stall, waiting},
    read::{
        pointer::KernelPtr,
        tcp_sock::{self, CA_RECOVERY},
    },
};

/// Whether a socket that ends may have counts. `retransmits`: its `total_retrans`, in segments.
#[inline(always)]
pub fn may_have_counts(sk: impl KernelPtr, old_state: u8, retransmits: u32) -> bool {
    old_state == LISTEN
        || retransmits != 0
        || tcp_sock::ca_state(sk) >= CA_RECOVERY
        || waiting::may_be_counted(sk)
}

/// Reports the counts of a socket that ends with `event` for the last time.
#[inline(always)]
pub fn report(sk: impl KernelPtr, event: &SocketEvent) {
    socket_counts::finish(sk, event, LOST_STATE, |counts| {
        if waiting::may_be_counted(sk) {
            // SAFETY: a value of the map.
            unsafe { waiting::end(counts, event.time_ns) };
        }
        stall::cut_short(sk, counts, event.time_ns);
    });
}
