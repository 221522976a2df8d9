//! Resets that a packet filter of this machine sends in place of TCP (REJECT with tcp-reset): the functions
//! nf_send_reset (net/ipv4/netfilter/nf_reject_ipv4.c) and nf_send_reset6 (net/ipv6/netfilter/nf_reject_ipv6.c),
//! which may be a module's. In: the refused packet and the filter's hook. Out: a record of a reset. Deliberately
//! absent: records of resets that have no local socket, as for a SYN that comes in: a port scan makes many, so they
//! are counted only.
//!
//! Where a local socket's own segment is refused, the reset is for that socket, so it is reported as received.

use aya_ebpf::{helpers::bpf_probe_read_kernel, macros::kprobe, programs::ProbeContext};
use tcpwatch_common::{
    RESET_ANSWERS, RESET_POLICY, RESET_RECEIVED,
    counter::{LOST_POLICY_RESET, RESET_BY_POLICY},
    state::TIME_WAIT,
};

use crate::{
    out::{counters, reset_event},
    read::{
        offsets::{
            OFF_REGS_ARG1, OFF_REGS_ARG2, OFF_REGS_ARG3, OFF_SKB_HEAD, OFF_SKB_NETWORK_HEADER, OFF_SKB_SK,
            OFF_SKC_STATE,
        },
        pointer::{KernelPtr, ProbedPtr},
        registers,
        tcp_sock::NEW_SYN_RECV,
    },
};

/// include/uapi/linux/netfilter.h
const NF_INET_LOCAL_OUT: u32 = 3;

/// include/uapi/linux/tcp.h: the offset of the flags in a header, in bytes, and the flag of a reset.
const TCP_FLAGS: usize = 13;
const RST: u8 = 4;

/// include/uapi/linux/ipv6.h: bytes, without extension headers.
const IPV6_HEADER: usize = 40;

/// nf_send_reset(net, sk, oldskb, hook); without `sk` before Linux 5.11.
#[kprobe]
pub fn policy_reset_v4_kprobe(ctx: ProbeContext) -> u32 {
    refused(&ctx, |ip| (read_u8(ip) & 0xf) as usize * 4);
    0
}

/// nf_send_reset6(net, sk, oldskb, hook); without `sk` before Linux 5.11.
#[kprobe]
pub fn policy_reset_v6_kprobe(ctx: ProbeContext) -> u32 {
    refused(&ctx, |_| IPV6_HEADER);
    0
}

/// `header`: the bytes of the IP header at an address.
#[inline(always)]
fn refused(ctx: &ProbeContext, header: impl FnOnce(*const u8) -> usize) {
    let third = registers::read(ctx, &OFF_REGS_ARG2);
    // An address of the kernel is negative as a number; a hook is not.
    let (skb, hook) = if (third as i64) < 0 {
        (third, registers::read(ctx, &OFF_REGS_ARG3))
    } else {
        (registers::read(ctx, &OFF_REGS_ARG1), third)
    };
    let Some(skb) = ProbedPtr::new(skb as *const u8) else { return };
    let ip =
        skb.read::<*const u8>(&OFF_SKB_HEAD).wrapping_add(skb.read::<u16>(&OFF_SKB_NETWORK_HEADER) as usize);
    // No reset answers a reset.
    if read_u8(ip.wrapping_add(header(ip) + TCP_FLAGS)) & RST != 0 {
        return;
    }
    let full = skb.follow(&OFF_SKB_SK).filter(|sk| {
        let state = sk.read::<u8>(&OFF_SKC_STATE);
        state != TIME_WAIT && state != NEW_SYN_RECV
    });
    match full.and_then(KernelPtr::tcp_sock) {
        Some(sk) => {
            let side = if hook as u32 == NF_INET_LOCAL_OUT { RESET_RECEIVED } else { RESET_ANSWERS };
            reset_event::emit(ctx, sk, RESET_POLICY | side, LOST_POLICY_RESET);
        }
        None => counters::add_one(RESET_BY_POLICY),
    }
}

#[inline(always)]
fn read_u8(address: *const u8) -> u8 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address) }.unwrap_or(0)
}
