//! The ring buffer, for everything that is rare. In: a record, and the counter for its loss. Out: the record in the
//! ring, and the reader woken when that is due. Deliberately absent: state changes, which have queues (`queue.rs`).

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::bpf_get_prandom_u32,
    macros::map,
    maps::{RingBuf, ring_buf::RingBufEntry},
};
use tcpwatch_common::KIND_WAKE;

use crate::{out::counters, read::offsets};

/// For processes, closes, accepts, retransmits, resets and ends of minisocks. The loader sets its size. Full: the
/// record is not written, a `counter::LOST_*` counts it.
#[map]
static RING: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Bytes in the ring from which on the reader is woken; the loader sets a share of the ring's size.
#[unsafe(no_mangle)]
static WAKEUP_BYTES: u32 = 1 << 17;

/// The share of records, in units of 1 / 2^32, that are dropped as if there were no room. Set by tests of the repair
/// only; while it is 0 the verifier removes the code.
#[unsafe(no_mangle)]
static DROP_SHARE: u32 = 0;

/// Bytes past `WAKEUP_BYTES` within which each record wakes the reader. Beyond, it is left alone: it is already
/// coming, and a wake-up costs more than a record.
const WAKEUP_BAND_BYTES: u64 = 1024;

/// Writes the record. `false` when there was no room, and the loss counted under `lost`, the signal's
/// `counter::LOST_*`.
#[inline(always)]
pub fn emit<T: 'static>(record: T, lost: u32) -> bool {
    let Some(mut entry) = reserve::<T>(lost) else { return false };
    entry.write(record);
    submit(entry);
    true
}

/// Writes the record and wakes the reader now; else as `emit`.
#[inline(always)]
pub fn emit_and_wake<T: 'static>(record: T, lost: u32) -> bool {
    let Some(mut entry) = reserve::<T>(lost) else { return false };
    entry.write(record);
    entry.submit(BPF_RB_FORCE_WAKEUP as u64);
    true
}

/// Writes a copy of a record that is too large for a program's stack; else as `emit`.
#[inline(always)]
pub fn emit_copy<T: Copy>(record: &T, lost: u32) -> bool {
    let written = !is_dropped_on_purpose() && RING.output::<T>(record, wakeup()).is_ok();
    if !written {
        counters::add_one(lost);
    }
    written
}

/// Room for a record that is written in place, or `None` and the loss counted under `lost`.
#[inline(always)]
pub fn reserve<T: 'static>(lost: u32) -> Option<RingBufEntry<T>> {
    let drop = is_dropped_on_purpose();
    let entry = if drop { None } else { RING.reserve::<T>(0) };
    if entry.is_none() {
        counters::add_one(lost);
    }
    entry
}

/// Hands a written record over. The reader comes for it when its timer fires, or at once where `WAKEUP_BYTES` wait.
#[inline(always)]
pub fn submit<T: 'static>(entry: RingBufEntry<T>) {
    entry.submit(wakeup());
}

/// Wakes the reader for what is in the queues. Where the ring is full it has been woken.
#[inline(always)]
pub fn wake() {
    if let Some(mut entry) = RING.reserve::<u64>(0) {
        entry.write(KIND_WAKE as u64);
        entry.submit(BPF_RB_FORCE_WAKEUP as u64);
    }
}

/// Whether to drop the next record for the sake of a test (`DROP_SHARE`).
#[inline(always)]
pub fn is_dropped_on_purpose() -> bool {
    let share = offsets::value(&DROP_SHARE) as u32;
    // SAFETY: no arguments.
    share != 0 && unsafe { bpf_get_prandom_u32() } < share
}

/// The flag of a submission: whether to wake the reader.
#[inline(always)]
fn wakeup() -> u64 {
    let waiting = RING.query(BPF_RB_AVAIL_DATA as u64);
    let past = waiting.wrapping_sub(offsets::value(&WAKEUP_BYTES) as u64) < WAKEUP_BAND_BYTES;
    if past { BPF_RB_FORCE_WAKEUP as u64 } else { BPF_RB_NO_WAKEUP as u64 }
}
