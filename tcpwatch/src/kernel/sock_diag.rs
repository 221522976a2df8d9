//! The kernel's own counters of live connections, read on request (sock_diag(7), `struct tcp_info` of
//! include/uapi/linux/tcp.h). Nothing is read or kept of connections that are not asked for.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::AddAssign,
    time::{Duration, Instant},
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
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::{
    events::{
        decode::Endpoint,
        frame::{Look, SenderLook},
    },
    kernel::{
        clock, netlink,
        netns::{self, Hints},
    },
    model::{groups::Role, table::Conn},
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
    /// Index of the interface that it is bound to, 0 for none.
    pub interface: u32,
    /// `None` where sockets are identified by address: then any connection with these ends is reported.
    pub cookie: Option<u64>,
    /// Its identity in the records (`SocketEvent::cookie`).
    pub identity: u64,
    /// The ways into its namespace.
    pub ways: Hints,
    /// Whether this side connected: then its SYN is among what `bytes_acked` counts.
    pub connected: bool,
}

impl Target {
    /// `cookie`: the kernel's, where it is known.
    pub fn of(conn: &Conn, ways: Hints, cookie: Option<u64>) -> Self {
        Self {
            netns: conn.netns,
            local: conn.local,
            remote: conn.remote,
            interface: conn.interface,
            cookie,
            identity: conn.cookie,
            ways,
            connected: conn.role == Role::Client,
        }
    }
}

/// How a connection's data goes, by the kernel's own counters since it began. Sources are members of `struct tcp_info`
/// (include/uapi/linux/tcp.h) where nothing else is said.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Transfer {
    /// What this side sends.
    pub sending: Sending,
    /// What it receives.
    pub receiving: Receiving,
    /// Round-trip time; `null` before the first measurement.
    pub rtt: Option<Rtt>,
    /// Congestion control.
    pub congestion: Congestion,
    /// The timer that runs; `null` when none does.
    pub timer: Option<RunningTimer>,
}

/// What this side of a connection sends.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Sending {
    /// Bytes of data sent, each once (`bytes_sent` without `bytes_retrans`).
    pub sent_bytes: u64,
    /// Bytes of data that were sent again (`bytes_retrans`).
    pub retransmitted_bytes: u64,
    /// Bytes of `sent_bytes` that the peer has acknowledged (`bytes_acked` without SYN and FIN).
    pub acknowledged_bytes: u64,
    /// Bytes written by the application and not yet sent (`notsent_bytes` without the FIN).
    pub unsent_bytes: u32,
    /// Bytes written and not yet acknowledged, unsent ones included (`idiag_wqueue`, the Send-Q of `ss`).
    pub queue_bytes: u32,
    /// Limit of the send buffer in bytes, against which the kernel counts its own overhead too (`sk_sndbuf`); `null` where
    /// the kernel does not report it.
    pub buffer_bytes: Option<u32>,
    /// Segments on their way (`unacked`).
    pub unacknowledged_segments: u32,
    /// Bytes that the peer has room for (`snd_wnd`).
    pub peer_window_bytes: u32,
    /// Largest segment in bytes (`snd_mss`).
    pub mss_bytes: u32,
    /// Seconds since data was last sent, to a tick of the kernel, 1 to 10 ms (`last_data_sent`); `null` when none was.
    pub since_last_sent_seconds: Option<f64>,
    /// Bytes a second that reached the peer, as last measured (`delivery_rate`); `null` before the first measurement.
    pub delivery_bytes_per_second: Option<u64>,
    /// Whether the application, not the network, decided that rate (`delivery_rate_app_limited`).
    pub delivery_is_application_limited: bool,
    /// Seconds in which there was something to send or unacknowledged (`busy_time`).
    pub busy_seconds: f64,
    /// Seconds of `busy_seconds` in which the peer had no room (`rwnd_limited`).
    pub peer_window_limited_seconds: f64,
    /// Seconds of `busy_seconds` in which this side's send buffer was too small (`sndbuf_limited`).
    pub buffer_limited_seconds: f64,
    /// Probes of a closed window that the peer has not answered (`probes`; with nothing to send these are keep-alive
    /// probes, which do not count here).
    pub window_probes: u8,
}

/// What this side of a connection receives.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Receiving {
    /// Bytes of data received, each once (`bytes_received` without the FIN).
    pub received_bytes: u64,
    /// Bytes received and not read by the application (`idiag_rqueue`, the Recv-Q of `ss`).
    pub queue_bytes: u32,
    /// Limit of the receive buffer in bytes (`sk_rcvbuf`); `null` where the kernel does not report it.
    pub buffer_bytes: Option<u32>,
    /// Packets that came before an earlier part of the data (`rcv_ooopack`).
    pub out_of_order_packets: u32,
    /// Seconds since data was last received, to a tick of the kernel (`last_data_recv`); `null` when none was.
    pub since_last_received_seconds: Option<f64>,
    /// Seconds since the peer last acknowledged anything, to a tick of the kernel (`last_ack_recv`).
    pub since_last_acknowledgement_seconds: f64,
}

/// Round-trip times of a connection.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Rtt {
    /// Smoothed round-trip time in seconds (`rtt`).
    pub smoothed_seconds: f64,
    /// Its mean deviation in seconds (`rttvar`).
    pub variation_seconds: f64,
    /// The least one of the last minutes, in seconds (`min_rtt`); `null` before it is known.
    pub min_seconds: Option<f64>,
    /// Seconds without an acknowledgement after which a segment is sent again (`rto`).
    pub retransmission_timeout_seconds: f64,
}

/// Congestion control of a connection.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Congestion {
    /// Its algorithm (`INET_DIAG_CONG`); `null` where the kernel does not report it.
    pub algorithm: Option<String>,
    /// `open`, `disorder`, `cwr`, `recovery` or `loss` (`ca_state`).
    pub state: &'static str,
    /// Segments that may be on their way at once (`snd_cwnd`).
    pub window_segments: u32,
    /// Segments above which the window grows slowly (`snd_ssthresh`); `null` while nothing was lost.
    pub slow_start_threshold_segments: Option<u32>,
}

/// The timer of a connection that runs.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct RunningTimer {
    /// `retransmit` (also of a loss probe), `keepalive`, `window_probe` or `time_wait`.
    pub kind: &'static str,
    /// Seconds until it fires; `null` where the kernel does not report it.
    pub remaining_seconds: Option<f64>,
}

/// Reads a connection's counters, from inside its namespace. `None` when the connection is gone.
///
/// # Errors
/// Why the kernel cannot be asked; a message for the user.
pub fn ask(target: &Target) -> Result<Option<Transfer>, String> {
    match netlink::exchange(NETLINK_SOCK_DIAG, SockDiagMessage::InetRequest(request(target))) {
        Ok(Some(SockDiagMessage::InetResponse(response))) => Ok(transfer(&response, target.connected)),
        Ok(_) => Ok(None),
        Err(error) => Err(format!("cannot ask the kernel (sock_diag): {error}")),
    }
}

/// Looks at how these connections send. Of one that cannot be asked nothing is said.
pub async fn look(targets: Vec<Target>) -> Vec<Look> {
    let looked =
        netns::on_own_thread(move || targets.iter().filter_map(|target| look_at(target).ok()).collect());
    looked.await.unwrap_or_default()
}

fn look_at(target: &Target) -> Result<Look, String> {
    let found = netns::enter_by_inode(target.netns, &target.ways)?;
    let asked = if found {
        netlink::exchange(NETLINK_SOCK_DIAG, SockDiagMessage::InetRequest(request(target)))
            .map_err(|error| error.to_string())?
    } else {
        None
    };
    let time_ns = clock::read().now_ns;
    let sender = match &asked {
        Some(SockDiagMessage::InetResponse(response)) => info(response).map(|info| sender(info, time_ns)),
        _ => None,
    };
    Ok(Look { cookie: target.identity, sender })
}

fn sender(info: &TcpInfo, time_ns: u64) -> SenderLook {
    SenderLook {
        time_ns,
        busy_us: info.busy_time,
        data_segments: info.data_segs_out,
        retransmitted: info.total_retrans,
        unsent_bytes: unsent_bytes(info),
        unacknowledged_segments: info.unacked,
        mss_bytes: info.snd_mss,
        peer_window_bytes: info.snd_wnd,
        min_rtt_us: (info.min_rtt != u32::MAX).then_some(info.min_rtt),
    }
}

/// What sums are made of, of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub netns: u32,
    pub local: Endpoint,
    pub remote: Endpoint,
    /// Index of the interface that it is bound to, 0 for none.
    pub interface: u32,
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
    pub least_rtt_seconds: Option<f64>,
    /// Mean deviation of the smoothed round trip.
    pub rtt_variation_seconds: f64,
    pub answer: Option<AnswerTime>,
    /// Segments with data sent, retransmitted ones included (`data_segs_out`).
    pub sent_segments: u32,
    /// Segments with data received (`data_segs_in`).
    pub received_segments: u32,
    /// Segments sent again, SYNs included (`total_retrans`).
    pub retransmitted_segments: u32,
    /// Segments that the peer reported to have received twice (`dsack_dups`).
    pub spurious_segments: u32,
}

/// Data that a connection carried since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Carried {
    /// Bytes of data sent, each once.
    pub sent_bytes: u64,
    /// Bytes of data received, each once.
    pub received_bytes: u64,
    /// Bytes of data that were sent again.
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
    /// Every transmission counts in `bytes_sent`, so it is taken off what was retransmitted. In `bytes_received` the
    /// peer's FIN counts as one byte (tcp_rcv_nxt_update in net/ipv4/tcp_input.c): it came where the socket left
    /// ESTABLISHED by it (tcp_fin). The kernel reads the state just before it locks the socket to read the rest
    /// (tcp_get_info), so an answer during which the FIN comes counts it still.
    fn of(info: &TcpInfo) -> Self {
        let fin = TcpState::from_kernel(info.state).is_some_and(has_received_fin);
        Self {
            sent_bytes: info.bytes_sent.saturating_sub(info.bytes_retrans),
            received_bytes: info.bytes_received.saturating_sub(fin.into()),
            retransmitted_bytes: info.bytes_retrans,
        }
    }

    /// All transmissions.
    fn transmitted_bytes(self) -> u64 {
        self.sent_bytes + self.retransmitted_bytes
    }

    /// The increase since `earlier`. A socket that was disconnected and connects again counts anew, under its cookie.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        // Sent bytes fall where the kernel had no memory to retransmit, received ones where the FIN counted before.
        let anew = self.transmitted_bytes() < earlier.transmitted_bytes()
            || self.received_bytes + 1 < earlier.received_bytes;
        if anew {
            return self;
        }
        Self {
            sent_bytes: self.sent_bytes.saturating_sub(earlier.sent_bytes),
            received_bytes: self.received_bytes.saturating_sub(earlier.received_bytes),
            retransmitted_bytes: self.retransmitted_bytes.saturating_sub(earlier.retransmitted_bytes),
        }
    }
}

/// Whether the peer's FIN has been received, of a full socket in this state.
fn has_received_fin(state: TcpState) -> bool {
    matches!(state, TcpState::CloseWait | TcpState::LastAck | TcpState::Closing)
}

/// Bytes of data that the peer has acknowledged: `bytes_acked` counts every sequence number, so the SYN of the side that
/// connected (a passive socket begins behind its own, tcp_create_openreq_child in net/ipv4/tcp_minisocks.c) and the FIN,
/// whose acknowledgement leads to FIN_WAIT2 in a full socket.
fn acknowledged_bytes(info: &TcpInfo, connected: bool) -> u64 {
    let fin = TcpState::from_kernel(info.state) == Some(TcpState::FinWait2);
    info.bytes_acked.saturating_sub(u64::from(connected) + u64::from(fin))
}

/// The kernel counts the probes of a closed window and those of keep-alive in one place, and sends the latter only while
/// there is nothing to send (tcp_probe_timer and tcp_keepalive_timer in net/ipv4/tcp_timer.c).
fn window_probes(info: &TcpInfo) -> u8 {
    if info.notsent_bytes > 0 { info.probes } else { 0 }
}

/// Without the FIN, which is a sequence number and the last to be sent.
fn unsent_bytes(info: &TcpInfo) -> u32 {
    let closed = matches!(
        TcpState::from_kernel(info.state),
        Some(TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck)
    );
    info.notsent_bytes.saturating_sub(closed.into())
}

/// Connections of one message.
const PART: usize = 4096;

/// Sends the counters of all connections in these namespaces, part by part, and the reason where some cannot be read.
/// `namespaces`: inodes, and the ways into each.
pub fn ask_all(namespaces: BTreeMap<u32, Hints>) -> mpsc::Receiver<Result<Vec<Figures>, String>> {
    let (parts, received) = mpsc::channel(1);
    tokio::spawn(async move {
        let errors = parts.clone();
        // Parts are waited for one by one.
        let asked = netns::on_own_thread_without_limit(move || {
            for (netns, ways) in namespaces {
                if let Err(error) = ask_namespace(netns, &ways, &parts) {
                    // The requester may be gone.
                    let _ = parts.blocking_send(Err(error));
                }
                if parts.is_closed() {
                    break;
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
    ways: &Hints,
    parts: &mpsc::Sender<Result<Vec<Figures>, String>>,
) -> Result<(), String> {
    // A namespace that is gone has taken its connections along; one that cannot be found is named by the sweeps.
    if !netns::enter_by_inode(netns, ways)? {
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

/// A client's connection that waits for an answer.
#[derive(Clone, Debug)]
pub struct Asking {
    pub target: Target,
    /// When data was last sent.
    pub sent: Instant,
    /// Segments with data received.
    pub received_segments: u32,
}

/// Pauses between looks at connections that wait for an answer, in milliseconds: first for quick answers.
const WATCH_PAUSES_MS: [u64; 20] = [1, 1, 1, 2, 2, 3, 5, 5, 10, 10, 10, 10, 10, 10, 10, 10, 15, 15, 15, 15];

/// How long the answers to connections in one namespace take that come within some 160 ms, exact to a tick. A client that asks
/// again at once is nearly always found waiting, and its latest answer's time is overwritten by the next question's. `None`
/// for what is not answered by then, or was answered more often than it was looked at.
pub async fn watch_answers(mut asking: Vec<Asking>) -> Vec<Option<Duration>> {
    let watched = netns::on_own_thread(move || {
        let mut answers = vec![None; asking.len()];
        let entered = asking.first().map(|one| netns::enter_by_inode(one.target.netns, &one.target.ways));
        if !matches!(entered, Some(Ok(true))) {
            return answers;
        }
        for pause in WATCH_PAUSES_MS {
            std::thread::sleep(Duration::from_millis(pause));
            for (one, answer) in asking.iter_mut().zip(&mut answers).filter(|(_, answer)| answer.is_none()) {
                *answer = one.look();
            }
            if answers.iter().all(Option::is_some) {
                break;
            }
        }
        answers
    });
    watched.await.unwrap_or_default()
}

impl Asking {
    fn look(&mut self) -> Option<Duration> {
        let asked = netlink::exchange(NETLINK_SOCK_DIAG, SockDiagMessage::InetRequest(request(&self.target)));
        let Ok(Some(SockDiagMessage::InetResponse(response))) = asked else { return None };
        let (info, now) = (info(&response)?, Instant::now());
        let ago = |millis: u32| now.checked_sub(Duration::from_millis(millis.into()));
        let (sent, received) = (ago(info.last_data_sent)?, ago(info.last_data_recv)?);
        match info.data_segs_in.wrapping_sub(self.received_segments) {
            0 => None,
            1 => Some(received.saturating_duration_since(self.sent)),
            // Answered more than once, or in several segments, of which more may come.
            _ => {
                (self.sent, self.received_segments) = (sent, info.data_segs_in);
                None
            }
        }
    }
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

/// What an answer says of its connection. `None` without `tcp_info`: a minisock has none.
pub fn figures(netns: u32, response: &InetResponse) -> Option<Figures> {
    let info = info(response)?;
    let (header, socket) = (&response.header, &response.header.socket_id);
    Some(Figures {
        netns,
        local: Endpoint::new(socket.source_address, socket.source_port),
        remote: Endpoint::new(socket.destination_address, socket.destination_port),
        interface: socket.interface_id,
        cookie: u64::from_ne_bytes(socket.cookie),
        carried: Carried::of(info),
        send_queue_bytes: if has_sent_nothing(info) { 0 } else { header.send_queue },
        delivery_rate: info.delivery_rate,
        busy_seconds: micros(info.busy_time),
        peer_window_limited_seconds: micros(info.rwnd_limited),
        buffer_limited_seconds: micros(info.sndbuf_limited),
        window_probes: window_probes(info),
        receive_queue_bytes: header.recv_queue,
        out_of_order_packets: info.rcv_ooopack,
        rtt_seconds: (info.rtt > 0).then(|| micros(info.rtt.into())),
        least_rtt_seconds: least_rtt(info),
        rtt_variation_seconds: micros(info.rttvar.into()),
        answer: exchange(info).answer(),
        sent_segments: info.data_segs_out,
        received_segments: info.data_segs_in,
        retransmitted_segments: info.total_retrans,
        spurious_segments: info.dsack_dups,
    })
}

/// Whether the socket connects with its first data (TCP_FASTOPEN_CONNECT), which has not come: the kernel has chosen its
/// first sequence number then, and not yet those from which it counts what is queued (tcp_connect_init in
/// net/ipv4/tcp_output.c).
fn has_sent_nothing(info: &TcpInfo) -> bool {
    info.state == TcpState::SynSent as u8 && info.segs_out == 0
}

fn exchange(info: &TcpInfo) -> Exchange {
    let Carried { sent_bytes, received_bytes, .. } = Carried::of(info);
    Exchange {
        established: info.state == TcpState::Established as u8,
        has_sent: sent_bytes > 0,
        has_received: received_bytes > 0,
        unacknowledged: info.unacked,
        sent: Duration::from_millis(info.last_data_sent.into()),
        received: Duration::from_millis(info.last_data_recv.into()),
        acknowledged: Duration::from_millis(info.last_ack_recv.into()),
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
            // Else the kernel finds no socket that is bound to one.
            interface_id: target.interface,
            cookie: target.cookie.map_or(NO_COOKIE, u64::to_ne_bytes),
        },
    }
}

/// include/net/tcp.h, enum tcp_ca_state.
const CONGESTION_STATES: [&str; 5] = ["open", "disorder", "cwr", "recovery", "loss"];
/// include/net/tcp.h, TCP_INFINITE_SSTHRESH.
const INFINITE_THRESHOLD: u32 = 0x7fff_ffff;

/// The same in full. `connected`: whether this side connected.
pub fn transfer(response: &InetResponse, connected: bool) -> Option<Transfer> {
    let info = info(response)?;
    let Carried { sent_bytes, received_bytes, retransmitted_bytes } = Carried::of(info);
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
            sent_bytes,
            retransmitted_bytes,
            acknowledged_bytes: acknowledged_bytes(info, connected).min(sent_bytes),
            unsent_bytes: if has_sent_nothing(info) { 0 } else { unsent_bytes(info) },
            queue_bytes: if has_sent_nothing(info) { 0 } else { header.send_queue },
            buffer_bytes: memory.map(|memory| memory.send_queue_max),
            unacknowledged_segments: info.unacked,
            peer_window_bytes: info.snd_wnd,
            mss_bytes: info.snd_mss,
            since_last_sent_seconds: (sent_bytes > 0).then(|| millis(info.last_data_sent)),
            delivery_bytes_per_second: (info.delivery_rate > 0).then_some(info.delivery_rate),
            delivery_is_application_limited: info.delivery_rate_app_limited != 0,
            busy_seconds: micros(info.busy_time),
            peer_window_limited_seconds: micros(info.rwnd_limited),
            buffer_limited_seconds: micros(info.sndbuf_limited),
            window_probes: window_probes(info),
        },
        receiving: Receiving {
            received_bytes,
            queue_bytes: header.recv_queue,
            buffer_bytes: memory.map(|memory| memory.receive_queue_max),
            out_of_order_packets: info.rcv_ooopack,
            since_last_received_seconds: (received_bytes > 0).then(|| millis(info.last_data_recv)),
            since_last_acknowledgement_seconds: millis(info.last_ack_recv),
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
        smoothed_seconds: micros(info.rtt.into()),
        variation_seconds: micros(info.rttvar.into()),
        min_seconds: least_rtt(info),
        retransmission_timeout_seconds: micros(info.rto.into()),
    })
}

/// `None` before the first measurement (`~0U`, tcp_min_rtt in include/net/tcp.h).
fn least_rtt(info: &TcpInfo) -> Option<f64> {
    (info.min_rtt != u32::MAX).then(|| micros(info.min_rtt.into()))
}

fn running(timer: &Timer) -> RunningTimer {
    let (kind, left) = match timer {
        Timer::Retransmit(left, _) => ("retransmit", Some(left)),
        Timer::KeepAlive(left) => ("keepalive", Some(left)),
        Timer::Probe(left) => ("window_probe", Some(left)),
        Timer::TimeWait => ("time_wait", None),
    };
    RunningTimer { kind, remaining_seconds: left.map(Duration::as_secs_f64) }
}

fn micros(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

fn millis(millis: u32) -> f64 {
    Duration::from_millis(millis.into()).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_on_top_is_no_less_than_nothing() {
        let carried = |sent_bytes, received_bytes, retransmitted_bytes| Carried {
            sent_bytes,
            received_bytes,
            retransmitted_bytes,
        };
        let before = carried(1000, 500, 100);
        for (what, after, new) in [
            ("more of all", carried(1200, 600, 130), carried(200, 100, 30)),
            ("retransmits that the kernel had no memory for", carried(990, 500, 110), carried(0, 0, 10)),
            ("the FIN counted before", carried(1000, 499, 100), carried(0, 0, 0)),
            ("another connection of the same socket", carried(40, 20, 0), carried(40, 20, 0)),
            ("another that received much", carried(900, 700, 0), carried(900, 700, 0)),
        ] {
            assert_eq!(after.since(before), new, "{what}");
        }
    }
}
