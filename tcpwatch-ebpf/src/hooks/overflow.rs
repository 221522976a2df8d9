//! Full accept queues: tcp_conn_request (net/ipv4/tcp_input.c), which takes a SYN, and tcp_v4_syn_recv_sock and
//! tcp_v6_syn_recv_sock, which make a connection of a request. Each refuses while the listener's queue is full, and
//! counts that for the whole network namespace (ListenOverflows). In: the listener. Out: one more in its count.
//! Deliberately absent: a record, and SYNs that are dropped for another reason.
//!
//! All three run once for each connection that comes in, so they read two numbers and nothing more while the queue is
//! not full.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};

use crate::{
    counts::overflows,
    read::{
        identity,
        offsets::{
            OFF_NET_SYNCOOKIES, OFF_REGS_ARG0, OFF_REGS_ARG1, OFF_REGS_ARG2, OFF_REQUEST_QUEUE_LENGTH,
            OFF_SK_ACK_BACKLOG, OFF_SK_MAX_ACK_BACKLOG, OFF_SKB_PROTOCOL, OFF_SKC_NET,
        },
        pointer::{BtfPtr, KernelPtr, ProbedPtr},
        registers,
    },
};

/// include/uapi/linux/if_ether.h, as the packet has it.
const ETH_P_IP: u16 = 0x0800_u16.to_be();

/// tcp_conn_request(rsk_ops, af_ops, sk, skb).
#[fentry(function = "tcp_conn_request")]
pub fn overflow_syn_fentry(ctx: FEntryContext) -> i32 {
    if let Some(listener) = BtfPtr::new(ctx.arg(2)) {
        syn(listener);
    }
    0
}

/// tcp_v4_syn_recv_sock(sk, skb, ...); tcp_v6_syn_recv_sock calls it for IPv4.
#[fentry(function = "tcp_v4_syn_recv_sock")]
pub fn overflow_v4_fentry(ctx: FEntryContext) -> i32 {
    if let Some(listener) = BtfPtr::new(ctx.arg(0)) {
        connection(listener);
    }
    0
}

#[fentry(function = "tcp_v6_syn_recv_sock")]
pub fn overflow_v6_fentry(ctx: FEntryContext) -> i32 {
    if let Some(listener) = BtfPtr::new(ctx.arg(0)) {
        connection_v6(listener, || BtfPtr::new(ctx.arg(1)));
    }
    0
}

#[kprobe]
pub fn overflow_syn_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(listener) = ProbedPtr::new(registers::read(&ctx, &OFF_REGS_ARG2) as *const u8) {
        syn(listener);
    }
    0
}

#[kprobe]
pub fn overflow_v4_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(listener) = ProbedPtr::new(registers::read(&ctx, &OFF_REGS_ARG0) as *const u8) {
        connection(listener);
    }
    0
}

#[kprobe]
pub fn overflow_v6_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(listener) = ProbedPtr::new(registers::read(&ctx, &OFF_REGS_ARG0) as *const u8) {
        connection_v6(listener, || ProbedPtr::new(registers::read(&ctx, &OFF_REGS_ARG1) as *const u8));
    }
    0
}

#[inline(always)]
fn connection(listener: impl KernelPtr) {
    if is_full(listener) {
        overflows::add_one(identity::of(listener));
    }
}

/// The packet is read only where the queue is full.
#[inline(always)]
fn connection_v6<P: KernelPtr>(listener: impl KernelPtr, packet: impl FnOnce() -> Option<P>) {
    if is_full(listener) && packet().is_some_and(is_v6) {
        overflows::add_one(identity::of(listener));
    }
}

/// Without SYN cookies the kernel looks first whether there are too many requests, and drops the SYN for that.
#[inline(always)]
fn syn(listener: impl KernelPtr) {
    if !is_full(listener) {
        return;
    }
    let Some(tcp) = listener.tcp_sock() else { return };
    let too_many = tcp.read::<u32>(&OFF_REQUEST_QUEUE_LENGTH) >= tcp.read(&OFF_SK_MAX_ACK_BACKLOG);
    // The lowest byte: the number had four bytes until Linux 5.14.
    let cookies = listener.follow(&OFF_SKC_NET).map_or(0, |net| net.read::<u8>(&OFF_NET_SYNCOOKIES));
    if !too_many || cookies != 0 {
        overflows::add_one(identity::of(listener));
    }
}

/// sk_acceptq_is_full (include/net/sock.h).
#[inline(always)]
fn is_full(listener: impl KernelPtr) -> bool {
    listener.read::<u32>(&OFF_SK_ACK_BACKLOG) > listener.read::<u32>(&OFF_SK_MAX_ACK_BACKLOG)
}

#[inline(always)]
fn is_v6(packet: impl KernelPtr) -> bool {
    packet.read::<u16>(&OFF_SKB_PROTOCOL) != ETH_P_IP
}
