//! Failed connects that are already reported, and that tcp_v4_connect or tcp_v6_connect is about to return. In: the
//! identity of the socket, from whichever program reports the failure first. Out: whether it was reported. Deliberately
//! absent: the failures themselves.

use aya_ebpf::{macros::map, maps::Array};

/// Number of marks, as a power of two. A mark stays for the microseconds until the function returns, so there are
/// about as many at a time as processors. Never full: a mark that replaces another makes the daemon receive that
/// failure twice.
const MARKS_BITS: u32 = 10;

/// The cookies of sockets whose failure is reported and not returned yet, each at its hash.
#[map]
static FAILED_CONNECTS: Array<u64> = Array::with_max_entries(1 << MARKS_BITS, 0);

/// 2^64 divided by the golden ratio: as a factor it spreads consecutive numbers, and addresses too.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Remembers that the failure is reported, and will be returned.
#[inline(always)]
pub fn mark_reported(cookie: u64) {
    if let Some(mark) = mark(cookie) {
        // SAFETY: a value of the map; 8 bytes are written as one.
        unsafe { *mark = cookie };
    }
}

/// Whether the failure was reported; forgets it.
#[inline(always)]
pub fn take_reported(cookie: u64) -> bool {
    let Some(mark) = mark(cookie) else { return false };
    // SAFETY: a value of the map; 8 bytes are read and written as one.
    let reported = unsafe { *mark == cookie };
    if reported {
        // SAFETY: as above. 0 is no cookie.
        unsafe { *mark = 0 };
    }
    reported
}

#[inline(always)]
fn mark(cookie: u64) -> Option<*mut u64> {
    FAILED_CONNECTS.get_ptr_mut((cookie.wrapping_mul(SPREAD) >> (u64::BITS - MARKS_BITS)) as u32)
}
