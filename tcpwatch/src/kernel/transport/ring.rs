//! The ring buffer of rare records, read as far as programs have begun to write.
//!
//! A program reserves space, writes, and submits; one that is interrupted in between hides everything that others
//! submit after it. The queues do not wait for that, so reading only what is submitted would show the end of a socket
//! before what happened before it.
#![allow(
    unsafe_code,
    reason = "memory that the kernel writes, and tokio cannot know that the ring keeps its descriptor"
)]

use std::{
    io,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicUsize, Ordering},
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
    interrupted: Option<Interrupted>,
}

/// A program that has begun to write a record was seen not to have submitted it.
struct Interrupted {
    /// The reader is past it at this position.
    until: usize,
    since: Instant,
    given_up: bool,
}

/// How long a record takes that a program on another processor is writing just now.
const WRITING: Duration = Duration::from_micros(20);
/// Longer than a processor runs other tasks first; after that, only what is submitted is read.
const INTERRUPTED_LIMIT: Duration = Duration::from_secs(1);

impl Ring {
    /// Maps the ring's positions. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the ring cannot be polled or mapped.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        let positions = Positions::map(&ring)?;
        // SAFETY: a RingBuf owns its map's descriptor, always names that one, and closes it when dropped.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Self { ring, positions, interrupted: None })
    }

    /// Completes when the kernel reports that there is something to read.
    ///
    /// # Errors
    /// When the ring cannot be polled any more.
    pub async fn readable(&self) -> io::Result<()> {
        // Cleared before reading: a record that arrives meanwhile makes it ready again.
        self.ring.readable().await.map(|mut ready| ready.clear_ready())
    }

    /// Passes the records that are submitted. `false` while some are missing that programs have begun to write by now: the
    /// caller comes again soon. A program that does not submit its record within a second is not waited for.
    pub fn read(&mut self, mut each: impl FnMut(&[u8])) -> bool {
        let until = self.positions.reserved();
        let began = Instant::now();
        loop {
            while self.positions.is_before(until)
                && let Some(record) = self.ring.get_mut().next()
            {
                each(&record);
            }
            if !self.positions.is_before(until) {
                self.interrupted = None;
                return true;
            }
            if began.elapsed() > WRITING {
                return self.is_given_up(until, began);
            }
            std::hint::spin_loop();
        }
    }

    /// Whether the program that hides the rest of the ring was waited for long enough.
    fn is_given_up(&mut self, until: usize, now: Instant) -> bool {
        let known = self.interrupted.take().filter(|known| self.positions.is_before(known.until));
        let known = known.unwrap_or(Interrupted { until, since: now, given_up: false });
        let given_up = known.given_up || now - known.since > INTERRUPTED_LIMIT;
        if given_up && !known.given_up {
            tracing::warn!("an interrupted program has not submitted its record in time");
        }
        self.interrupted = Some(Interrupted { given_up, ..known });
        given_up
    }
}

/// The consumer's and the producers' position: bytes since the beginning, each at the start of a page
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

    /// Whether the consumer's position is before this one.
    fn is_before(&self, position: usize) -> bool {
        let read = self.load(0);
        // Positions wrap around where addresses have 32 bits.
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
