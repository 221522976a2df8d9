//! Retransmits: the tracepoint tcp_retransmit_skb (net/ipv4/tcp_output.c, __tcp_retransmit_skb), which runs after
//! the kernel has added the segments to `total_retrans`. From Linux 6.18 on it also tells of failures, of which some
//! come before that. Those of SYN-ACKs are told elsewhere (`synack.rs`).
//!
//! A storm does not flood the ring: the counts of a socket lie in a map that the reader can look into, and what it has
//! been told of it is repeated only once a second.

use core::{
    arch::asm,
    sync::atomic::{Ordering, compiler_fence},
};

use aya_ebpf::{
    EbpfContext,
    bindings::BPF_NOEXIST,
    helpers::bpf_ktime_get_ns,
    macros::{btf_tracepoint, map, raw_tracepoint, tracepoint},
    maps::LruHashMap,
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};
use aya_log_ebpf::debug;
use tcpwatch_common::{
    KIND_RETRANSMIT, RetransmitEvent, SocketEvent,
    counter::{HELD_BACK_RETRANSMIT, LOST_RETRANSMIT, LOST_STATE},
    retransmit::{COUNT, FAST, PROBE, SLOW_START, SYN, SYN_ACK, TIMEOUT},
    state::{SYN_RECV, SYN_SENT},
};

use crate::{
    event::{self, What},
    field::{
        self, Kernel, OFF_BYTES_RETRANS, OFF_DSACK_DUPS, OFF_ICSK_CA_STATE, OFF_ICSK_PENDING, OFF_SKB_CB,
        OFF_SKB_CB_SEGMENTS, OFF_SKB_LEN, OFF_SKC_STATE, OFF_TOTAL_RETRANS, Raw, Typed,
    },
    fill, format, ring,
};

/// Sockets whose retransmits are counted. When it is full, those that retransmitted longest ago go: what the reader
/// has not been told of them it learns from `total_retrans`, but for its kind. `tcpwatch/src/probes/counted.rs`
/// looks into it.
const COUNTED_SOCKETS: u32 = 16384;

#[map]
static COUNTED: LruHashMap<u64, Counted> = LruHashMap::with_max_entries(COUNTED_SOCKETS, 0);

/// The reader looks by itself after a socket that it has been told of, twice as long as this.
const TELL_NS: u64 = 1_000_000_000;

/// What was retransmitted on a socket, by its cookie.
#[derive(Clone, Copy)]
#[repr(C)]
struct Counted {
    event: RetransmitEvent,
    /// When the reader was last told.
    told_ns: u64,
    /// Of the change under way or, if it is the event's time, of the last. A reader copies from front to back, this
    /// last; it is written first and the event's time last, so equal times mean that nothing was changed meanwhile.
    change_ns: u64,
}

/// include/net/tcp.h, enum tcp_ca_state: unchanged since Linux 2.6; five bits.
const TCP_CA_RECOVERY: u8 = 3;
const TCP_CA_LOSS: u8 = 4;
const TCP_CA_BITS: u8 = 0x1f;
/// include/net/inet_connection_sock.h: the tail loss probe's timer.
const ICSK_TIME_LOSS_PROBE: u8 = 5;

/// tcp_retransmit_skb(sk, skb, ...).
#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn retransmit_tp_btf(ctx: BtfTracePointContext) -> i32 {
    if let Some(sk) = Typed::new(ctx.arg(0)).and_then(Kernel::tcp_sock) {
        retransmitted(&ctx, sk, ctx.arg(1));
    }
    0
}

#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub fn retransmit_raw_tp(ctx: RawTracePointContext) -> i32 {
    if let Some(sk) = Raw::new(ctx.arg(0)).and_then(Kernel::tcp_sock) {
        retransmitted(&ctx, sk, ctx.arg(1));
    }
    0
}

/// For a kernel without BTF.
#[tracepoint(category = "tcp", name = "tcp_retransmit_skb")]
pub fn retransmit_tracepoint(ctx: TracePointContext) -> u32 {
    format::retransmit(&ctx);
    0
}

#[inline(always)]
fn retransmitted(ctx: &impl EbpfContext, sk: impl Kernel, skb: *const u8) {
    let Some(skb) = Raw::new(skb) else { return };
    let cb = Raw::new(skb.as_ptr().wrapping_add(field::value(&OFF_SKB_CB)));
    let what = Retransmitted {
        segments: cb.map_or(1, |cb| cb.read::<u16>(&OFF_SKB_CB_SEGMENTS)) as u32,
        bytes: skb.read(&OFF_SKB_LEN),
        in_total: true,
        lost: LOST_RETRANSMIT,
        held_back: HELD_BACK_RETRANSMIT,
    };
    count(ctx, sk, &what, || kind(sk));
}

/// Why the kernel retransmits on this socket now.
#[inline(always)]
fn kind(sk: impl Kernel) -> usize {
    match sk.read::<u8>(&OFF_SKC_STATE) {
        SYN_SENT => return SYN,
        // Of a simultaneous open: its SYN was made a SYN-ACK (tcp_send_synack, net/ipv4/tcp_output.c).
        SYN_RECV => return SYN_ACK,
        _ => {}
    }
    let ca_state = sk.read::<u8>(&OFF_ICSK_CA_STATE) & TCP_CA_BITS;
    let timer = sk.read::<u8>(&OFF_ICSK_PENDING);
    if ca_state == TCP_CA_LOSS {
        // tcp_write_timer_handler (net/ipv4/tcp_timer.c) clears it before tcp_retransmit_timer, which sets the timer
        // again only after it retransmitted; whatever an acknowledgement brings about, a timer runs.
        return if timer == 0 { TIMEOUT } else { SLOW_START };
    }
    // tcp_send_loss_probe (net/ipv4/tcp_output.c) clears it only after its retransmit. The timer may also run while
    // acknowledgements begin a recovery, but not be set in one (tcp_schedule_loss_probe).
    if timer == ICSK_TIME_LOSS_PROBE && ca_state < TCP_CA_RECOVERY { PROBE } else { FAST }
}

/// One retransmit.
pub struct Retransmitted {
    pub segments: u32,
    pub bytes: u32,
    /// Whether the socket's `total_retrans` has it, if it was retransmitted at all.
    pub in_total: bool,
    /// The calling program's `counter::LOST_*` and `counter::HELD_BACK_*`.
    pub lost: u32,
    pub held_back: u32,
}

/// Counts it, and tells of it unless the reader was told of this socket a moment ago. `kind` gives `retransmit::*`; asked
/// last, because the verifier follows whatever comes after it once for each of them.
#[inline(always)]
pub fn count(ctx: &impl EbpfContext, sk: impl Kernel, what: &Retransmitted, kind: impl FnOnce() -> usize) {
    // SAFETY: no arguments.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let state = sk.read::<u8>(&OFF_SKC_STATE);
    let total = sk.read::<u32>(&OFF_TOTAL_RETRANS);
    let bytes = sk.read::<u64>(&OFF_BYTES_RETRANS);
    let duplicates = sk.read::<u32>(&OFF_DSACK_DUPS);
    let cookie = fill::cookie(sk);
    let known = COUNTED.get_ptr_mut(&cookie);
    // SAFETY: a value of the map; `total_retrans` of one socket is changed under its lock.
    let before = known.map_or(0, |counted| unsafe { (*counted).event.socket.value });
    // What failed early (no memory, no route, still on its way out of this machine) the kernel does not count.
    if what.in_total && total == before {
        return;
    }
    let counted = if let Some(counted) = known {
        counted
    } else {
        let described = What {
            kind: KIND_RETRANSMIT,
            old_state: state,
            new_state: state,
            flags: fill::flags(sk),
            value: total,
            lost: what.lost,
        };
        let event = RetransmitEvent {
            socket: event::describe(sk, time_ns, &described),
            since_ns: time_ns,
            bytes_before: bytes.saturating_sub(what.bytes as u64),
            bytes,
            segments: [0; COUNT],
            duplicates,
            zero: 0,
        };
        // A listener's may come from two processors at once: the second finds what the first put there.
        let _ =
            COUNTED.insert(&cookie, &Counted { event, told_ns: 0, change_ns: time_ns }, BPF_NOEXIST as u64);
        let Some(counted) = COUNTED.get_ptr_mut(&cookie) else {
            ring::count(what.lost);
            return;
        };
        counted
    };
    // SAFETY: a value of the map, which stays memory of that type also when another socket takes its place. Of one
    // socket only its lock's holder comes here; of a listener several may, so what is added is added atomically.
    let (event, told_ns) = unsafe {
        let counts = &raw mut (*counted).event;
        (&raw mut (*counted).change_ns).write_volatile(time_ns);
        compiler_fence(Ordering::Release);
        (*counts).socket.old_state = state;
        (*counts).socket.new_state = state;
        (*counts).socket.flags = fill::flags(sk);
        (*counts).socket.value = total;
        (*counts).bytes = bytes;
        (*counts).duplicates = duplicates;
        let kind = kind();
        if kind < COUNT {
            add(&raw mut (*counts).segments[kind], what.segments as u64);
        }
        compiler_fence(Ordering::Release);
        (&raw mut (*counts).socket.time_ns).write_volatile(time_ns);
        (counts, &raw mut (*counted).told_ns)
    };
    // SAFETY: as above.
    if time_ns.wrapping_sub(unsafe { *told_ns }) < TELL_NS {
        ring::count(what.held_back);
        return;
    }
    let Some(mut entry) = ring::reserve::<RetransmitEvent>(what.lost) else {
        debug!(ctx, "no room for a retransmit of socket {:x}", cookie);
        return;
    };
    // SAFETY: as above.
    entry.write(unsafe { *event });
    ring::submit(entry);
    // SAFETY: as above.
    unsafe { *told_ns = time_ns };
}

/// Adds to a count that other processors may add to: one instruction, which any kernel with BPF has.
///
/// # Safety
/// As for a store to `count`.
#[inline(always)]
unsafe fn add(count: *mut u64, what: u64) {
    // SAFETY: the caller's. Rust's own atomics have no addition for this target.
    unsafe { asm!("lock *(u64 *)({count} + 0) += {what}", count = in(reg) count, what = in(reg) what) }
}

/// The socket that `event` is the end of: the last word on what was retransmitted on it.
#[inline(always)]
pub fn end(sk: impl Kernel, event: &SocketEvent) {
    let counted = COUNTED.get_ptr_mut(&event.cookie);
    let mut told = RetransmitEvent {
        socket: SocketEvent {
            kind: KIND_RETRANSMIT,
            new_state: event.old_state,
            value: sk.read(&OFF_TOTAL_RETRANS),
            ..*event
        },
        since_ns: 0,
        bytes_before: sk.read(&OFF_BYTES_RETRANS),
        bytes: sk.read(&OFF_BYTES_RETRANS),
        segments: [0; COUNT],
        duplicates: sk.read(&OFF_DSACK_DUPS),
        zero: 0,
    };
    if let Some(counted) = counted {
        // SAFETY: as in `count`.
        unsafe {
            told.since_ns = (*counted).event.since_ns;
            told.bytes_before = (*counted).event.bytes_before;
            told.segments = (*counted).event.segments;
        }
    }
    // Where sockets are identified by their address, the next one there begins anew.
    let _ = COUNTED.remove(&event.cookie);
    let Some(mut entry) = ring::reserve::<RetransmitEvent>(LOST_STATE) else { return };
    entry.write(told);
    ring::submit(entry);
}
