//! The time. Out: the clock that records carry, and the kernel's ticks. Deliberately absent: any conversion between
//! them, which the daemon makes.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_ns};

/// Nanoseconds of CLOCK_MONOTONIC.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// The kernel's 64-bit tick count.
#[inline(always)]
pub fn now_jiffies() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_jiffies64() }
}
