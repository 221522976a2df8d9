//! The ring of what is rare, read as far as programs have begun to write.
//!
//! A program reserves room, writes, and hands over; one that is interrupted in between hides whatever others hand over
//! behind it. The queues do not wait for that, so reading the ring only as far as it can be read would show the end of a
//! socket before what came before it.
#![allow(
    unsafe_code,
    reason = "memory that the kernel writes, and tokio cannot know that the ring keeps its descriptor"
)]

use std::{
    io,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use rustix::{
    mm::{MapFlags, ProtFlags, mmap, munmap},
    param::page_size,
};
use tokio::io::{Interest, unix::AsyncFd};

pub struct Ring {
    ring: AsyncFd<RingBuf<MapData>>,
    positions: Positions,
}

/// How often it is looked whether an interrupted program went on.
const INTERRUPTED_POLL: Duration = Duration::from_micros(50);
/// Longer than a processor serves others first; then what can be read has to do.
const INTERRUPTED_LIMIT: Duration = Duration::from_secs(1);

impl Ring {
    /// # Errors
    /// When it cannot be polled or mapped. Wants a tokio runtime.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        let positions = Positions::map(&ring)?;
        // SAFETY: a RingBuf owns its map's descriptor, always names that one, and closes it when dropped.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self { ring, positions })
    }

    /// Completes when the kernel says that there is something to read.
    ///
    /// # Errors
    /// When it cannot be polled any more.
    pub async fn readable(&self) -> io::Result<()> {
        // Cleared before reading: what arrives meanwhile makes it ready again.
        self.ring.readable().await.map(|mut ready| ready.clear_ready())
    }

    /// Hands out the records that programs have begun to write until now, and waits for those that are not ready.
    pub fn read(&mut self, mut each: impl FnMut(&[u8])) {
        let until = self.positions.reserved();
        let mut interrupted: Option<Instant> = None;
        loop {
            while self.positions.is_before(until)
                && let Some(record) = self.ring.get_mut().next()
            {
                each(&record);
            }
            if !self.positions.is_before(until) {
                return;
            }
            if interrupted.get_or_insert_with(Instant::now).elapsed() > INTERRUPTED_LIMIT {
                tracing::warn!("a program that was interrupted while it wrote a record does not go on");
                return;
            }
            thread::sleep(INTERRUPTED_POLL);
        }
    }
}

/// How far the ring is read, and how far it is reserved: bytes since its beginning, each at the start of a page
/// (kernel/bpf/ringbuf.c, struct bpf_ringbuf).
struct Positions {
    pages: NonNull<u8>,
    page: usize,
}

// SAFETY: the mapping belongs to this value alone; nothing of it belongs to a thread.
unsafe impl Send for Positions {}

impl Positions {
    fn map(ring: impl AsFd) -> io::Result<Self> {
        let page = page_size();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address =
            unsafe { mmap(std::ptr::null_mut(), 2 * page, ProtFlags::READ, MapFlags::SHARED, ring, 0)? };
        let pages = NonNull::new(address.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { pages, page })
    }

    fn reserved(&self) -> usize {
        self.load(self.page)
    }

    /// Whether it is not read up to there.
    fn is_before(&self, position: usize) -> bool {
        let read = self.load(0);
        // They wrap around where addresses are 32 bits.
        position.wrapping_sub(read).cast_signed() > 0
    }

    fn load(&self, at: usize) -> usize {
        // SAFETY: the first word of a mapped page, as long as `self` lives.
        unsafe { AtomicUsize::from_ptr(self.pages.as_ptr().add(at).cast()).load(Ordering::Acquire) }
    }
}

impl Drop for Positions {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; nothing points into it any more.
        let _ = unsafe { munmap(self.pages.as_ptr().cast(), 2 * self.page) };
    }
}
