//! Sightings: sockets as a sweep found them, decoded from what the iterators write.

use tcpwatch_common::{
    HANDSHAKE_ACKNOWLEDGED, HANDSHAKE_DEFERRED, LIST_QUEUED, LIST_SUBFLOWS, SeenSocket, SocketList,
    SocketOptions, chrono,
};

use crate::{
    events::decode::{Comm, DecodeError, Socket, TaskRecord, Traffic, endpoint, read, state},
    tcp::state::TcpState,
};

/// A socket that an iterator found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub socket: Socket,
    pub state: TcpState,
    /// CLOCK_MONOTONIC: everything that records report of the socket up to then is part of this sighting.
    pub time_ns: u64,
    /// The kernel's tick count at the sighting.
    pub jiffies: u64,
    /// The process and descriptor through which it was found.
    pub holder: Option<(TaskRecord, u32)>,
    pub unread_bytes: u32,
    pub total_retrans: u32,
    /// Of a listener; of a request that of its listener, without `drops` and `overflows`.
    pub queue: ListenQueue,
    /// Of a request: the client has acknowledged the SYN-ACK, and the listener made no connection of it.
    pub handshake_acknowledged: bool,
    /// Ticks, the lower 32 bits, of the last segment received, the last data sent and the last data received.
    pub received_jiffies: u32,
    pub sent_jiffies: u32,
    pub data_received_jiffies: u32,
    pub data_sent: bool,
    /// Segments sent and not acknowledged.
    pub unacknowledged: u32,
    /// Sequence numbers written and not sent: one a byte, and one for a FIN.
    pub unsent: u32,
    /// Smoothed round-trip time; `None` before the first measurement.
    pub rtt_ns: Option<u64>,
    /// Ticks in which data was unsent or unacknowledged, by `tcpwatch_common::chrono`. This field, the next one and all
    /// from `delivery_rate` on are 0 without a holder.
    pub sending_jiffies: [u32; chrono::COUNT],
    /// Segments received out of order.
    pub out_of_order: u32,
    /// Of a minisock: the tick at which its timer expires.
    pub expires_jiffies: u64,
    /// Of a full socket.
    pub traffic: Traffic,
    /// Bytes a second, 0 before the first measurement.
    pub delivery_rate: u64,
    /// Probes of a closed window that the peer has not answered.
    pub window_probes: u32,
    pub options: SocketOptions,
    /// Sizes in bytes of the send and the receive buffer (`sk_sndbuf`, `sk_rcvbuf`).
    pub send_buffer: u32,
    pub receive_buffer: u32,
    /// `None` before the first measurement.
    pub min_rtt_ns: Option<u64>,
    /// Mean deviation of the smoothed round-trip time.
    pub rtt_variation_ns: u64,
    /// The name of the congestion control, which the kernel keeps in the same form as a process's.
    pub congestion: Comm,
    /// Of a request: the cookie of the listener that it was made to; 0 for any other socket.
    pub listener: u64,
}

/// Sockets that belong to another one, which is sighted itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenList {
    pub of: ListOwner,
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Of the sockets; 0 where the kernel has given none yet.
    pub cookies: Vec<u64>,
}

/// What the sockets of a list belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListOwner {
    /// They are in the accept queue of the listener with this cookie. `truncated`: so are others, which no list has.
    Listener { cookie: u64, truncated: bool },
    /// They are subflows of a Multipath TCP socket, which this process holds.
    Holder(TaskRecord),
}

/// A listener's connections that wait to be accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenQueue {
    pub waiting: u32,
    pub limit: u32,
    /// Segments that it dropped, whatever for (`sk_drops`).
    pub drops: u32,
    /// What the signal `overflow` counted.
    pub overflows: u64,
    /// Whether it waits for data before it makes a connection of a request (TCP_DEFER_ACCEPT).
    pub deferred: bool,
}

/// Decodes one sighting.
///
/// # Errors
/// When the bytes are not a `SeenSocket`.
pub fn decode(bytes: &[u8]) -> Result<Seen, DecodeError> {
    let raw: SeenSocket = read(bytes)?;
    let task = TaskRecord {
        pid: raw.tgid,
        start_ns: raw.start_ns,
        comm: Comm::new(raw.comm),
        exec_id: raw.exec_id,
        stack: raw.stack,
    };
    Ok(Seen {
        socket: Socket::new(
            raw.cookie,
            raw.netns,
            endpoint(raw.saddr, raw.sport),
            endpoint(raw.daddr, raw.dport),
            raw.flags,
        )
        .on(raw.interface),
        state: state(raw.state)?,
        time_ns: raw.time_ns,
        jiffies: raw.jiffies,
        holder: (raw.tgid != 0).then_some((task, raw.fd)),
        unread_bytes: raw.unread_bytes,
        total_retrans: raw.total_retrans,
        queue: ListenQueue {
            waiting: raw.queue,
            limit: raw.queue_limit,
            drops: raw.drops,
            overflows: raw.overflows,
            deferred: raw.handshake & HANDSHAKE_DEFERRED != 0,
        },
        handshake_acknowledged: raw.handshake & HANDSHAKE_ACKNOWLEDGED != 0,
        received_jiffies: raw.received_jiffies,
        sent_jiffies: raw.sent_jiffies,
        data_received_jiffies: raw.data_received_jiffies,
        data_sent: raw.data_sent != 0,
        unacknowledged: raw.unacknowledged,
        unsent: raw.unsent,
        rtt_ns: (raw.srtt != 0).then(|| u64::from(raw.srtt) * 125),
        sending_jiffies: raw.sending_jiffies,
        out_of_order: raw.out_of_order,
        expires_jiffies: raw.expires_jiffies,
        traffic: Traffic { sent_bytes: raw.sent_bytes, received_bytes: raw.received_bytes },
        delivery_rate: raw.delivery_rate,
        window_probes: raw.window_probes,
        options: raw.options,
        send_buffer: raw.send_buffer,
        receive_buffer: raw.receive_buffer,
        min_rtt_ns: (raw.min_rtt_us != u32::MAX).then(|| u64::from(raw.min_rtt_us) * 1000),
        rtt_variation_ns: u64::from(raw.rtt_variation_us) * 1000,
        congestion: Comm::new(raw.congestion),
        listener: raw.listener,
    })
}

/// Whether the bytes are a list, not a sighting.
pub fn is_list(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0)
}

/// Decodes a list.
///
/// # Errors
/// When the bytes are not a `SocketList`.
pub fn decode_list(bytes: &[u8]) -> Result<SeenList, DecodeError> {
    let raw: SocketList = read(bytes)?;
    let of = match raw.kind {
        LIST_QUEUED => ListOwner::Listener { cookie: raw.listener, truncated: raw.truncated != 0 },
        LIST_SUBFLOWS => ListOwner::Holder(TaskRecord {
            pid: raw.tgid,
            start_ns: raw.start_ns,
            exec_id: raw.exec_id,
            stack: raw.stack,
            comm: Comm::new(raw.comm),
        }),
        kind => return Err(DecodeError::Kind(kind)),
    };
    let cookies = raw.cookies.iter().take(raw.count.into()).copied().collect();
    Ok(SeenList { of, time_ns: raw.time_ns, cookies })
}
