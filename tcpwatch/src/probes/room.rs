//! How the memory for records is shared out.

use tcpwatch_common::QueueSlot;

use super::ProbeError;

/// Of the memory for records, the ring's share (one quarter); the queues of state changes have the rest, as far as
/// powers of two allow.
const RING_SHARE: u32 = 4;
/// The least that a ring buffer can have, on kernels with the smallest pages.
const SMALLEST_RING_BYTES: u32 = 4096;
/// Unless told otherwise: two tenths of a second of the most that two processors can make, so that the timer comes before
/// a queue is half full; and on large machines 128 KiB for each.
const RECORD_BYTES: u32 = 8 << 20;
const RECORD_BYTES_EACH: u32 = 128 << 10;

/// How much room records have on their way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub ring_bytes: u32,
    pub processors: u32,
    /// Slots of each processor's queue.
    pub slots: u32,
}

impl Room {
    pub(super) fn new(record_bytes: Option<u32>) -> Result<Self, ProbeError> {
        let processors = aya::util::nr_cpus().map_err(|(path, error)| ProbeError::Processors(path, error))?;
        let processors = u32::try_from(processors).unwrap_or(u32::MAX);
        let record_bytes = record_bytes.unwrap_or_else(|| {
            RECORD_BYTES.max(processors.saturating_mul(RECORD_BYTES_EACH).next_power_of_two())
        });
        let ring_bytes = (record_bytes / RING_SHARE).max(SMALLEST_RING_BYTES);
        let slots = (record_bytes - record_bytes / RING_SHARE) / (size_of::<QueueSlot>() as u32 * processors);
        // The greatest power of two that is no more, and at least one.
        Ok(Self { ring_bytes, processors, slots: 1 << slots.max(1).ilog2() })
    }
}
