//! What is counted of a socket on which something is retransmitted or stands still, and when the reader is told of it.
//!
//! A storm does not flood the ring: the counts lie in a map that the reader can look into, and what it has been told of
//! a socket is repeated only once a second.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{EbpfContext, bindings::BPF_NOEXIST, macros::map, maps::LruHashMap};
use aya_log_ebpf::debug;
use tcpwatch_common::{KIND_RETRANSMIT, RetransmitEvent, SocketEvent};

use crate::{
    event::{self, What},
    field::{Kernel, OFF_BYTES_RETRANS, OFF_DSACK_DUPS, OFF_SKC_STATE, OFF_TOTAL_RETRANS},
    fill, ring,
    stall::Probe,
};

/// Sockets that are counted. When it is full, those that changed longest ago go: how often they retransmitted the reader
/// learns from `total_retrans`, the rest that it has not been told is lost. `tcpwatch/src/probes/counted.rs` looks into it.
const COUNTED_SOCKETS: u32 = 16384;

#[map]
static COUNTED: LruHashMap<u64, Counted> = LruHashMap::with_max_entries(COUNTED_SOCKETS, 0);

/// The reader looks by itself after a socket that it has been told of, twice as long as this.
const TELL_NS: u64 = 1_000_000_000;

/// What is counted of a socket, by its cookie.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Counted {
    pub event: RetransmitEvent,
    pub probe: Probe,
    /// Whether the kernel may take the present recovery back: its undo.
    pub may_be_undone: u64,
    /// Sequence number of the first byte that waits in the out-of-order queue.
    pub waiting_seq: u64,
    /// When the reader was last told.
    told_ns: u64,
    /// Of the change under way or, if it is the event's time, of the last. A reader copies from front to back, this
    /// last; it is written first and the event's time last, so equal times mean that nothing was changed meanwhile.
    change_ns: u64,
}

/// What a new count is copied from: on a program's stack there is no room for it.
// SAFETY: numbers only, of which 0 is one.
static NOTHING: Counted = unsafe { core::mem::zeroed() };

/// The calling program's counters.
pub struct Counters {
    /// `counter::LOST_*`
    pub lost: u32,
    /// `counter::HELD_BACK_*`
    pub held_back: u32,
}

pub fn find(cookie: u64) -> Option<*mut Counted> {
    COUNTED.get_ptr_mut(&cookie)
}

/// The socket's count, begun now if there is none. `uncounted_bytes`: of its `bytes_retrans`, what is to be counted.
#[inline(always)]
pub fn find_or_begin(
    sk: impl Kernel,
    cookie: u64,
    time_ns: u64,
    uncounted_bytes: u32,
) -> Option<*mut Counted> {
    find_or_begin_as(sk, cookie, time_ns, uncounted_bytes, || {
        let state = sk.read::<u8>(&OFF_SKC_STATE);
        let what =
            What { kind: KIND_RETRANSMIT, old_state: state, new_state: state, flags: 0, value: 0, lost: 0 };
        event::describe(sk, time_ns, &what)
    })
}

/// `describe` says which socket it is.
#[inline(always)]
fn find_or_begin_as(
    sk: impl Kernel,
    cookie: u64,
    time_ns: u64,
    uncounted_bytes: u32,
    describe: impl FnOnce() -> SocketEvent,
) -> Option<*mut Counted> {
    let counted = match find(cookie) {
        Some(counted) => counted,
        None => {
            // A listener's may come from two processors at once: the second finds what the first put there.
            let _ = COUNTED.insert(&cookie, &NOTHING, BPF_NOEXIST as u64);
            find(cookie)?
        }
    };
    // SAFETY: a value of the map, which stays memory of that type also when another socket takes its place. Of one
    // socket only its lock's holder comes here; of a listener several may, and each writes the same.
    unsafe {
        let event = &raw mut (*counted).event;
        if (*event).since_ns == 0 {
            (*event).socket = describe();
            (*event).bytes_before = sk.read::<u64>(&OFF_BYTES_RETRANS).saturating_sub(uncounted_bytes as u64);
            (*event).since_ns = time_ns;
        }
    }
    Some(counted)
}

/// Changes the count, and tells of it unless the reader was told of this socket a moment ago.
#[inline(always)]
pub fn change(
    ctx: &impl EbpfContext,
    sk: impl Kernel,
    counted: *mut Counted,
    time_ns: u64,
    counters: &Counters,
    apply: impl FnOnce(*mut Counted),
) {
    // SAFETY: as in `find_or_begin`.
    let told_ns = unsafe {
        (&raw mut (*counted).change_ns).write_volatile(time_ns);
        compiler_fence(Ordering::Release);
        describe(sk, &raw mut (*counted).event, sk.read(&OFF_SKC_STATE), fill::flags(sk));
        apply(counted);
        compiler_fence(Ordering::Release);
        (&raw mut (*counted).event.socket.time_ns).write_volatile(time_ns);
        &raw mut (*counted).told_ns
    };
    // SAFETY: as above.
    if time_ns.wrapping_sub(unsafe { *told_ns }) < TELL_NS {
        ring::count(counters.held_back);
        return;
    }
    // SAFETY: as above.
    if ring::output(unsafe { &(*counted).event }, counters.lost) {
        // SAFETY: as above.
        unsafe { *told_ns = time_ns };
    } else {
        debug!(ctx, "no room for what is counted of a socket");
    }
}

/// What the socket itself counts.
///
/// # Safety
/// `event` lies in a value of the map.
#[inline(always)]
unsafe fn describe(sk: impl Kernel, event: *mut RetransmitEvent, state: u8, flags: u8) {
    // SAFETY: the caller's.
    unsafe {
        (*event).socket.old_state = state;
        (*event).socket.new_state = state;
        (*event).socket.flags = flags;
        (*event).socket.value = sk.read(&OFF_TOTAL_RETRANS);
        (*event).bytes = sk.read(&OFF_BYTES_RETRANS);
        (*event).duplicates = sk.read(&OFF_DSACK_DUPS);
    }
}

/// The socket that `end` is the end of: the last word on it, after `apply`. Its next life, or the next socket where they
/// are identified by their address, begins anew. Nothing is asked here that `end` knows: each question would double what
/// the verifier has to follow.
#[inline(always)]
pub fn finish(sk: impl Kernel, end: &SocketEvent, lost: u32, apply: impl FnOnce(*mut Counted)) {
    let begin = || SocketEvent { kind: KIND_RETRANSMIT, ..*end };
    let Some(counted) = find_or_begin_as(sk, end.cookie, end.time_ns, 0, begin) else {
        ring::count(lost);
        return;
    };
    // SAFETY: as in `find_or_begin`.
    unsafe {
        describe(sk, &raw mut (*counted).event, end.old_state, end.flags);
        apply(counted);
        (*counted).event.socket.time_ns = end.time_ns;
        ring::output(&(*counted).event, lost);
    }
    let _ = COUNTED.remove(&end.cookie);
}
