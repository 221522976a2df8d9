//! The division of the memory for records.

use std::io;

use tcpwatch_common::QueueSlot;

/// The ring's share of the memory for records (one quarter); the queues of state changes get the rest, as far as powers
/// of two allow.
const RING_SHARE: u32 = 4;
/// The smallest ring buffer: a page, on kernels with the smallest pages.
const SMALLEST_RING_BYTES: u32 = 4096;
/// The defaults: room for 0.2 s of the highest rate of two processors, so that the timer fires before a queue is half
/// full; and on large machines 128 KiB for each processor.
const RECORD_BYTES: u32 = 8 << 20;
const RECORD_BYTES_EACH: u32 = 128 << 10;

/// Sizes of the buffers for records on their way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BufferSizes {
    pub ring_bytes: u32,
    /// Possible ones, not those that are online: each may come online while tcpwatch runs (hotplug, a virtual machine that
    /// grows), and a program has nowhere to write but the queue of its own processor. Where far more are possible than
    /// online, `--ring-size` makes up for the queues that stay empty.
    pub processors: u32,
    /// Slots of each processor's queue, a power of two.
    pub slots: u32,
}

impl BufferSizes {
    /// Divides `record_bytes`, or the default.
    ///
    /// # Errors
    /// The file from which the number of processors cannot be read.
    pub(crate) fn new(record_bytes: Option<u32>) -> Result<Self, (&'static str, io::Error)> {
        let processors = aya::util::nr_cpus()?;
        let processors = u32::try_from(processors).unwrap_or(u32::MAX);
        let record_bytes = record_bytes.unwrap_or_else(|| {
            RECORD_BYTES.max(processors.saturating_mul(RECORD_BYTES_EACH).next_power_of_two())
        });
        let ring_bytes = (record_bytes / RING_SHARE).max(SMALLEST_RING_BYTES);
        let slots = (record_bytes - record_bytes / RING_SHARE) / (size_of::<QueueSlot>() as u32 * processors);
        // The greatest power of two that fits, and at least one.
        Ok(Self { ring_bytes, processors, slots: 1 << slots.max(1).ilog2() })
    }
}
