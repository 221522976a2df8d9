//! The queues that carry state changes: the layout of the memory that programs and daemon share.
//!
//! In: nothing. Out: the element types of the maps `QUEUES` and `SLOTS`. Deliberately absent: reading and writing,
//! which each side does in its own way.

use crate::{IdleEvent, SocketEvent, TaskEvent, TrafficEvent};

/// Room for one record in a [`Queue`]: a [`SocketEvent`], or a shorter record followed by bytes without meaning.
pub type QueueSlot = [u64; 8];

/// One processor's queue of state changes, and of the processes that they name. Its slots lie in another map. `head`
/// and `tail` are free-running counts of records, modulo 2^64; each is on a cache line of its own, because the
/// processor writes one and the reader the other. 128 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Queue {
    /// Records written so far. Written by the processor.
    pub head: u64,
    /// 1 while a program writes a record, else 0. Written by the processor.
    pub busy: u64,
    pub zero: [u64; 6],
    /// Records read so far. Written by the reader.
    pub tail: u64,
    pub more_zero: [u64; 7],
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Queue>() == 128);
    assert!(offset_of!(Queue, tail) == 64);
    assert!(size_of::<QueueSlot>() == size_of::<SocketEvent>());
    assert!(size_of::<QueueSlot>() > size_of::<TaskEvent>());
    assert!(size_of::<QueueSlot>() > size_of::<IdleEvent>());
    assert!(size_of::<QueueSlot>() > size_of::<TrafficEvent>());
};
