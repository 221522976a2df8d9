//! State changes: the tracepoint inet_sock_set_state (net/ipv4/af_inet.c, inet_sk_set_state), in its three forms; or
//! the function tcp_set_state (net/ipv4/tcp.c), which makes all of them but CLOSE -> LISTEN. In: the socket, the old
//! state and the new one. Out: a record of the transition in the queue, and before it what was counted, how long the
//! connection was idle, what it carried and which interface it is bound to. Deliberately absent: LISTEN -> SYN_RECV, and what the states mean.

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, fentry, kprobe, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, FEntryContext, ProbeContext, RawTracePointContext, TracePointContext},
};
use aya_log_ebpf::debug;
use tcpwatch_common::{
    FLAG_BOUND, FLAG_FIN_RECEIVED, FLAG_HELD, FLAG_PASSIVE, IdleEvent, KIND_IDLE, KIND_TRAFFIC,
    KIND_TRANSITION, KIND_TRANSITION_WITH_TRAFFIC, SocketEvent, TrafficEvent,
    counter::LOST_STATE,
    state::{
        CLOSE, CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, LISTEN, SYN_RECV, SYN_SENT,
    },
};

use crate::{
    counts::{overflows, socket_end},
    out::{
        LOG_TARGET, failed_connects, queue,
        socket_event::{self, What},
        task_event::{self, By},
    },
    read::{
        clock, identity,
        offsets::{
            OFF_LRCVTIME, OFF_LSNDTIME, OFF_REGS_ARG0, OFF_REGS_ARG1, OFF_SKC_STATE, OFF_TCP_CLOCK_CACHE,
            OFF_TOTAL_RETRANS,
        },
        pointer::{BtfPtr, IPPROTO_TCP, KernelPtr, ProbedPtr},
        registers, tcp_sock,
        tracepoint::{
            self, TP_STATE_DADDR_V6, TP_STATE_DPORT, TP_STATE_NEWSTATE, TP_STATE_OLDSTATE, TP_STATE_PROTOCOL,
            TP_STATE_SADDR_V6, TP_STATE_SKADDR, TP_STATE_SPORT,
        },
    },
};

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn state_tp_btf(ctx: BtfTracePointContext) -> i32 {
    let states = (ctx.arg::<i32>(1) as u8, ctx.arg::<i32>(2) as u8);
    changes(&ctx, states, || BtfPtr::new(ctx.arg(0)).and_then(BtfPtr::trusted_tcp_sock))
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn state_raw_tp(ctx: RawTracePointContext) -> i32 {
    let states = (ctx.arg::<i32>(1) as u8, ctx.arg::<i32>(2) as u8);
    changes(&ctx, states, || ProbedPtr::new(ctx.arg(0)).and_then(KernelPtr::tcp_sock))
}

#[fentry(function = "tcp_set_state")]
pub fn state_fentry(ctx: FEntryContext) -> i32 {
    let Some(sk) = BtfPtr::new(ctx.arg(0)).and_then(KernelPtr::tcp_sock) else { return 0 };
    changes(&ctx, (sk.read(&OFF_SKC_STATE), ctx.arg::<i32>(1) as u8), || Some(sk))
}

#[kprobe]
pub fn state_kprobe(ctx: ProbeContext) -> u32 {
    let sk = ProbedPtr::new(registers::read(&ctx, &OFF_REGS_ARG0) as *const u8);
    let Some(sk) = sk.and_then(KernelPtr::tcp_sock) else { return 0 };
    changes(&ctx, (sk.read(&OFF_SKC_STATE), registers::read(&ctx, &OFF_REGS_ARG1) as u8), || Some(sk));
    0
}

/// For a kernel whose types are not known: only what the tracepoint prints is.
#[tracepoint(category = "sock", name = "inet_sock_set_state")]
pub fn state_tracepoint(ctx: TracePointContext) -> u32 {
    changes_as_printed(&ctx);
    0
}

/// Whether a transition is left out. A listener's child is in SYN_RECV for the microseconds until the same softirq
/// establishes it, and on 5.10 has no remote address yet. Its life begins with SYN_RECV -> ESTABLISHED.
#[inline(always)]
fn is_left_out(old_state: u8, new_state: u8) -> bool {
    old_state == LISTEN && new_state == SYN_RECV
}

/// `sk` gives the socket, if it is TCP's; called only where there is something to report.
#[inline(always)]
fn changes<K: KernelPtr>(
    ctx: &impl EbpfContext,
    (old_state, new_state): (u8, u8),
    sk: impl FnOnce() -> Option<K>,
) -> i32 {
    if is_left_out(old_state, new_state) {
        return 0;
    }
    let Some(sk) = sk() else { return 0 };
    let mut flags = tcp_sock::flags(sk);
    let end = if new_state == CLOSE { tcp_sock::error_and_retransmits(sk) } else { 0 };
    let has_counts =
        new_state == CLOSE && socket_end::may_have_counts(sk, old_state, end & tcp_sock::RETRANSMITS);
    // Counts are reported with the clock's time, and the record of their end has to be the last.
    let mut time_ns = if !has_counts && is_by_packet(sk, (old_state, new_state), flags) {
        sk.read::<u64>(&OFF_TCP_CLOCK_CACHE)
    } else {
        0
    };
    if time_ns == 0 {
        time_ns = clock::now_ns();
    }
    if old_state == SYN_SENT && new_state == CLOSE {
        let unsent = tcp_sock::unsent_flag(sk);
        if unsent != 0 {
            failed_connects::mark_reported(identity::of(sk));
        }
        if !tcp_sock::is_shut_down(sk) {
            flags |= unsent;
        }
    } else if new_state == CLOSE || new_state == SYN_SENT {
        flags |= tcp_sock::repair_flag(sk);
    }
    let value = match new_state {
        // Only the application's own connect, listen, close or shutdown leads to these, in its context.
        SYN_SENT | LISTEN | FIN_WAIT1 | LAST_ACK => {
            task_event::current_tgid(&mut time_ns, By::Queue, LOST_STATE)
        }
        CLOSE_WAIT => tcp_sock::unread_bytes(sk, flags),
        CLOSE => end,
        ESTABLISHED if old_state == SYN_RECV => sk.read(&OFF_TOTAL_RETRANS),
        ESTABLISHED if old_state == SYN_SENT => tcp_sock::handshake_micros(sk),
        _ => 0,
    };
    let what = What { kind: KIND_TRANSITION, old_state, new_state, flags, value };
    let mut event = socket_event::describe(sk, time_ns, &what);
    // Written first, as it is read first: of records with equal times the reader takes the ring's before the queues'.
    if has_counts {
        // A copy: what is passed to a function by address lies on the stack. Were that `event`, each record would
        // have to be copied from there to its slot.
        let end = event;
        socket_end::report(sk, &end);
    }
    if flags & FLAG_BOUND != 0 && (old_state == CLOSE || old_state == SYN_RECV || new_state == CLOSE) {
        queue::push(&socket_event::interface(sk, &event), LOST_STATE);
    }
    if old_state == LISTEN {
        overflows::forget(event.cookie);
    }
    if old_state == ESTABLISHED {
        report_idle(sk, &event);
    }
    if old_state == ESTABLISHED || (new_state == CLOSE && old_state != LISTEN && old_state != SYN_SENT) {
        report_traffic(sk, &mut event);
    }
    if !queue::push(&event, LOST_STATE) {
        debug!(ctx, target: LOG_TARGET, "no room for socket {:x}, state {} to {}", event.cookie, old_state, new_state);
    }
    0
}

/// Whether a packet causes the transition, so that the socket has the time at which the kernel took up the packet
/// (tcp_mstamp_refresh, net/ipv4/tcp_output.c): reading the clock once more would cost a sixth of the whole record.
/// Where the kernel took no time, as when connect() establishes what CRIU restores, that time is 0.
///
/// Other causes lead to CLOSE as well; but in FIN_WAIT2 the FIN ends the socket, and in LAST_ACK the acknowledgement
/// of all that was sent, in tcp_rcv_state_process (net/ipv4/tcp_input.c).
#[inline(always)]
fn is_by_packet(sk: impl KernelPtr, states: (u8, u8), flags: u8) -> bool {
    match states {
        (_, ESTABLISHED | CLOSE_WAIT | FIN_WAIT2) => true,
        (FIN_WAIT2, CLOSE) => flags & FLAG_FIN_RECEIVED != 0,
        (LAST_ACK, CLOSE) => tcp_sock::undelivered(sk) == (0, 0),
        _ => false,
    }
}

/// Kernel ticks without data after which a connection counts as idle: 32 ms to 320 ms, by the kernel's HZ.
const IDLE_TICKS: u32 = 32;

/// Reports how long the connection had been idle, if it had: one more record for each of the others would cost more
/// than it is worth.
#[inline(always)]
fn report_idle(sk: impl KernelPtr, event: &SocketEvent) {
    let now = clock::now_jiffies() as u32;
    let sent_ticks = ticks_since(sk.read(&OFF_LSNDTIME), now);
    let received_ticks = ticks_since(sk.read(&OFF_LRCVTIME), now);
    if sent_ticks < IDLE_TICKS && received_ticks < IDLE_TICKS {
        return;
    }
    let SocketEvent { time_ns, cookie, .. } = *event;
    let idle = IdleEvent { kind: KIND_IDLE, zero: [0; 7], time_ns, cookie, sent_ticks, received_ticks };
    queue::push(&idle, LOST_STATE);
}

/// 0 is no time: nothing has set it.
#[inline(always)]
fn ticks_since(tick: u32, now: u32) -> u32 {
    if tick == 0 { u32::MAX } else { now.wrapping_sub(tick) }
}

/// Reports what the connection has carried: in the record of the transition itself, if its addresses leave room.
#[inline(always)]
fn report_traffic(sk: impl KernelPtr, event: &mut SocketEvent) {
    let (sent_bytes, received_bytes) = tcp_sock::traffic(sk, event.flags);
    if first_half(&event.saddr) | first_half(&event.daddr) == 0 {
        event.kind = KIND_TRANSITION_WITH_TRAFFIC;
        event.saddr[..8].copy_from_slice(&sent_bytes.to_ne_bytes());
        event.daddr[..8].copy_from_slice(&received_bytes.to_ne_bytes());
        return;
    }
    let SocketEvent { time_ns, cookie, .. } = *event;
    let traffic =
        TrafficEvent { kind: KIND_TRAFFIC, zero: [0; 7], time_ns, cookie, sent_bytes, received_bytes };
    queue::push(&traffic, LOST_STATE);
}

#[inline(always)]
fn first_half(address: &[u8; 16]) -> u64 {
    address.first_chunk().map_or(0, |half| u64::from_ne_bytes(*half))
}

#[inline(always)]
fn changes_as_printed(ctx: &TracePointContext) -> Option<()> {
    if tracepoint::read::<u16>(ctx, &TP_STATE_PROTOCOL)? != IPPROTO_TCP {
        return None;
    }
    let (old_state, new_state) = (
        tracepoint::read::<i32>(ctx, &TP_STATE_OLDSTATE)? as u8,
        tracepoint::read::<i32>(ctx, &TP_STATE_NEWSTATE)? as u8,
    );
    if is_left_out(old_state, new_state) {
        return None;
    }
    let time_ns = clock::now_ns();
    let value = match new_state {
        SYN_SENT | LISTEN | FIN_WAIT1 | LAST_ACK => {
            task_event::current_tgid_without_start(time_ns, LOST_STATE).unwrap_or(0)
        }
        _ => 0,
    };
    // What is nearly always true for these transitions.
    let flags = match (old_state, new_state) {
        (SYN_RECV, ESTABLISHED) => FLAG_PASSIVE,
        (FIN_WAIT2 | CLOSING, _) => FLAG_FIN_RECEIVED | FLAG_HELD,
        _ => FLAG_HELD,
    };
    let sk = tracepoint::read::<*const u8>(ctx, &TP_STATE_SKADDR)?;
    let cookie = identity::hide_address(sk as u64);
    // The kernel's types may be known all the same, and then the signal `connect` needs the mark.
    if old_state == SYN_SENT
        && new_state == CLOSE
        && ProbedPtr::new(sk).is_some_and(|sk| tcp_sock::unsent_flag(sk) != 0)
    {
        failed_connects::mark_reported(cookie);
    }
    let event = SocketEvent {
        kind: KIND_TRANSITION,
        old_state,
        new_state,
        flags,
        netns: 0,
        time_ns,
        cookie,
        value,
        sport: tracepoint::read(ctx, &TP_STATE_SPORT)?,
        dport: tracepoint::read(ctx, &TP_STATE_DPORT)?,
        saddr: tracepoint::read(ctx, &TP_STATE_SADDR_V6)?,
        daddr: tracepoint::read(ctx, &TP_STATE_DADDR_V6)?,
    };
    queue::push(&event, LOST_STATE).then_some(())
}
