//! How often the accept queue of each listener was full when the kernel wanted to put a connection into it. In: the
//! identity of a listener. Out: its count, in the map. Deliberately absent: when that is so (`hooks/overflow.rs`).

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    macros::map,
    maps::HashMap,
};

use crate::counts::segments::add_atomically;

/// Listeners whose queue was ever full, of those that listen now. Full: further ones are not counted.
const OVERFLOWING_LISTENERS: u32 = 16384;

/// By identity. An entry is made at the first overflow, and goes when the listener does.
#[map]
static OVERFLOWS: HashMap<u64, u64> = HashMap::with_max_entries(OVERFLOWING_LISTENERS, BPF_F_NO_PREALLOC);

/// Counts one.
#[inline(always)]
pub fn add_one(listener: u64) {
    if OVERFLOWS.get_ptr_mut(&listener).is_none() {
        // Two processors may come here at once: the second finds what the first inserted.
        let _ = OVERFLOWS.insert(&listener, &0, BPF_NOEXIST as u64);
    }
    if let Some(count) = OVERFLOWS.get_ptr_mut(&listener) {
        // SAFETY: an aligned value of the map, which is changed only here.
        unsafe { add_atomically(count, 1) };
    }
}

/// The listener's count.
#[inline(always)]
pub fn of(listener: u64) -> u64 {
    // SAFETY: a number, read at once.
    OVERFLOWS.get_ptr(&listener).map_or(0, |count| unsafe { count.read_volatile() })
}

/// The listener is gone.
#[inline(always)]
pub fn forget(listener: u64) {
    let _ = OVERFLOWS.remove(&listener);
}
