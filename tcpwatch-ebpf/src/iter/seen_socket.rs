//! The record of a socket that an iterator visits. In: a full socket, a minisock or a request. Out: a
//! [`SeenSocket`]'s fields. Deliberately absent: the process that holds the socket, which only the iterator task_file
//! knows.

use core::mem::MaybeUninit;

use tcpwatch_common::{HANDSHAKE_ACKNOWLEDGED, HANDSHAKE_DEFERRED, SeenSocket, chrono, state::LISTEN};

use crate::{
    counts::overflows,
    read::{
        clock, endpoints, identity, netns,
        offsets::{
            self, OFF_CA_OPS_NAME, OFF_CHRONO_START, OFF_CHRONO_STAT, OFF_CHRONO_TYPE, OFF_DATA_SEGS_OUT,
            OFF_DEFER_ACCEPT, OFF_ICSK_CA_OPS, OFF_ICSK_PROBES_OUT, OFF_LRCVTIME, OFF_LSNDTIME, OFF_MDEV_US,
            OFF_MSS_CACHE, OFF_PACKETS_OUT, OFF_RATE_DELIVERED, OFF_RATE_INTERVAL_US, OFF_RCV_OOOPACK,
            OFF_RCV_TSTAMP, OFF_REQUEST_ACKED_BIT, OFF_RTT_MIN, OFF_SK_ACK_BACKLOG, OFF_SK_DROPS,
            OFF_SK_MAX_ACK_BACKLOG, OFF_SK_RCVBUF, OFF_SK_SNDBUF, OFF_SKC_FLAGS, OFF_SKC_STATE, OFF_SRTT_US,
            OFF_TOTAL_RETRANS,
        },
        pointer::{BtfPtr, KernelPtr, ProbedPtr, bytes},
        socket_options, tcp_sock,
    },
};

/// Fills in what every full socket has.
#[inline(always)]
pub fn fill_full_socket(seen: &mut SeenSocket, sk: impl KernelPtr) {
    let flags = tcp_sock::flags(sk);
    let (sport, dport) = endpoints::ports(sk);
    // Without a branch, which would double what older verifiers have to follow.
    let data_segments = sk.read::<u32>(&OFF_DATA_SEGS_OUT);
    let (sent_bytes, received_bytes) = tcp_sock::traffic(sk, flags);
    fill_any_socket(seen, sk);
    let state = sk.read(&OFF_SKC_STATE);
    seen.state = state;
    seen.flags = flags | tcp_sock::connected_flag(sk, state);
    seen.data_sent = (data_segments | data_segments >> 16) as u16;
    seen.cookie = identity::of(sk);
    seen.unread_bytes = tcp_sock::unread_bytes(sk, flags);
    seen.total_retrans = sk.read(&OFF_TOTAL_RETRANS);
    seen.queue = sk.read(&OFF_SK_ACK_BACKLOG);
    seen.queue_limit = sk.read(&OFF_SK_MAX_ACK_BACKLOG);
    seen.drops = sk.read(&OFF_SK_DROPS);
    seen.received_jiffies = sk.read(&OFF_RCV_TSTAMP);
    seen.sent_jiffies = sk.read(&OFF_LSNDTIME);
    seen.data_received_jiffies = sk.read(&OFF_LRCVTIME);
    seen.unacknowledged = sk.read(&OFF_PACKETS_OUT);
    seen.unsent = tcp_sock::undelivered(sk).0;
    seen.handshake = deferred(sk);
    seen.srtt = sk.read(&OFF_SRTT_US);
    seen.sport = sport;
    seen.dport = dport;
    seen.sent_bytes = sent_bytes;
    seen.received_bytes = received_bytes;
}

/// Fills in what is reported only for a socket that a process holds: how its data flows, and with which options.
#[inline(always)]
pub fn fill_flow(seen: &mut SeenSocket, sk: impl KernelPtr) {
    seen.sending_jiffies = sending_jiffies(sk);
    seen.out_of_order = sk.read(&OFF_RCV_OOOPACK);
    seen.delivery_rate = delivery_rate(sk);
    // With nothing to send they are keep-alive probes (tcp_keepalive_timer and tcp_probe_timer, net/ipv4/tcp_timer.c).
    seen.window_probes = u32::from(sk.read::<u8>(&OFF_ICSK_PROBES_OUT)) * u32::from(seen.unsent != 0);
    seen.send_buffer = sk.read(&OFF_SK_SNDBUF);
    seen.receive_buffer = sk.read(&OFF_SK_RCVBUF);
    // `v` of the least sample, after its `t` (include/linux/win_minmax.h).
    seen.min_rtt_us = sk.read_at(offsets::value(&OFF_RTT_MIN) + 4);
    // As tcp_get_info (net/ipv4/tcp.c) computes it.
    seen.rtt_variation_us = sk.read::<u32>(&OFF_MDEV_US) >> 2;
    if let Some(operations) = sk.follow(&OFF_ICSK_CA_OPS) {
        seen.congestion = bytes(operations.read_16_bytes(&OFF_CA_OPS_NAME));
    }
    seen.options = socket_options::read(sk);
}

/// `SeenSocket::sending_jiffies`, as tcp_get_info_chrono_stats (net/ipv4/tcp.c) computes them.
#[inline(always)]
fn sending_jiffies(sk: impl KernelPtr) -> [u32; chrono::COUNT] {
    let at = offsets::value(&OFF_CHRONO_STAT);
    let mut jiffies = [sk.read_at(at), sk.read_at(at + 4), sk.read_at(at + 8)];
    let present = (clock::now_jiffies() as u32).wrapping_sub(sk.read(&OFF_CHRONO_START));
    // Its lower two bits; 0 while there is nothing to send.
    let kind = sk.read::<u8>(&OFF_CHRONO_TYPE) & 3;
    for (index, jiffies) in jiffies.iter_mut().enumerate() {
        // Without a branch, as above.
        *jiffies += present * u32::from(usize::from(kind) == index + 1);
    }
    jiffies
}

/// `SeenSocket::delivery_rate`, as tcp_compute_delivery_rate (net/ipv4/tcp.c) computes it.
#[inline(always)]
fn delivery_rate(sk: impl KernelPtr) -> u64 {
    let packets = u64::from(sk.read::<u32>(&OFF_RATE_DELIVERED));
    let bytes = packets * u64::from(sk.read::<u32>(&OFF_MSS_CACHE));
    let micros = u64::from(sk.read::<u32>(&OFF_RATE_INTERVAL_US));
    if micros == 0 { 0 } else { bytes * 1_000_000 / micros }
}

/// Fills in what is counted of a listener. To be called last: it branches.
#[inline(always)]
pub fn fill_listener(seen: &mut SeenSocket) {
    if seen.state == LISTEN {
        seen.overflows = overflows::of(seen.cookie);
    }
}

/// Fills in how far the handshake of a request is, and what its listener has room for.
#[inline(always)]
pub fn fill_request(seen: &mut SeenSocket, request: BtfPtr) {
    let acked = offsets::value(&OFF_REQUEST_ACKED_BIT);
    let acked = request.read_at::<u8>(acked / 8) >> (acked % 8) & 1;
    seen.handshake = u32::from(acked) * HANDSHAKE_ACKNOWLEDGED;
    // `skc_listener`, in a union with the flags (struct sock_common, include/net/sock.h). The request holds it.
    if let Some(listener) = ProbedPtr::new(request.read::<u64>(&OFF_SKC_FLAGS) as *const u8) {
        seen.handshake |= deferred(listener);
        seen.queue = listener.read(&OFF_SK_ACK_BACKLOG);
        seen.queue_limit = listener.read(&OFF_SK_MAX_ACK_BACKLOG);
    }
}

/// `HANDSHAKE_DEFERRED` of a listener with TCP_DEFER_ACCEPT.
#[inline(always)]
fn deferred(sk: impl KernelPtr) -> u32 {
    u32::from(sk.read::<u8>(&OFF_DEFER_ACCEPT) != 0) * HANDSHAKE_DEFERRED
}

/// Fills in what full sockets, minisocks and requests have in common (`struct sock_common`), and the time.
#[inline(always)]
pub fn fill_any_socket(seen: &mut SeenSocket, skc: impl KernelPtr) {
    let (saddr, daddr) = endpoints::addresses(skc);
    seen.netns = netns::inode(skc);
    seen.interface = endpoints::interface(skc);
    seen.time_ns = clock::now_ns();
    seen.jiffies = clock::now_jiffies();
    seen.saddr = bytes(saddr);
    seen.daddr = bytes(daddr);
}

/// A record of zeros, in the place where it stays: a program's stack has no room for two. Word by word and volatile,
/// because for a value that is mostly 0 the compiler calls a function that writes byte by byte.
#[inline(always)]
pub fn zeroed(room: &mut MaybeUninit<SeenSocket>) -> &mut SeenSocket {
    for word in 0..size_of::<SeenSocket>() / size_of::<u64>() {
        // SAFETY: within the record, which is as aligned as a word.
        unsafe { room.as_mut_ptr().cast::<u64>().add(word).write_volatile(0) };
    }
    // SAFETY: numbers and arrays of them, for which 0 is a value.
    unsafe { room.assume_init_mut() }
}
