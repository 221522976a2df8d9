//! The queues, for state changes, of which there are many: one for each processor, which the reader has mapped. In: a
//! record of at most one slot, and the counter for its loss. Out: the record in the queue. Deliberately absent: any
//! record of a signal other than `state`.
//!
//! A record costs a store here, a tenth of what the ring buffer's reservation and hand-over cost.
//!
//! The slots of all queues are the elements of one array, `QUEUE_SLOTS` for each processor. Only the programs of the
//! signal `state` write, one at a time; only the reader moves `tail`. Full: the record is not written, a
//! `counter::LOST_*` counts it.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{bindings::BPF_F_MMAPABLE, helpers::bpf_get_smp_processor_id, macros::map, maps::Array};
use tcpwatch_common::{Queue, QueueSlot};

use crate::{
    out::{counters, ring},
    read::offsets,
};

/// One for each possible processor; the loader sets how many. Never full: its elements are all there from the start.
#[map]
static QUEUES: Array<Queue> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// `QUEUE_SLOTS` for each possible processor; the loader sets how many.
#[map]
static SLOTS: Array<QueueSlot> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Slots of each queue, a power of two; set by the loader.
#[unsafe(no_mangle)]
static QUEUE_SLOTS: u32 = 1;

/// Writes the record, and wakes the reader when the queue is half full. `false` when there was no room, and the loss
/// counted under `lost`, the signal's `counter::LOST_*`.
#[inline(always)]
pub fn push<T: Copy>(record: &T, lost: u32) -> bool {
    let pushed = !ring::is_dropped_on_purpose() && try_push(record).is_some();
    if !pushed {
        counters::add_one(lost);
    }
    pushed
}

#[inline(always)]
fn try_push<T: Copy>(record: &T) -> Option<()> {
    const { assert!(size_of::<T>() <= size_of::<QueueSlot>()) };
    // SAFETY: no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let slots = offsets::value(&QUEUE_SLOTS) as u64;
    let queue = QUEUES.get_ptr_mut(cpu)?;
    // SAFETY: a value of the map. Programs run on one processor without migration, so only this one writes to all but
    // `tail`. The order matters, because the reader reads meanwhile, and older kernels let a raw tracepoint run
    // inside itself: volatile accesses keep their order, the record is written after the call that gives its place,
    // and the fence keeps the store to `head` behind it.
    unsafe {
        if (&raw const (*queue).busy).read_volatile() != 0 {
            return None;
        }
        // Before the rest is read: else a program that interrupts this one here would write to the same slot.
        (&raw mut (*queue).busy).write_volatile(1);
        let (head, tail) =
            ((&raw const (*queue).head).read_volatile(), (&raw const (*queue).tail).read_volatile());
        let waiting = head.wrapping_sub(tail);
        let slot =
            SLOTS.get_ptr_mut(cpu * slots as u32 + (head & (slots - 1)) as u32).filter(|_| waiting < slots);
        if let Some(slot) = slot {
            slot.cast::<T>().write(*record);
            compiler_fence(Ordering::Release);
            (&raw mut (*queue).head).write_volatile(head + 1);
        }
        (&raw mut (*queue).busy).write_volatile(0);
        slot?;
        if waiting == slots / 2 {
            ring::wake();
        }
    }
    Some(())
}
