//! Retransmitted segments, by kind. In: one retransmit. Out: the segments in the socket's counts, or a record of
//! their own where sockets cannot be counted. Deliberately absent: how to find out the kind, which the hooks do.

use core::arch::asm;

use aya_ebpf::EbpfContext;
use tcpwatch_common::{RetransmitEvent, SocketEvent, retransmit::COUNT};

use crate::{
    counts::socket_counts::{self, SignalCounters, SocketCounts},
    out::ring,
    read::{clock, identity, offsets::OFF_TOTAL_RETRANS, pointer::KernelPtr},
};

/// One retransmit.
pub struct Retransmit {
    pub segments: u32,
    pub bytes: u32,
    /// Whether the socket's `total_retrans` contains it, if it was sent at all.
    pub in_total: bool,
    pub counters: SignalCounters,
}

/// Counts the retransmit. `kind` gives `retransmit::*`. It is called last, because the verifier follows what comes
/// after once for each kind.
#[inline(always)]
pub fn add(
    ctx: &impl EbpfContext,
    sk: impl KernelPtr,
    what: &Retransmit,
    kind: impl FnOnce(*mut SocketCounts, u64) -> usize,
) {
    let time_ns = clock::now_ns();
    let cookie = identity::of(sk);
    // SAFETY: a value of the map; `total_retrans` of one socket is changed under its lock.
    let before = socket_counts::find(cookie).map_or(0, |counts| unsafe { (*counts).event.socket.value });
    // The kernel does not count what failed early (no memory, no route, still in a queue of this machine).
    if what.in_total && sk.read::<u32>(&OFF_TOTAL_RETRANS) == before {
        return;
    }
    socket_counts::begin_or_change(ctx, sk, cookie, time_ns, what.bytes, &what.counters, |counts| {
        let kind = kind(counts, time_ns);
        if kind < COUNT {
            // SAFETY: a value of the map. For a listener several processors may come here at once.
            unsafe { add_atomically(&raw mut (*counts).event.segments[kind], what.segments as u64) };
        }
    });
}

/// Adds to a count that other processors may add to: one instruction, which any kernel with BPF has.
///
/// # Safety
/// As for a store to `count`.
#[inline(always)]
pub unsafe fn add_atomically(count: *mut u64, what: u64) {
    // SAFETY: the caller's. Rust's own atomics have no addition for this target.
    unsafe { asm!("lock *(u64 *)({count} + 0) += {what}", count = in(reg) count, what = in(reg) what) }
}

/// Reports one retransmitted packet by itself: where the kernel's types are not known, nothing would remove a socket's
/// counts at its end. `kind`: `retransmit::*`; `lost`: the signal's `counter::LOST_*`.
#[inline(always)]
pub fn emit_one(socket: SocketEvent, kind: usize, lost: u32) -> Option<()> {
    let mut segments = [0; COUNT];
    segments[kind] = 1;
    let mut entry = ring::reserve::<RetransmitEvent>(lost)?;
    let since_ns = socket.time_ns;
    entry.write(RetransmitEvent {
        socket,
        since_ns,
        segments,
        // SAFETY: numbers only, for which 0 is a value.
        ..unsafe { core::mem::zeroed() }
    });
    ring::submit(entry);
    Some(())
}
