//! The way out for state changes, of which there are many: for each processor a queue that the reader has mapped.
//! A record costs a store here, a tenth of what the ring buffer's reservation and hand-over cost.
//!
//! The slots of all queues are the elements of one array, `QUEUE_SLOTS` for each processor. Only the programs of the
//! signal `state` write, one at a time; only the reader moves `tail`. Full: the record is not written, a
//! `counter::LOST_*` counts it.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{bindings::BPF_F_MMAPABLE, helpers::bpf_get_smp_processor_id, macros::map, maps::Array};
use tcpwatch_common::{Queue, QueueSlot};

use crate::{field, ring};

/// One for each possible processor; the loader sets how many.
#[map]
static QUEUES: Array<Queue> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static SLOTS: Array<QueueSlot> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Slots of each queue, a power of two; set by the loader.
#[unsafe(no_mangle)]
static QUEUE_SLOTS: u32 = 1;

/// Writes the record, and wakes the reader when the queue is half full. `false` when there was no room, and the loss
/// counted under `lost`, the program's `counter::LOST_*`.
#[inline(always)]
pub fn push<T: Copy>(record: &T, lost: u32) -> bool {
    let pushed = !ring::drops() && try_push(record).is_some();
    if !pushed {
        ring::count(lost);
    }
    pushed
}

#[inline(always)]
fn try_push<T: Copy>(record: &T) -> Option<()> {
    const { assert!(size_of::<T>() <= size_of::<QueueSlot>()) };
    // SAFETY: no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let slots = field::value(&QUEUE_SLOTS) as u64;
    let queue = QUEUES.get_ptr_mut(cpu)?;
    // SAFETY: a value of the map. Programs run on one processor without migration, so this one alone writes to all but
    // `tail`. In this order, because the reader looks on, and older kernels let a raw tracepoint run inside itself: what is
    // volatile keeps its order, the record follows the call that gives its place, and the fence holds `head` back behind it.
    unsafe {
        if (&raw const (*queue).busy).read_volatile() != 0 {
            return None;
        }
        // Before the rest is read: a program that interrupts this one here would write to the same slot.
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
