//! State changes: the tracepoint inet_sock_set_state (net/ipv4/af_inet.c, inet_sk_set_state), in its three
//! forms; or the function tcp_set_state (net/ipv4/tcp.c), which makes all of them but CLOSE -> LISTEN.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_jiffies64, bpf_ktime_get_ns},
    macros::{btf_tracepoint, fentry, kprobe, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, FEntryContext, ProbeContext, RawTracePointContext, TracePointContext},
};
use aya_log_ebpf::debug;
use tcpwatch_common::{
    FLAG_FIN_RECEIVED, IdleEvent, KIND_IDLE, KIND_TRAFFIC, KIND_TRANSITION, KIND_TRANSITION_WITH_TRAFFIC,
    SocketEvent, TrafficEvent,
    counter::LOST_STATE,
    state::{CLOSE, CLOSE_WAIT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, LISTEN, SYN_RECV, SYN_SENT},
};

use crate::{
    connect,
    event::{self, What},
    field::{
        Kernel, OFF_LRCVTIME, OFF_LSNDTIME, OFF_REGS_ARG0, OFF_REGS_ARG1, OFF_SKC_STATE, OFF_TCP_CLOCK_CACHE,
        OFF_TOTAL_RETRANS, Raw, Typed,
    },
    fill, format, out_of_order, queue, registers, retransmit,
    stall::{self, CA_RECOVERY},
    task::{self, By},
};

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn state_tp_btf(ctx: BtfTracePointContext) -> i32 {
    let states = (ctx.arg::<i32>(1) as u8, ctx.arg::<i32>(2) as u8);
    changes(&ctx, states, || Typed::new(ctx.arg(0)).and_then(Typed::given_tcp_sock))
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn state_raw_tp(ctx: RawTracePointContext) -> i32 {
    let states = (ctx.arg::<i32>(1) as u8, ctx.arg::<i32>(2) as u8);
    changes(&ctx, states, || Raw::new(ctx.arg(0)).and_then(Kernel::tcp_sock))
}

#[fentry(function = "tcp_set_state")]
pub fn state_fentry(ctx: FEntryContext) -> i32 {
    let Some(sk) = Typed::new(ctx.arg(0)).and_then(Kernel::tcp_sock) else { return 0 };
    changes(&ctx, (sk.read(&OFF_SKC_STATE), ctx.arg::<i32>(1) as u8), || Some(sk))
}

#[kprobe]
pub fn state_kprobe(ctx: ProbeContext) -> u32 {
    let sk = Raw::new(registers::read(&ctx, &OFF_REGS_ARG0) as *const u8);
    let Some(sk) = sk.and_then(Kernel::tcp_sock) else { return 0 };
    changes(&ctx, (sk.read(&OFF_SKC_STATE), registers::read(&ctx, &OFF_REGS_ARG1) as u8), || Some(sk));
    0
}

/// For a kernel without BTF: all that is known is what the tracepoint prints.
#[tracepoint(category = "sock", name = "inet_sock_set_state")]
pub fn state_tracepoint(ctx: TracePointContext) -> u32 {
    format::state_change(&ctx);
    0
}

/// `sk` gives the socket, if it is TCP's; asked only where there is something to tell.
#[inline(always)]
fn changes<K: Kernel>(
    ctx: &impl EbpfContext,
    (old_state, new_state): (u8, u8),
    sk: impl FnOnce() -> Option<K>,
) -> i32 {
    // A listener's child is SYN_RECV for the microseconds until the same softirq establishes it, and on
    // 5.10 has no remote address yet. Its life begins with SYN_RECV -> ESTABLISHED.
    if old_state == LISTEN && new_state == SYN_RECV {
        return 0;
    }
    let Some(sk) = sk() else { return 0 };
    let mut flags = fill::flags(sk);
    let end = if new_state == CLOSE { fill::error_and_retransmits(sk) } else { 0 };
    let is_counted = new_state == CLOSE
        && (old_state == LISTEN
            || end & fill::RETRANSMITS != 0
            || stall::ca_state(sk) >= CA_RECOVERY
            || out_of_order::was_counted(sk));
    // What is counted of it has been told of by the clock, and its end comes last.
    let mut time_ns = if !is_counted && is_by_packet(sk, (old_state, new_state), flags) {
        sk.read::<u64>(&OFF_TCP_CLOCK_CACHE)
    } else {
        0
    };
    if time_ns == 0 {
        // SAFETY: no arguments.
        time_ns = unsafe { bpf_ktime_get_ns() };
    }
    if old_state == SYN_SENT && new_state == CLOSE {
        let unsent = fill::unsent(sk);
        if unsent != 0 {
            connect::mark_told(fill::cookie(sk));
        }
        flags |= unsent;
    }
    let value = match new_state {
        // Only the application's own connect, listen, close or shutdown leads to these, in its context.
        SYN_SENT | LISTEN | FIN_WAIT1 | LAST_ACK => task::current_tgid(&mut time_ns, By::Queue, LOST_STATE),
        CLOSE_WAIT => fill::unread_bytes(sk, flags),
        CLOSE => end,
        ESTABLISHED if old_state == SYN_RECV => sk.read(&OFF_TOTAL_RETRANS),
        _ => 0,
    };
    let what = What { kind: KIND_TRANSITION, old_state, new_state, flags, value, lost: LOST_STATE };
    let mut event = event::describe(sk, time_ns, &what);
    // Written first, as it is read first: at one time the ring's records come before the queues'.
    if is_counted {
        // A copy: what is handed to a function of its own lies on the stack, and from there each record would have to be
        // copied to its slot.
        let end = event;
        retransmit::end(sk, &end);
    }
    if old_state == ESTABLISHED {
        tell_idle(sk, &event);
    }
    if old_state == ESTABLISHED || (new_state == CLOSE && old_state != LISTEN && old_state != SYN_SENT) {
        tell_traffic(sk, &mut event);
    }
    if !queue::push(&event, LOST_STATE) {
        debug!(ctx, "no room for socket {:x}, state {} to {}", event.cookie, old_state, new_state);
    }
    0
}

/// Whether it comes of a packet, of which the kernel took the time as it took it up (tcp_mstamp_refresh,
/// net/ipv4/tcp_output.c): to read the clock once more costs a sixth of what the record does. Where it took none, as when
/// connect() establishes what CRIU restores, the time is 0. To CLOSE other things lead as well; but in FIN_WAIT2 the FIN ends
/// the socket, and in LAST_ACK the acknowledgement of all that was sent, in tcp_rcv_state_process (net/ipv4/tcp_input.c).
#[inline(always)]
fn is_by_packet(sk: impl Kernel, states: (u8, u8), flags: u8) -> bool {
    match states {
        (_, ESTABLISHED | CLOSE_WAIT | FIN_WAIT2) => true,
        (FIN_WAIT2, CLOSE) => flags & FLAG_FIN_RECEIVED != 0,
        (LAST_ACK, CLOSE) => fill::undelivered(sk) == (0, 0),
        _ => false,
    }
}

/// Ticks for which a connection is not called idle.
const IDLE_TICKS: u32 = 32;

/// Of whoever closes a connection that was idle: how long it was. One more record for each of the others would cost them
/// more than it says.
#[inline(always)]
fn tell_idle(sk: impl Kernel, event: &SocketEvent) {
    // SAFETY: no arguments.
    let now = unsafe { bpf_jiffies64() } as u32;
    let sent_ticks = now.wrapping_sub(sk.read(&OFF_LSNDTIME));
    let received_ticks = now.wrapping_sub(sk.read(&OFF_LRCVTIME));
    if sent_ticks < IDLE_TICKS && received_ticks < IDLE_TICKS {
        return;
    }
    let SocketEvent { time_ns, cookie, .. } = *event;
    let idle = IdleEvent { kind: KIND_IDLE, zero: [0; 7], time_ns, cookie, sent_ticks, received_ticks };
    queue::push(&idle, LOST_STATE);
}

/// What the connection has carried, told with the change of state: in the record itself, if its addresses leave room.
#[inline(always)]
fn tell_traffic(sk: impl Kernel, event: &mut SocketEvent) {
    let (sent_bytes, received_bytes) = fill::traffic(sk, event.flags);
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
    let [a, b, c, d, e, f, g, h, ..] = *address;
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}
