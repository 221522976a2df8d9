//! The processors' queues of state changes, mapped into this process: read without a system call.
#![allow(unsafe_code, reason = "memory that the kernel's programs write")]

use std::{
    io,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tcpwatch_common::{Queue, QueueSlot};

use crate::kernel::transport::inbox::Queued;

/// The queues of all processors, with the records that were there at the last [`Queues::look`].
pub struct Queues {
    queues: Mapping<Queue>,
    slots: Mapping<QueueSlot>,
    /// Slots of each queue.
    size: u32,
    /// For each queue: records taken, and records written, since the start.
    seen: Vec<(u64, u64)>,
}

impl Queues {
    /// Maps one queue for each processor. `size`: slots of a queue, a power of two.
    pub(crate) fn map(queues: impl AsFd, slots: impl AsFd, processors: u32, size: u32) -> io::Result<Self> {
        Ok(Self {
            queues: Mapping::new(queues, processors)?,
            slots: Mapping::new(slots, processors * size)?,
            size,
            seen: vec![(0, 0); processors as usize],
        })
    }

    /// Notes how many records each queue has.
    pub fn look(&mut self) {
        for at in 0..self.seen.len() {
            let queue = self.queues.at(at).as_ptr();
            // SAFETY: within a mapped Queue, as long as `self` lives; the kernel's program alone writes it.
            let head = unsafe { AtomicU64::from_ptr(&raw mut (*queue).head) };
            self.seen[at].1 = head.load(Ordering::Acquire);
        }
    }

    /// Frees the slots of all records taken.
    fn release(&self, queue: usize, taken: u64) {
        let queue = self.queues.at(queue).as_ptr();
        // SAFETY: within a mapped Queue, as long as `self` lives; the kernel's program only reads it.
        let tail = unsafe { AtomicU64::from_ptr(&raw mut (*queue).tail) };
        tail.store(taken, Ordering::Release);
    }

    fn slot(&self, queue: usize, number: u64) -> *mut QueueSlot {
        let slot = number & u64::from(self.size - 1);
        self.slots.at(queue * self.size as usize + slot as usize).as_ptr()
    }
}

impl Queued for Queues {
    fn count(&self) -> usize {
        self.seen.len()
    }

    fn next_time(&self, queue: usize) -> Option<u64> {
        let (taken, there) = self.seen[queue];
        // SAFETY: a mapped slot, which the program leaves alone while `tail` has not passed it. Records have their time
        // at byte 8.
        (taken < there).then(|| unsafe { (&raw const (*self.slot(queue, taken))[1]).read_volatile() })
    }

    fn take(&mut self, queue: usize, each: impl FnOnce(&QueueSlot)) {
        let (taken, there) = self.seen[queue];
        // SAFETY: as in `next_time`; the slot is freed below.
        each(unsafe { &*self.slot(queue, taken) });
        let taken = taken + 1;
        self.seen[queue].0 = taken;
        if taken == there || taken.is_multiple_of(RELEASED_AT_ONCE) {
            self.release(queue, taken);
        }
    }
}

/// Slots freed at once: each release takes the cache line with `tail` from the processor that writes.
const RELEASED_AT_ONCE: u64 = 64;

/// The values of an array map.
struct Mapping<T> {
    first: NonNull<T>,
    len: u32,
}

// SAFETY: the mapping belongs to this value alone; nothing of it belongs to a thread.
unsafe impl<T: Send> Send for Mapping<T> {}

impl<T> Mapping<T> {
    fn new(map: impl AsFd, len: u32) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8), "array maps round their values up to eight bytes") };
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address =
            unsafe { mmap(std::ptr::null_mut(), bytes::<T>(len), flags, MapFlags::SHARED, map, 0)? };
        let first = NonNull::new(address.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { first, len })
    }

    fn at(&self, index: usize) -> NonNull<T> {
        assert!(index < self.len as usize);
        // SAFETY: within the mapping.
        unsafe { self.first.add(index) }
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; nothing points into it any more.
        let _ = unsafe { munmap(self.first.as_ptr().cast(), bytes::<T>(self.len)) };
    }
}

fn bytes<T>(len: u32) -> usize {
    size_of::<T>() * len as usize
}
