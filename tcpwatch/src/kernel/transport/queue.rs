//! The processors' queues of state changes, mapped into this process: read without a system call.
#![allow(unsafe_code, reason = "memory that the kernel's programs write")]

use std::{
    io,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tcpwatch_common::{Queue, QueueSlot};

use crate::kernel::transport::inbox::Queued;

/// The memory of the queues, which the programs write while it is read.
pub trait Memory {
    fn count(&self) -> usize;

    /// Records written into the queue since the start. They can be read after this: acquire.
    fn head(&self, queue: usize) -> u64;

    /// The programs may write where records up to this one were, which were read before this: release.
    fn set_tail(&self, queue: usize, taken: u64);

    /// Reads the record with this number, which `head` has shown and `set_tail` has not passed.
    fn read<T>(&self, queue: usize, number: u64, read: impl FnOnce(&QueueSlot) -> T) -> T;
}

/// The queues of all processors, with the records that were there at the last [`Reader::look`].
pub struct Reader<M> {
    memory: M,
    /// For each queue: records taken, and records written, since the start.
    seen: Vec<(u64, u64)>,
}

pub type Queues = Reader<Mapped>;

/// How long a record may become visible after `head` has shown it. x86 keeps the order of stores. For other processors the
/// programs would need a barrier, which BPF has from Linux 5.12 on and not on all; a store waits for a cache line, some
/// hundred nanoseconds.
const VISIBLE_AFTER: Duration =
    if cfg!(target_arch = "x86_64") { Duration::ZERO } else { Duration::from_micros(20) };

impl<M: Memory> Reader<M> {
    pub fn new(memory: M) -> Self {
        let seen = vec![(0, 0); memory.count()];
        Self { memory, seen }
    }

    /// Notes how many records each queue has.
    pub fn look(&mut self) {
        let mut found = false;
        for (queue, (_, there)) in self.seen.iter_mut().enumerate() {
            let head = self.memory.head(queue);
            found |= head != *there;
            *there = head;
        }
        if found && !VISIBLE_AFTER.is_zero() {
            let looked = Instant::now();
            while looked.elapsed() < VISIBLE_AFTER {
                std::hint::spin_loop();
            }
        }
    }
}

impl<M: Memory> Queued for Reader<M> {
    fn count(&self) -> usize {
        self.seen.len()
    }

    fn next_time(&self, queue: usize) -> Option<u64> {
        let (taken, there) = self.seen[queue];
        // Records have their time at byte 8.
        (taken < there).then(|| self.memory.read(queue, taken, |slot| slot[1]))
    }

    fn take(&mut self, queue: usize, each: impl FnOnce(&QueueSlot)) {
        let (taken, there) = self.seen[queue];
        self.memory.read(queue, taken, each);
        let taken = taken + 1;
        self.seen[queue].0 = taken;
        if taken == there || taken.is_multiple_of(RELEASED_AT_ONCE) {
            self.memory.set_tail(queue, taken);
        }
    }
}

/// Slots freed at once: each release takes the cache line with `tail` from the processor that writes.
const RELEASED_AT_ONCE: u64 = 64;

/// The queues in this process's memory.
pub struct Mapped {
    queues: Mapping<Queue>,
    slots: Mapping<QueueSlot>,
    /// Slots of each queue.
    size: u32,
}

impl Queues {
    /// Maps one queue for each processor. `size`: slots of a queue, a power of two.
    pub(crate) fn map(queues: impl AsFd, slots: impl AsFd, processors: u32, size: u32) -> io::Result<Self> {
        let slots = Mapping::new(slots, processors * size)?;
        Ok(Self::new(Mapped { queues: Mapping::new(queues, processors)?, slots, size }))
    }
}

impl Memory for Mapped {
    fn count(&self) -> usize {
        self.queues.len as usize
    }

    fn head(&self, queue: usize) -> u64 {
        let queue = self.queues.at(queue).as_ptr();
        // SAFETY: within a mapped Queue, as long as `self` lives; the kernel's program alone writes it.
        let head = unsafe { AtomicU64::from_ptr(&raw mut (*queue).head) };
        head.load(Ordering::Acquire)
    }

    fn set_tail(&self, queue: usize, taken: u64) {
        let queue = self.queues.at(queue).as_ptr();
        // SAFETY: within a mapped Queue, as long as `self` lives; the kernel's program only reads it.
        let tail = unsafe { AtomicU64::from_ptr(&raw mut (*queue).tail) };
        tail.store(taken, Ordering::Release);
    }

    fn read<T>(&self, queue: usize, number: u64, read: impl FnOnce(&QueueSlot) -> T) -> T {
        let slot = number & u64::from(self.size - 1);
        let slot = self.slots.at(queue * self.size as usize + slot as usize);
        // SAFETY: a mapped slot, which the program leaves alone while `tail` has not passed it.
        read(unsafe { slot.as_ref() })
    }
}

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
