//! The counts of one socket, and their reports. In: a change to a socket's counts. Out: the changed counts in the map
//! `COUNTED`, and a [`RetransmitEvent`] unless one was written less than a second ago. Deliberately absent: what is a
//! retransmit, a stall or a wait (the other files here).
//!
//! A storm of retransmits does not flood the ring: the counts stay in the map, which the reader can read too.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{EbpfContext, bindings::BPF_NOEXIST, macros::map, maps::LruHashMap};
use aya_log_ebpf::debug;
use tcpwatch_common::{DURATION_BOUNDS_NS, KIND_RETRANSMIT, RetransmitEvent, SocketEvent, stall};

use crate::{
    counts::tail_loss_probe::TailLossProbe,
    out::{
        LOG_TARGET, counters, ring,
        socket_event::{self, What},
    },
    read::{
        offsets::{OFF_BYTES_RETRANS, OFF_DSACK_DUPS, OFF_SKC_STATE, OFF_TOTAL_RETRANS},
        pointer::KernelPtr,
        tcp_sock,
    },
};

/// Sockets that are counted at a time, 480 bytes each. Full: those that changed longest ago are evicted. How often they
/// retransmitted the reader still learns from `total_retrans`; the rest of what was not reported is lost.
const COUNTED_SOCKETS: u32 = 16384;

/// By cookie. The daemon reads it (`CountedRetransmits`).
#[map]
static COUNTED: LruHashMap<u64, SocketCounts> = LruHashMap::with_max_entries(COUNTED_SOCKETS, 0);

/// The least time between two records about a socket, but for the one about its end. For twice as long after a record
/// the reader checks the map by itself.
const REPORT_INTERVAL_NS: u64 = 1_000_000_000;

/// The counts of one socket.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct SocketCounts {
    pub event: RetransmitEvent,
    pub probe: TailLossProbe,
    /// 1 if the kernel may still undo the present recovery, else 0.
    pub may_be_undone: u64,
    /// Sequence number of the first byte that waits in the out-of-order queue.
    pub waiting_seq: u64,
    /// Time of the last record about this socket.
    reported_ns: u64,
    /// Time of the change under way or, if it equals the event's time, of the last change. The reader copies from
    /// front to back, this last; it is written first and the event's time last, so equal times prove that nothing was
    /// changed meanwhile.
    change_ns: u64,
}

/// What new counts are copied from: a program's stack has no room for them.
// SAFETY: numbers only, for which 0 is a value.
static ZERO: SocketCounts = unsafe { core::mem::zeroed() };

/// The counters of the calling program's signal.
pub struct SignalCounters {
    /// `counter::LOST_*`
    pub lost: u32,
    /// `counter::HELD_BACK_*`
    pub held_back: u32,
}

/// The socket's counts, if there are any.
pub fn find(cookie: u64) -> Option<*mut SocketCounts> {
    COUNTED.get_ptr_mut(&cookie)
}

/// The socket's counts, begun now if there are none. `uncounted_bytes`: bytes in its `bytes_retrans` that are yet to be
/// counted.
#[inline(always)]
fn find_or_begin(
    sk: impl KernelPtr,
    cookie: u64,
    time_ns: u64,
    uncounted_bytes: u32,
) -> Option<*mut SocketCounts> {
    find_or_begin_as(sk, cookie, time_ns, uncounted_bytes, move || {
        let state = sk.read::<u8>(&OFF_SKC_STATE);
        let what = What { kind: KIND_RETRANSMIT, old_state: state, new_state: state, flags: 0, value: 0 };
        socket_event::describe(sk, time_ns, &what)
    })
}

/// `describe` gives the socket's part of the record.
#[inline(always)]
fn find_or_begin_as(
    sk: impl KernelPtr,
    cookie: u64,
    time_ns: u64,
    uncounted_bytes: u32,
    describe: impl FnOnce() -> SocketEvent,
) -> Option<*mut SocketCounts> {
    let counts = match find(cookie) {
        Some(counts) => counts,
        None => {
            // For a listener two processors may come here at once: the second finds what the first inserted.
            let _ = COUNTED.insert(&cookie, &ZERO, BPF_NOEXIST as u64);
            find(cookie)?
        }
    };
    // SAFETY: a value of the map, which stays memory of that type also when another socket takes its place. For one
    // socket only its lock's holder comes here; for a listener several processors may, and each writes the same.
    unsafe {
        let event = &raw mut (*counts).event;
        if (*event).since_ns == 0 {
            (*event).socket = describe();
            (*event).bytes_before = sk.read::<u64>(&OFF_BYTES_RETRANS).saturating_sub(uncounted_bytes as u64);
            (*event).since_ns = time_ns;
        }
    }
    Some(counts)
}

/// `change`, after beginning counts for the socket if there are none; `uncounted_bytes` as for `find_or_begin`. Without
/// room for counts the loss is counted.
#[inline(always)]
pub fn begin_or_change(
    ctx: &impl EbpfContext,
    sk: impl KernelPtr,
    cookie: u64,
    time_ns: u64,
    uncounted_bytes: u32,
    counters: &SignalCounters,
    apply: impl FnOnce(*mut SocketCounts),
) {
    let Some(counts) = find_or_begin(sk, cookie, time_ns, uncounted_bytes) else {
        counters::add_one(counters.lost);
        return;
    };
    change(ctx, sk, counts, time_ns, counters, apply);
}

/// Changes the counts by `apply`, and reports them unless this socket was reported less than `REPORT_INTERVAL_NS` ago.
#[inline(always)]
pub fn change(
    ctx: &impl EbpfContext,
    sk: impl KernelPtr,
    counts: *mut SocketCounts,
    time_ns: u64,
    counters: &SignalCounters,
    apply: impl FnOnce(*mut SocketCounts),
) {
    // SAFETY: as in `find_or_begin_as`.
    let reported_ns = unsafe {
        (&raw mut (*counts).change_ns).write_volatile(time_ns);
        compiler_fence(Ordering::Release);
        copy_own_counts(sk, &raw mut (*counts).event, sk.read(&OFF_SKC_STATE), tcp_sock::flags(sk));
        apply(counts);
        compiler_fence(Ordering::Release);
        (&raw mut (*counts).event.socket.time_ns).write_volatile(time_ns);
        &raw mut (*counts).reported_ns
    };
    // SAFETY: as above.
    if time_ns.wrapping_sub(unsafe { *reported_ns }) < REPORT_INTERVAL_NS {
        counters::add_one(counters.held_back);
        return;
    }
    // SAFETY: as above.
    if ring::emit_copy(unsafe { &(*counts).event }, counters.lost) {
        // SAFETY: as above.
        unsafe { *reported_ns = time_ns };
    } else {
        debug!(ctx, target: LOG_TARGET, "no room for the counts of a socket");
    }
}

/// Copies what the socket itself counts.
///
/// # Safety
/// `event` lies in a value of the map.
#[inline(always)]
unsafe fn copy_own_counts(sk: impl KernelPtr, event: *mut RetransmitEvent, state: u8, flags: u8) {
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

/// Reports the counts of a socket that ends with `end`, changed by `apply`, and removes them: its next life begins with
/// none, and so does the next socket at its address where that is the identity. `lost`: the signal's `counter::LOST_*`.
///
/// What `end` has is not read from the socket again: each of those reads would double what the verifier has to follow.
#[inline(always)]
pub fn finish(sk: impl KernelPtr, end: &SocketEvent, lost: u32, apply: impl FnOnce(*mut SocketCounts)) {
    let begin = || SocketEvent { kind: KIND_RETRANSMIT, ..*end };
    let Some(counts) = find_or_begin_as(sk, end.cookie, end.time_ns, 0, begin) else {
        counters::add_one(lost);
        return;
    };
    // SAFETY: as in `find_or_begin_as`.
    unsafe {
        copy_own_counts(sk, &raw mut (*counts).event, end.old_state, end.flags);
        apply(counts);
        (*counts).event.socket.time_ns = end.time_ns;
        ring::emit_copy(&(*counts).event, lost);
    }
    let _ = COUNTED.remove(&end.cookie);
}

/// Counts a completed stall. `kind`: `stall::*`; `bytes`: those that waited.
///
/// # Safety
/// `counts` is a value of the map.
#[inline(always)]
pub unsafe fn add_stall(counts: *mut SocketCounts, kind: usize, duration_ns: u64, bytes: u32) {
    // Without a branch for each bound, of which the verifier would follow both ways. All are far from overflow.
    let bucket = DURATION_BOUNDS_NS
        .iter()
        .map(|bound| (bound.wrapping_sub(duration_ns) >> 63) as usize)
        .sum::<usize>();
    if kind >= stall::COUNT || bucket > DURATION_BOUNDS_NS.len() {
        return;
    }
    // SAFETY: the caller's.
    unsafe {
        let event = &raw mut (*counts).event;
        (*event).stalls[kind][bucket] += 1;
        (*event).stalls_ns[kind] += duration_ns;
        (*event).stalls_bytes[kind] += bytes as u64;
    }
}
