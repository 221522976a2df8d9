//! Recoveries from loss: the tracepoint tcp_cong_state_set (net/ipv4/tcp_cong.c, tcp_set_ca_state), which runs before
//! the state of the congestion control is set. In: the socket and its next state. Out: the begin or end of a stall,
//! in the socket's counts. Deliberately absent: what is a stall (`counts::stall`), and congestion without loss.

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use tcpwatch_common::{
    counter::{HELD_BACK_CONGESTION, LOST_CONGESTION},
    stall::{FAST, TIMEOUT},
    state::{CLOSE, LISTEN, SYN_RECV, SYN_SENT},
};

use crate::{
    counts::{
        socket_counts::{self, SignalCounters},
        stall,
    },
    read::{
        clock, identity,
        offsets::OFF_SKC_STATE,
        pointer::{BtfPtr, KernelPtr, ProbedPtr},
        tcp_sock::{CA_LOSS, CA_RECOVERY, ca_state, outstanding_bytes},
    },
};

/// tcp_cong_state_set(sk, ca_state).
#[btf_tracepoint(function = "tcp_cong_state_set")]
pub fn congestion_tp_btf(ctx: BtfTracePointContext) -> i32 {
    changes(&ctx, BtfPtr::new(ctx.arg(0)), ctx.arg::<u32>(1) as u8);
    0
}

#[raw_tracepoint(tracepoint = "tcp_cong_state_set")]
pub fn congestion_raw_tp(ctx: RawTracePointContext) -> i32 {
    changes(&ctx, ProbedPtr::new(ctx.arg(0)), ctx.arg::<u32>(1) as u8);
    0
}

#[inline(always)]
fn changes(ctx: &impl EbpfContext, sk: Option<impl KernelPtr>, new: u8) {
    // Nearly always a socket that a listener made, whose life starts with this. Tested first, because that costs least.
    let state = sk.map_or(CLOSE, |sk| sk.read::<u8>(&OFF_SKC_STATE));
    if matches!(state, SYN_SENT | SYN_RECV | LISTEN | CLOSE) {
        return;
    }
    let Some(sk) = sk.and_then(KernelPtr::tcp_sock) else { return };
    if new < CA_RECOVERY && ca_state(sk) < CA_RECOVERY {
        return;
    }
    let counters = SignalCounters { lost: LOST_CONGESTION, held_back: HELD_BACK_CONGESTION };
    let time_ns = clock::now_ns();
    let cookie = identity::of(sk);
    if new < CA_RECOVERY {
        let Some(counts) = socket_counts::find(cookie) else { return };
        // SAFETY: a value of the map.
        if unsafe { (*counts).event.stalled_since_ns } != 0 {
            socket_counts::change(ctx, sk, counts, time_ns, &counters, |counts| {
                stall::end(sk, counts, time_ns);
            });
        }
    } else if outstanding_bytes(sk, state) != 0 {
        socket_counts::begin_or_change(ctx, sk, cookie, time_ns, 0, &counters, |counts| {
            stall::begin(sk, counts, time_ns, if new == CA_LOSS { TIMEOUT } else { FAST });
        });
    }
}
