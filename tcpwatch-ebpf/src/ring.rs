//! The way out for what is rare: the ring buffer, when its reader is woken, and the count of what did not fit.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::bpf_get_prandom_u32,
    macros::map,
    maps::{PerCpuArray, RingBuf, ring_buf::RingBufEntry},
};
use tcpwatch_common::{KIND_WAKE, counter};

use crate::field;

/// For all that is rare: processes, closes, accepts, retransmits, ends of minisocks. State changes have queues of
/// their own (`queue.rs`). Full: the record is not written, a `counter::LOST_*` counts it.
#[map]
static RING: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// `counter::*`, one set a CPU so that counting costs no shared cache line.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

/// Bytes in the ring from which on the reader is woken; the loader sets a share of the ring's size.
#[unsafe(no_mangle)]
static WAKEUP_BYTES: u32 = 1 << 17;

/// Of 2^32 records so many are dropped as if the ring were full. Set by tests of the repair only; while it
/// is 0 the verifier removes the code.
#[unsafe(no_mangle)]
static DROP_SHARE: u32 = 0;

/// Past the mark, the reader is woken for this many bytes more and then left alone: it is on its way, and
/// each wake-up costs more than the record.
const WAKEUP_BAND_BYTES: u64 = 1024;

/// Room for one record, or `None` and the loss counted under `lost`, the program's own `counter::LOST_*`.
#[inline(always)]
pub fn reserve<T: 'static>(lost: u32) -> Option<RingBufEntry<T>> {
    let drop = drops();
    let entry = if drop { None } else { RING.reserve::<T>(0) };
    if entry.is_none() {
        count(lost);
    }
    entry
}

/// Whether the next record is to be dropped on purpose.
#[inline(always)]
pub fn drops() -> bool {
    let share = field::value(&DROP_SHARE) as u32;
    // SAFETY: no arguments.
    share != 0 && unsafe { bpf_get_prandom_u32() } < share
}

/// Wakes the reader for what is in the queues. Where the ring is full it has been woken.
#[inline(always)]
pub fn wake() {
    if let Some(mut entry) = RING.reserve::<u64>(0) {
        entry.write(KIND_WAKE as u64);
        submit_and_wake(entry);
    }
}

/// Hands the record over; the reader comes for it on its timer, or at once past the fill mark.
#[inline(always)]
pub fn submit<T: 'static>(entry: RingBufEntry<T>) {
    entry.submit(wakeup());
}

/// The same with a copy of `record`, for one that is too large for a program's stack. `false` when there was no room,
/// and the loss counted.
#[inline(always)]
pub fn output<T: Copy>(record: &T, lost: u32) -> bool {
    let written = !drops() && RING.output::<T>(record, wakeup()).is_ok();
    if !written {
        count(lost);
    }
    written
}

/// Whether to wake the reader.
#[inline(always)]
fn wakeup() -> u64 {
    let waiting = RING.query(BPF_RB_AVAIL_DATA as u64);
    let past = waiting.wrapping_sub(field::value(&WAKEUP_BYTES) as u64) < WAKEUP_BAND_BYTES;
    if past { BPF_RB_FORCE_WAKEUP as u64 } else { BPF_RB_NO_WAKEUP as u64 }
}

/// Hands the record over and wakes the reader now.
#[inline(always)]
pub fn submit_and_wake<T: 'static>(entry: RingBufEntry<T>) {
    entry.submit(BPF_RB_FORCE_WAKEUP as u64);
}

#[inline(always)]
pub fn count(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a non-null value of a per-CPU map belongs to this CPU. Each program has an index of its
        // own and the kernel never runs a program inside itself, so nothing comes between load and store.
        unsafe { *value += 1 };
    }
}
