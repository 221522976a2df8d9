//! The kernel's own counters of live connections, read on request (sock_diag(7), `struct tcp_info` of
//! include/uapi/linux/tcp.h). Nothing is read or kept of connections that are not asked for.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::AddAssign,
    time::Duration,
};

use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{
        ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, Timer,
        nlas::{Nla, TcpInfo},
    },
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::{
    events::decode::Endpoint,
    kernel::{netlink, netns},
    tcp::{
        answer_time::{AnswerTime, Exchange},
        state::TcpState,
    },
};

/// The connection that is asked about.
#[derive(Clone, Debug)]
pub struct Target {
    pub netns: u32,
    pub local: Endpoint,
    pub remote: Endpoint,
    /// `None` where sockets are identified by address: then any connection with these ends is reported.
    pub cookie: Option<u64>,
    /// Its identity in the records (`SocketEvent::cookie`).
    pub identity: u64,
    /// A process that may be in its namespace.
    pub pid: Option<u32>,
}

/// How a connection's data goes, by the kernel's own counters since it began. Sources are members of `struct tcp_info`
/// where nothing else is said.
#[derive(Clone, Debug, Serialize)]
pub struct Transfer {
    pub sending: Sending,
    pub receiving: Receiving,
    /// `null` before the first measurement.
    pub rtt: Option<Rtt>,
    pub congestion: Congestion,
    /// The timer that runs, if one does.
    pub timer: Option<RunningTimer>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Sending {
    /// Data, what was repeated included (`bytes_sent`).
    pub bytes: u64,
    /// Of it, acknowledged; SYN and FIN count one each (`bytes_acked`).
    pub acknowledged_bytes: u64,
    /// Written by the application and not yet sent (`notsent_bytes`).
    pub unsent_bytes: u32,
    /// Written and not yet acknowledged, unsent ones included (`idiag_wqueue`).
    pub queue_bytes: u32,
    /// Its limit (`sk_sndbuf`).
    pub buffer_bytes: Option<u32>,
    /// Segments on their way (`unacked`).
    pub unacknowledged_segments: u32,
    /// What the peer has room for (`snd_wnd`).
    pub peer_window_bytes: u32,
    /// Largest segment (`snd_mss`).
    pub mss_bytes: u32,
    /// Since data was last sent, to a jiffy (`last_data_sent`); `null` when none was.
    pub last_seconds: Option<f64>,
    /// Bytes a second, as last measured (`delivery_rate`); `null` before the first measurement.
    pub delivery_rate: Option<u64>,
    /// The application, not the network, decided that rate (`delivery_rate_app_limited`).
    pub delivery_rate_application_limited: bool,
    /// While there was something to send (`busy_time`).
    pub busy_seconds: f64,
    /// Of that, while the peer had no room (`rwnd_limited`).
    pub peer_window_limited_seconds: f64,
    /// Of that, while this side's buffer was too small (`sndbuf_limited`).
    pub buffer_limited_seconds: f64,
    /// Probes of a closed window that the peer has not answered (`probes`).
    pub window_probes: u8,
}

#[derive(Clone, Debug, Serialize)]
pub struct Receiving {
    /// Data, each byte once (`bytes_received`).
    pub bytes: u64,
    /// Received and not read by the application (`idiag_rqueue`).
    pub queue_bytes: u32,
    /// Its limit (`sk_rcvbuf`).
    pub buffer_bytes: Option<u32>,
    /// Packets that came before what should have come first (`rcv_ooopack`).
    pub out_of_order_packets: u32,
    /// Since data was last received, to a jiffy (`last_data_recv`); `null` when none was.
    pub last_seconds: Option<f64>,
    /// Since anything was last acknowledged by the peer, to a jiffy (`last_ack_recv`).
    pub last_acknowledgement_seconds: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Rtt {
    /// Smoothed (`rtt`).
    pub seconds: f64,
    /// How much it varies (`rttvar`).
    pub variation_seconds: f64,
    /// The least of the last minutes (`min_rtt`).
    pub min_seconds: Option<f64>,
    /// Without an acknowledgement for so long a segment is sent again (`rto`).
    pub retransmission_timeout_seconds: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Congestion {
    /// Its algorithm (`INET_DIAG_CONG`).
    pub algorithm: Option<String>,
    /// `open`, `disorder`, `cwr`, `recovery` or `loss` (`ca_state`).
    pub state: &'static str,
    /// Segments that may be on their way at once (`snd_cwnd`).
    pub window_segments: u32,
    /// Above it the window grows slowly; `null` while nothing was lost (`snd_ssthresh`).
    pub slow_start_threshold_segments: Option<u32>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct RunningTimer {
    /// `retransmit` (also of a loss probe), `keepalive`, `window_probe` or `time_wait`.
    pub kind: &'static str,
    /// Until it fires; `null` where the kernel does not report it.
    pub seconds: Option<f64>,
}

/// Reads a connection's counters, from inside its namespace. `None` when the connection is gone.
///
/// # Errors
/// Why the kernel cannot be asked; a message for the user.
pub fn ask(target: &Target) -> Result<Option<Transfer>, String> {
    match netlink::exchange(NETLINK_SOCK_DIAG, SockDiagMessage::InetRequest(request(target))) {
        Ok(Some(SockDiagMessage::InetResponse(response))) => Ok(transfer(&response)),
        Ok(_) => Ok(None),
        Err(error) => Err(format!("cannot ask the kernel (sock_diag): {error}")),
    }
}

/// What sums are made of, of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub netns: u32,
    pub local: Endpoint,
    pub remote: Endpoint,
    pub cookie: u64,
    pub carried: Carried,
    /// As in [`Sending`] and [`Receiving`].
    pub send_queue_bytes: u32,
    pub delivery_rate: u64,
    pub busy_seconds: f64,
    pub peer_window_limited_seconds: f64,
    pub buffer_limited_seconds: f64,
    pub window_probes: u8,
    pub receive_queue_bytes: u32,
    pub out_of_order_packets: u32,
    pub rtt_seconds: Option<f64>,
    pub answer: Option<AnswerTime>,
}

/// Since the connection began.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Carried {
    /// As in [`Sending`] and [`Receiving`].
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// `bytes_retrans`.
    pub retransmitted_bytes: u64,
}

impl AddAssign for Carried {
    fn add_assign(&mut self, other: Self) {
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.retransmitted_bytes += other.retransmitted_bytes;
    }
}

impl Carried {
    /// The increase since `earlier`. A socket that was disconnected and connects again counts anew, under its cookie.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        if self.sent_bytes < earlier.sent_bytes || self.received_bytes < earlier.received_bytes {
            return self;
        }
        Self {
            sent_bytes: self.sent_bytes - earlier.sent_bytes,
            received_bytes: self.received_bytes - earlier.received_bytes,
            retransmitted_bytes: self.retransmitted_bytes.saturating_sub(earlier.retransmitted_bytes),
        }
    }
}

/// Connections of one message.
const PART: usize = 4096;

/// Sends the counters of all connections in these namespaces, part by part, and the reason where some cannot be read.
/// `namespaces`: inodes, with a process that may be in each.
pub fn ask_all(namespaces: BTreeMap<u32, Option<u32>>) -> mpsc::Receiver<Result<Vec<Figures>, String>> {
    let (parts, received) = mpsc::channel(1);
    tokio::spawn(async move {
        let errors = parts.clone();
        let asked = netns::on_own_thread(move || {
            for (netns, pid) in namespaces {
                if let Err(error) = ask_namespace(netns, pid, &parts) {
                    // The requester may be gone.
                    let _ = parts.blocking_send(Err(error));
                }
            }
        });
        if let Err(error) = asked.await {
            let _ = errors.send(Err(error)).await;
        }
    });
    received
}

fn ask_namespace(
    netns: u32,
    pid: Option<u32>,
    parts: &mpsc::Sender<Result<Vec<Figures>, String>>,
) -> Result<(), String> {
    if !netns::enter_by_inode(netns, pid)? {
        return Ok(());
    }
    for family in [AF_INET, AF_INET6] {
        let mut part = Vec::new();
        netlink::dump(NETLINK_SOCK_DIAG, SockDiagMessage::InetRequest(request_for_all(family)), |answer| {
            if let SockDiagMessage::InetResponse(response) = answer {
                part.extend(figures(netns, &response));
            }
            part.len() < PART || parts.blocking_send(Ok(std::mem::take(&mut part))).is_ok()
        })
        .map_err(|error| {
            format!("cannot ask the kernel (sock_diag) in network namespace {netns}: {error}")
        })?;
        let _ = parts.blocking_send(Ok(part));
    }
    Ok(())
}

fn request_for_all(family: u8) -> InetRequest {
    let any =
        if family == AF_INET { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::all() - StateFlags::LISTEN - StateFlags::TIME_WAIT,
        socket_id: SocketId {
            source_port: 0,
            destination_port: 0,
            source_address: any,
            destination_address: any,
            interface_id: 0,
            cookie: NO_COOKIE,
        },
    }
}

/// `None` without `tcp_info`: a minisock has none.
fn figures(netns: u32, response: &InetResponse) -> Option<Figures> {
    let info = info(response)?;
    let (header, socket) = (&response.header, &response.header.socket_id);
    Some(Figures {
        netns,
        local: Endpoint::new(socket.source_address, socket.source_port),
        remote: Endpoint::new(socket.destination_address, socket.destination_port),
        cookie: u64::from_ne_bytes(socket.cookie),
        carried: Carried {
            sent_bytes: info.bytes_sent,
            received_bytes: info.bytes_received,
            retransmitted_bytes: info.bytes_retrans,
        },
        send_queue_bytes: header.send_queue,
        delivery_rate: info.delivery_rate,
        busy_seconds: micros(info.busy_time),
        peer_window_limited_seconds: micros(info.rwnd_limited),
        buffer_limited_seconds: micros(info.sndbuf_limited),
        window_probes: info.probes,
        receive_queue_bytes: header.recv_queue,
        out_of_order_packets: info.rcv_ooopack,
        rtt_seconds: (info.rtt > 0).then(|| micros(info.rtt.into())),
        answer: exchange(info).answer(),
    })
}

fn exchange(info: &TcpInfo) -> Exchange {
    Exchange {
        established: info.state == TcpState::Established as u8,
        sent_bytes: info.bytes_sent,
        received_bytes: info.bytes_received,
        unacknowledged: info.unacked,
        sent_ms: info.last_data_sent,
        received_ms: info.last_data_recv,
        acknowledged_ms: info.last_ack_recv,
    }
}

/// INET_DIAG_NOCOOKIE (include/uapi/linux/inet_diag.h).
const NO_COOKIE: [u8; 8] = [0xff; 8];

fn request(target: &Target) -> InetRequest {
    let (source_address, destination_address) =
        (target.local.addr.to_canonical(), target.remote.addr.to_canonical());
    InetRequest {
        family: if source_address.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO | ExtensionFlags::CONG | ExtensionFlags::SKMEMINFO,
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: target.local.port,
            destination_port: target.remote.port,
            source_address,
            destination_address,
            interface_id: 0,
            cookie: target.cookie.map_or(NO_COOKIE, u64::to_ne_bytes),
        },
    }
}

/// include/net/tcp.h, enum tcp_ca_state.
const CONGESTION_STATES: [&str; 5] = ["open", "disorder", "cwr", "recovery", "loss"];
/// include/net/tcp.h, TCP_INFINITE_SSTHRESH.
const INFINITE_THRESHOLD: u32 = 0x7fff_ffff;

/// `None` without `tcp_info`: only a minisock is left.
fn transfer(response: &InetResponse) -> Option<Transfer> {
    let info = info(response)?;
    let algorithm = response.nlas.iter().find_map(|nla| match nla {
        Nla::Congestion(name) => Some(name.clone()),
        _ => None,
    });
    let memory = response.nlas.iter().find_map(|nla| match nla {
        Nla::MemInfo(memory) => Some(memory),
        _ => None,
    });
    let header = &response.header;
    Some(Transfer {
        sending: Sending {
            bytes: info.bytes_sent,
            acknowledged_bytes: info.bytes_acked,
            unsent_bytes: info.notsent_bytes,
            queue_bytes: header.send_queue,
            buffer_bytes: memory.map(|memory| memory.send_queue_max),
            unacknowledged_segments: info.unacked,
            peer_window_bytes: info.snd_wnd,
            mss_bytes: info.snd_mss,
            last_seconds: (info.bytes_sent > 0).then(|| millis(info.last_data_sent)),
            delivery_rate: (info.delivery_rate > 0).then_some(info.delivery_rate),
            delivery_rate_application_limited: info.delivery_rate_app_limited != 0,
            busy_seconds: micros(info.busy_time),
            peer_window_limited_seconds: micros(info.rwnd_limited),
            buffer_limited_seconds: micros(info.sndbuf_limited),
            window_probes: info.probes,
        },
        receiving: Receiving {
            bytes: info.bytes_received,
            queue_bytes: header.recv_queue,
            buffer_bytes: memory.map(|memory| memory.receive_queue_max),
            out_of_order_packets: info.rcv_ooopack,
            last_seconds: (info.bytes_received > 0).then(|| millis(info.last_data_recv)),
            last_acknowledgement_seconds: millis(info.last_ack_recv),
        },
        rtt: rtt(info),
        congestion: Congestion {
            algorithm,
            state: CONGESTION_STATES.get(usize::from(info.ca_state)).copied().unwrap_or("unknown"),
            window_segments: info.snd_cwnd,
            slow_start_threshold_segments: (info.snd_ssthresh < INFINITE_THRESHOLD)
                .then_some(info.snd_ssthresh),
        },
        timer: header.timer.as_ref().map(running),
    })
}

fn info(response: &InetResponse) -> Option<&TcpInfo> {
    response.nlas.iter().find_map(|nla| match nla {
        Nla::TcpInfo(info) => Some(info),
        _ => None,
    })
}

fn rtt(info: &TcpInfo) -> Option<Rtt> {
    (info.rtt > 0).then(|| Rtt {
        seconds: micros(info.rtt.into()),
        variation_seconds: micros(info.rttvar.into()),
        min_seconds: (info.min_rtt != u32::MAX).then(|| micros(info.min_rtt.into())),
        retransmission_timeout_seconds: micros(info.rto.into()),
    })
}

fn running(timer: &Timer) -> RunningTimer {
    let (kind, left) = match timer {
        Timer::Retransmit(left, _) => ("retransmit", Some(left)),
        Timer::KeepAlive(left) => ("keepalive", Some(left)),
        Timer::Probe(left) => ("window_probe", Some(left)),
        Timer::TimeWait => ("time_wait", None),
    };
    RunningTimer { kind, seconds: left.map(Duration::as_secs_f64) }
}

fn micros(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

fn millis(millis: u32) -> f64 {
    Duration::from_millis(millis.into()).as_secs_f64()
}
