//! What the tracepoints print (their `format` file in tracefs): all there is where the kernel's types are not
//! known. No namespace, no unread bytes, no start of a process; sockets are identified by address.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel},
    programs::TracePointContext,
};
use tcpwatch_common::{
    FLAG_FIN_RECEIVED, FLAG_HELD, FLAG_PASSIVE, KIND_RETRANSMIT, KIND_TASK, KIND_TRANSITION, RetransmitEvent,
    SocketEvent, TaskEvent,
    counter::{LOST_RETRANSMIT, LOST_STATE, LOST_SYN_ACK},
    retransmit::{COUNT, SYN, SYN_ACK, UNKNOWN},
    state::{CLOSE, CLOSING, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, LISTEN, SYN_RECV, SYN_SENT},
};

use crate::{
    connect,
    field::{self, Kernel as _, Raw},
    fill, queue, ring,
};

macro_rules! fields {
    ($($name:ident)*) => { $( #[unsafe(no_mangle)] static $name: u32 = 0; )* };
}

// `TP_<tracepoint>_<field>`: its offset in the tracepoint's record. `tcpwatch/src/probes/format.rs` sets them.
fields! {
    TP_STATE_SKADDR TP_STATE_OLDSTATE TP_STATE_NEWSTATE TP_STATE_PROTOCOL TP_STATE_SPORT TP_STATE_DPORT
    TP_STATE_SADDR_V6 TP_STATE_DADDR_V6
    TP_RETRANSMIT_SKADDR TP_RETRANSMIT_STATE TP_RETRANSMIT_SPORT TP_RETRANSMIT_DPORT
    TP_RETRANSMIT_SADDR_V6 TP_RETRANSMIT_DADDR_V6
    TP_SYNACK_SKADDR TP_SYNACK_SPORT TP_SYNACK_SADDR_V6
}

/// include/uapi/linux/in.h
const IPPROTO_TCP: u16 = 6;

#[inline(always)]
fn read<T>(ctx: &TracePointContext, offset: &'static u32) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(ctx.as_ptr().cast::<u8>().wrapping_add(field::value(offset)).cast()).ok() }
}

#[inline(always)]
pub fn state_change(ctx: &TracePointContext) -> Option<()> {
    if read::<u16>(ctx, &TP_STATE_PROTOCOL)? != IPPROTO_TCP {
        return None;
    }
    let (old_state, new_state) =
        (read::<i32>(ctx, &TP_STATE_OLDSTATE)? as u8, read::<i32>(ctx, &TP_STATE_NEWSTATE)? as u8);
    if old_state == LISTEN && new_state == SYN_RECV {
        return None;
    }
    // SAFETY: no arguments.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let value = match new_state {
        SYN_SENT | LISTEN | FIN_WAIT1 | LAST_ACK => current_tgid(time_ns).unwrap_or(0),
        _ => 0,
    };
    // As these transitions nearly always come about.
    let flags = match (old_state, new_state) {
        (SYN_RECV, ESTABLISHED) => FLAG_PASSIVE,
        (FIN_WAIT2 | CLOSING, _) => FLAG_FIN_RECEIVED | FLAG_HELD,
        _ => FLAG_HELD,
    };
    let sk = read::<*const u8>(ctx, &TP_STATE_SKADDR)?;
    let cookie = fill::hide_address(sk as u64);
    // Where the types are known all the same, the signal `connect` is served.
    if old_state == SYN_SENT && new_state == CLOSE && Raw::new(sk).is_some_and(|sk| fill::unsent(sk) != 0) {
        connect::mark_told(cookie);
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
        sport: read(ctx, &TP_STATE_SPORT)?,
        dport: read(ctx, &TP_STATE_DPORT)?,
        saddr: read(ctx, &TP_STATE_SADDR_V6)?,
        daddr: read(ctx, &TP_STATE_DADDR_V6)?,
    };
    queue::push(&event, LOST_STATE).then_some(())
}

#[inline(always)]
pub fn retransmit(ctx: &TracePointContext) -> Option<()> {
    let state = read::<i32>(ctx, &TP_RETRANSMIT_STATE)? as u8;
    let event = SocketEvent {
        kind: KIND_RETRANSMIT,
        old_state: state,
        new_state: state,
        flags: FLAG_HELD,
        netns: 0,
        // SAFETY: no arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        cookie: fill::hide_address(read(ctx, &TP_RETRANSMIT_SKADDR)?),
        // How many there were before is not told.
        value: 0,
        sport: read(ctx, &TP_RETRANSMIT_SPORT)?,
        dport: read(ctx, &TP_RETRANSMIT_DPORT)?,
        saddr: read(ctx, &TP_RETRANSMIT_SADDR_V6)?,
        daddr: read(ctx, &TP_RETRANSMIT_DADDR_V6)?,
    };
    let kind = match state {
        SYN_SENT => SYN,
        SYN_RECV => SYN_ACK,
        _ => UNKNOWN,
    };
    tell(event, kind, LOST_RETRANSMIT)
}

#[inline(always)]
pub fn retransmit_synack(ctx: &TracePointContext) -> Option<()> {
    let event = SocketEvent {
        kind: KIND_RETRANSMIT,
        // As nearly always: with TCP Fast Open it is the new socket's.
        old_state: LISTEN,
        new_state: LISTEN,
        flags: FLAG_HELD,
        netns: 0,
        // SAFETY: no arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        cookie: fill::hide_address(read(ctx, &TP_SYNACK_SKADDR)?),
        value: 0,
        sport: read(ctx, &TP_SYNACK_SPORT)?,
        dport: 0,
        saddr: read(ctx, &TP_SYNACK_SADDR_V6)?,
        daddr: [0; 16],
    };
    tell(event, SYN_ACK, LOST_SYN_ACK)
}

/// One packet, each told by itself: when a socket here ends, nobody would empty the map of counts.
#[inline(always)]
fn tell(socket: SocketEvent, kind: usize, lost: u32) -> Option<()> {
    let mut segments = [0; COUNT];
    segments[kind] = 1;
    let mut entry = ring::reserve::<RetransmitEvent>(lost)?;
    let since_ns = socket.time_ns;
    entry.write(RetransmitEvent {
        socket,
        since_ns,
        segments,
        // SAFETY: numbers only, of which 0 is one.
        ..unsafe { core::mem::zeroed() }
    });
    ring::submit(entry);
    Some(())
}

/// The current process, told each time: what it was told before cannot be compared without its start.
#[inline(always)]
fn current_tgid(time_ns: u64) -> Option<u32> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let comm = bpf_get_current_comm().ok()?;
    let record = TaskEvent { kind: KIND_TASK, zero: [0; 3], tgid, time_ns, start_ns: 0, comm };
    if !queue::push(&record, LOST_STATE) {
        return None;
    }
    Some(tgid)
}
