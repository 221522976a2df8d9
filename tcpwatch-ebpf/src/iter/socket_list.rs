//! Lists of sockets that belong to another socket. In: a listener, or an MPTCP socket with who holds it. Out:
//! [`SocketList`] records: the connections in the accept queue, which have no pointer to their listener, or the subflows,
//! to which no descriptor refers. Deliberately absent: the sockets in the lists, which the iterator tcp visits.

use core::mem::MaybeUninit;

use tcpwatch_common::{LIST_QUEUED, LIST_SUBFLOWS, SeenSocket, SocketList};

use crate::{
    iter::{
        holder::Holder,
        seen_socket,
        seq::{self, Meta},
    },
    read::{
        clock, identity,
        offsets::{
            self, OFF_ACCEPT_QUEUE_HEAD, OFF_MPTCP_CONN_LIST, OFF_REQUEST_NEXT, OFF_REQUEST_SK,
            OFF_SKC_LISTENER, OFF_SUBFLOW_NODE, OFF_SUBFLOW_TCP_SOCK,
        },
        pointer::{BtfPtr, KernelPtr, ProbedPtr},
    },
};

/// Records about one accept queue: 1,040 connections. The kernel hands out at most 32 KiB for one element of an iterator,
/// and older verifiers follow each round of the loop.
const RECORDS: usize = 40;

/// Lists the connections in the accept queue of a listener. The kernel locks the listener meanwhile (5.10 only the list of
/// listeners); an entry that has left the queue is another listener's or none's.
#[inline(always)]
pub fn write_queued(meta: *const Meta, listener: BtfPtr, room: &mut MaybeUninit<SeenSocket>) {
    let cookie = identity::of_walked(listener);
    let mut next = listener.follow(&OFF_ACCEPT_QUEUE_HEAD);
    for record in 1..=RECORDS {
        if next.is_none() {
            return;
        }
        let list = zeroed(room);
        list.kind = LIST_QUEUED;
        list.time_ns = clock::now_ns();
        list.listener = cookie;
        let mut count = 0;
        while count < SocketList::SOCKETS {
            let Some(request) = next else { break };
            let made_to = request.read::<*const u8>(&OFF_SKC_LISTENER);
            next = None;
            // A request that a SYN cookie stands for names no listener (cookie_tcp_reqsk_alloc, net/ipv4/syncookies.c).
            if !made_to.is_null() && !core::ptr::eq(made_to, listener.as_ptr()) {
                break;
            }
            let Some(child) = request.follow(&OFF_REQUEST_SK) else { break };
            list.cookies[count] = identity::of_walked(child);
            count += 1;
            next = request.follow(&OFF_REQUEST_NEXT);
        }
        list.count = count as u8;
        list.truncated = (record == RECORDS && next.is_some()) as u8;
        seq::write(meta, list);
    }
}

/// Lists the subflows of an MPTCP socket, the one that listens among them. The kernel makes nine at most.
#[inline(always)]
pub fn write_subflows(
    meta: *const Meta,
    mptcp: impl KernelPtr,
    holder: &Holder,
    room: &mut MaybeUninit<SeenSocket>,
) {
    let Some(mptcp) = ProbedPtr::new(mptcp.as_ptr()) else { return };
    let list = zeroed(room);
    list.kind = LIST_SUBFLOWS;
    list.time_ns = clock::now_ns();
    holder.fill_list(list);
    // `struct list_head` begins with `next`; the last one's is the head.
    let head = offsets::value(&OFF_MPTCP_CONN_LIST);
    let end = mptcp.as_ptr().wrapping_add(head);
    let mut node = mptcp.read_at::<*const u8>(head);
    let mut count = 0;
    while count < SocketList::SOCKETS {
        if core::ptr::eq(node, end) {
            break;
        }
        let Some(subflow) = ProbedPtr::new(node.wrapping_sub(offsets::value(&OFF_SUBFLOW_NODE))) else {
            break;
        };
        let Some(sk) = subflow.follow(&OFF_SUBFLOW_TCP_SOCK) else { break };
        list.cookies[count] = identity::of(sk);
        count += 1;
        node = subflow.read(&OFF_SUBFLOW_NODE);
    }
    list.count = count as u8;
    seq::write(meta, list);
}

/// As `seen_socket::zeroed`.
#[inline(always)]
fn zeroed(room: &mut MaybeUninit<SeenSocket>) -> &mut SocketList {
    let zeroed = core::ptr::from_mut(seen_socket::zeroed(room));
    // SAFETY: the same size and alignment, and 0 is a value of every field.
    unsafe { &mut *zeroed.cast() }
}
