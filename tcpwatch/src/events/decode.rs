//! Bytes to records.
//!
//! In: what the BPF programs wrote, or a recording of it. Out: records in which each field is valid, or an error for
//! the caller to count. No state, no I/O.

use std::{
    net::{IpAddr, Ipv6Addr},
    ops::AddAssign,
};

use serde::{Deserialize, Serialize};
use tcpwatch_common::{
    AskedOptions, CloseEvent, FLAG_BOUND, FLAG_CONNECTED, FLAG_FIN_RECEIVED, FLAG_HELD, FLAG_MINISOCK,
    FLAG_ORPHAN, FLAG_PASSIVE, FLAG_REQUEST, FLAG_UNSENT, IdleEvent, InterfaceEvent, KIND_ACCEPT, KIND_CLOSE,
    KIND_CONNECT_FAILED, KIND_IDLE, KIND_INTERFACE, KIND_MINISOCK_END, KIND_RESET, KIND_RETRANSMIT,
    KIND_TASK, KIND_TIME_WAIT, KIND_TRAFFIC, KIND_TRANSITION, KIND_TRANSITION_WITH_TRAFFIC, RESET_ANSWERS,
    RESET_EXITING, RESET_POLICY, RESET_RECEIVED, RESET_ZERO_LINGER, ResetEvent, RetransmitEvent, SocketEvent,
    TaskEvent, TrafficEvent, failure, retransmit,
};
use thiserror::Error;

pub use crate::events::comm::Comm;
use crate::tcp::{
    stall::{Blocked, Recovery, Stalled, Stalls},
    state::TcpState,
};

#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("a record of {0} bytes, which no kind has")]
    Length(usize),
    #[error("a record of the unknown kind {0}")]
    Kind(u8),
    #[error("a record with the unknown TCP state {0}")]
    State(u8),
}

/// One record. The rare and large variants are boxed, which keeps the common ones small.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    Socket(SocketRecord),
    /// The record's `what` is [`What::Retransmit`].
    Retransmit(SocketRecord, Box<Retransmits>),
    Reset(Box<ResetRecord>),
    Idle(IdleRecord),
    Traffic(TrafficRecord),
    Interface(InterfaceRecord),
    Task(TaskRecord),
}

/// A socket's identity, ends and flags, as the kernel had them when the record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    pub cookie: u64,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Index of the interface that it is bound to, 0 for none. Of a full socket in no record but
    /// [`Record::Interface`]: the tracker completes the others.
    pub interface: u32,
    pub local: Endpoint,
    pub remote: Endpoint,
    /// `FLAG_*` of `tcpwatch_common`.
    flags: u8,
}

impl Socket {
    pub fn new(cookie: u64, netns: u32, local: Endpoint, remote: Endpoint, flags: u8) -> Self {
        Self { cookie, netns, interface: 0, local, remote, flags }
    }

    /// The same, bound to an interface.
    #[must_use]
    pub fn on(self, interface: u32) -> Self {
        Self { interface, ..self }
    }

    /// Whether it is bound to an interface, whichever that is; not of a minisock.
    pub fn is_bound(&self) -> bool {
        self.flags & FLAG_BOUND != 0
    }

    pub fn ends(&self) -> Ends {
        Ends { netns: self.netns, interface: self.interface, local: self.local, remote: self.remote }
    }

    pub fn fin_received(&self) -> bool {
        self.flags & FLAG_FIN_RECEIVED != 0
    }

    /// No process holds it any more.
    pub fn is_orphan(&self) -> bool {
        self.flags & FLAG_ORPHAN != 0
    }

    /// A process opened or accepted it and did not close it yet.
    pub fn is_held(&self) -> bool {
        self.flags & FLAG_HELD != 0
    }

    /// Made by a listener, and not accepted by a process yet.
    pub fn is_unaccepted(&self) -> bool {
        self.is_passive() && !self.is_held() && !self.is_orphan()
    }

    /// A minisock, which the kernel keeps in place of the full socket.
    pub fn is_minisock(&self) -> bool {
        self.flags & FLAG_MINISOCK != 0
    }

    /// A handshake under way, not yet a socket.
    pub fn is_request(&self) -> bool {
        self.flags & FLAG_REQUEST != 0
    }

    /// Of a socket in CLOSE that a sweep found: it has been in a connection, or tried to.
    pub fn was_connected(&self) -> bool {
        self.flags & FLAG_CONNECTED != 0 || self.remote.port != 0
    }

    /// Of a socket that connects, or ends after it was established: in repair mode, without a segment.
    pub fn is_in_repair(&self) -> bool {
        self.flags & FLAG_UNSENT != 0
    }

    /// Of a socket whose connect failed: no SYN was sent.
    pub fn is_unsent(&self) -> bool {
        // The flag needs the kernel's types. Without them: the kernel had not chosen a port yet.
        self.flags & FLAG_UNSENT != 0 || self.local.port == 0
    }

    /// Made by a listener. The kernel marks it by an inherited backlog; where the listener's backlog is 0, it shows
    /// only while no process holds the socket yet.
    pub fn is_passive(&self) -> bool {
        self.flags & (FLAG_PASSIVE | FLAG_REQUEST) != 0
            || self.flags & (FLAG_HELD | FLAG_ORPHAN | FLAG_MINISOCK) == 0
    }
}

/// An address and a port in host byte order; an IPv4 address is v4-mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    pub addr: Ipv6Addr,
    pub port: u16,
}

impl Endpoint {
    pub fn new(addr: IpAddr, port: u16) -> Self {
        let addr = match addr {
            IpAddr::V4(addr) => addr.to_ipv6_mapped(),
            IpAddr::V6(addr) => addr,
        };
        Self { addr, port }
    }

    /// Whether the address is unspecified: `0.0.0.0` or `::`.
    pub fn is_wildcard(&self) -> bool {
        self.addr.to_canonical().is_unspecified()
    }
}

/// The network namespace, interface and both ends of a socket. At any time at most one minisock has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ends {
    /// Inode of the network namespace.
    pub netns: u32,
    /// As in [`Socket`].
    pub interface: u32,
    pub local: Endpoint,
    pub remote: Endpoint,
}

/// What happened to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketRecord {
    pub socket: Socket,
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
    pub what: What,
    /// In a transition out of ESTABLISHED, or to CLOSE, where the record has room for it.
    pub traffic: Option<Traffic>,
}

/// Data that a connection has carried since it began, each byte once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

impl Traffic {
    /// The growth since `earlier`; 0 where this is the older one.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            sent_bytes: self.sent_bytes.saturating_sub(earlier.sent_bytes),
            received_bytes: self.received_bytes.saturating_sub(earlier.received_bytes),
        }
    }

    pub fn total(self) -> u64 {
        self.sent_bytes.saturating_add(self.received_bytes)
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
    }
}

/// Traffic in a record of its own. See `TrafficEvent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrafficRecord {
    pub cookie: u64,
    /// CLOCK_MONOTONIC, the same as in the transition that follows.
    pub time_ns: u64,
    pub traffic: Traffic,
}

/// The interface that the socket of the next record with this cookie is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceRecord {
    pub cookie: u64,
    /// Index of the interface.
    pub interface: u32,
}

/// The kinds of [`SocketRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Transition {
        from: TcpState,
        to: TcpState,
        /// See `SocketEvent::value`.
        value: u32,
    },
    /// A transition to CLOSE.
    End {
        from: TcpState,
        /// The socket's errno, 0 for none.
        error: u8,
        /// Segments retransmitted on the socket, in total.
        total_retrans: u32,
    },
    Retransmit {
        state: TcpState,
        /// Segments retransmitted on the socket so far; `None` where the record reports only one of them.
        total: Option<u32>,
    },
    /// The kernel freed a minisock.
    MinisockEnd,
    /// A minisock is in TIME_WAIT, which begins anew.
    TimeWait,
    /// The application accepted the connection.
    Accept { state: TcpState, pid: Option<u32> },
    /// connect() failed before the socket left CLOSE, with this errno.
    ConnectFailed { pid: Option<u32>, error: u8 },
    /// The application closed its last descriptor.
    Close { state: TcpState, pid: Option<u32>, unread_bytes: u32 },
}

/// A reset, sent or received. See `ResetEvent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetRecord {
    pub socket: Socket,
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// The state of the socket, or of the minisock, at that time.
    pub state: TcpState,
    /// Whether it was received; otherwise it was sent.
    pub received: bool,
    /// Sent in answer to a segment.
    pub answers: bool,
    pub zero_linger: bool,
    /// Sent because the process exits.
    pub exiting: bool,
    /// Sent by a packet filter of this machine.
    pub policy: bool,
    /// The process whose close sent it.
    pub pid: Option<u32>,
    pub unread_bytes: u32,
    /// Sequence numbers: bytes, and one for a SYN or FIN.
    pub unsent: u32,
    pub unacknowledged: u32,
}

/// How long a connection that one side closes had been idle. See `IdleEvent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleRecord {
    pub cookie: u64,
    /// CLOCK_MONOTONIC, the same as in the transition that follows.
    pub time_ns: u64,
    /// Ticks since data was last sent; `u32::MAX` where the kernel has noted no time.
    pub sent_ticks: u32,
    /// Ticks since data was last received; `u32::MAX` where the kernel has noted no time.
    pub received_ticks: u32,
}

/// A socket's retransmits and stalls. See `RetransmitEvent`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Retransmits {
    /// CLOCK_MONOTONIC: when the programs began this count; a later time means that they began anew.
    pub since_ns: u64,
    /// Segments since then, by [`Kind`].
    pub segments: [u64; Kind::COUNT],
    /// The socket's own count of retransmitted bytes at `since_ns`.
    pub bytes_before: u64,
    /// The socket's own count of retransmitted bytes now.
    pub bytes: u64,
    /// Segments that the peer reported as received twice.
    pub duplicates: u32,
    /// Retransmits that failed, by [`FAILURES`].
    pub failures: [u64; FAILURES.len()],
    pub stalls: Stalls,
    pub stalled: Option<Stalled>,
}

/// Names of the errnos with which a retransmit fails, in the order of the records' counts.
pub const FAILURES: [&str; failure::COUNT] =
    ["EAGAIN", "ENOMEM", "EBUSY", "ENOBUFS", "EPERM", "ENETUNREACH", "EHOSTUNREACH", "other"];

/// Why the kernel retransmitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Syn = retransmit::SYN as u8,
    SynAck = retransmit::SYN_ACK as u8,
    /// Acknowledgements showed the segment to be lost.
    Fast = retransmit::FAST as u8,
    /// The same, in the recovery from a time-out.
    SlowStart = retransmit::SLOW_START as u8,
    Timeout = retransmit::TIMEOUT as u8,
    /// A tail loss probe.
    Probe = retransmit::PROBE as u8,
    Unknown = retransmit::UNKNOWN as u8,
}

impl Kind {
    pub const COUNT: usize = retransmit::COUNT;

    /// All, in the order of the records' counts.
    pub const ALL: [Self; Self::COUNT] =
        [Self::Syn, Self::SynAck, Self::Fast, Self::SlowStart, Self::Timeout, Self::Probe, Self::Unknown];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::SynAck => "syn_ack",
            Self::Fast => "fast",
            Self::SlowStart => "slow_start",
            Self::Timeout => "timeout",
            Self::Probe => "probe",
            Self::Unknown => "unknown",
        }
    }
}

/// A process, reported before the first record that names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskRecord {
    pub pid: u32,
    /// Start of the process, CLOCK_BOOTTIME.
    pub start_ns: u64,
    pub comm: Comm,
    /// See [`Identity::exec_id`].
    pub exec_id: u32,
    /// Where its stack begins, in units of 16 bytes, the lower 32 bits: tells which program /proc/PID shows. 0 while it
    /// exits, and where `exec_id` is 0.
    pub stack: u32,
}

impl TaskRecord {
    pub fn identity(&self) -> Identity {
        let Self { pid, start_ns, exec_id, comm, .. } = *self;
        Identity { pid, start_ns, exec_id, comm }
    }
}

/// A process under one name, between two execs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    pub pid: u32,
    /// Start of the process, CLOCK_BOOTTIME.
    pub start_ns: u64,
    /// Changes with each exec; 0 where it is not known. Then only another name tells of an exec.
    pub exec_id: u32,
    pub comm: Comm,
}

impl Identity {
    /// Whether there was no exec between the two. Where that is not known, another name stands for one.
    pub fn is_same_program(&self, other: &Self) -> bool {
        let same = (self.pid, self.start_ns, self.exec_id) == (other.pid, other.start_ns, other.exec_id);
        same && (self.exec_id != 0 || self.comm == other.comm)
    }
}

/// Decodes one record.
///
/// # Errors
/// When the bytes are not a record of a known kind.
pub fn record(bytes: &[u8]) -> Result<Record, DecodeError> {
    match bytes.first().copied() {
        Some(KIND_TASK) => Ok(Record::Task(task(&read(bytes)?))),
        Some(KIND_TRANSITION) => {
            let raw = read(bytes)?;
            Ok(Record::Socket(SocketRecord::of(&raw, transition(&raw)?)))
        }
        Some(KIND_TRANSITION_WITH_TRAFFIC) => {
            let raw = read(bytes)?;
            Ok(Record::Socket(SocketRecord::with_traffic(&raw, transition(&raw)?)))
        }
        Some(KIND_MINISOCK_END) => Ok(Record::Socket(SocketRecord::of(&read(bytes)?, What::MinisockEnd))),
        Some(KIND_TIME_WAIT) => Ok(Record::Socket(SocketRecord::of(&read(bytes)?, What::TimeWait))),
        Some(KIND_ACCEPT) => {
            let raw: SocketEvent = read(bytes)?;
            let what = What::Accept { state: state(raw.new_state)?, pid: pid(raw.value) };
            Ok(Record::Socket(SocketRecord::of(&raw, what)))
        }
        Some(KIND_CONNECT_FAILED) => {
            let raw: SocketEvent = read(bytes)?;
            let (error, process) = upper_eight(raw.value);
            Ok(Record::Socket(SocketRecord::of(&raw, What::ConnectFailed { pid: pid(process), error })))
        }
        Some(KIND_CLOSE) => {
            let CloseEvent { socket: raw, unread_bytes, .. } = read(bytes)?;
            let what = What::Close { state: state(raw.new_state)?, pid: pid(raw.value), unread_bytes };
            Ok(Record::Socket(SocketRecord::of(&raw, what)))
        }
        Some(KIND_RETRANSMIT) => {
            let raw: RetransmitEvent = read(bytes)?;
            let total = (raw.socket.value != 0).then_some(raw.socket.value);
            let what = What::Retransmit { state: state(raw.socket.new_state)?, total };
            Ok(Record::Retransmit(SocketRecord::of(&raw.socket, what), Box::new(retransmits(&raw))))
        }
        Some(KIND_IDLE) => {
            let IdleEvent { cookie, time_ns, sent_ticks, received_ticks, .. } = read(bytes)?;
            Ok(Record::Idle(IdleRecord { cookie, time_ns, sent_ticks, received_ticks }))
        }
        Some(KIND_RESET) => Ok(Record::Reset(Box::new(reset(&read(bytes)?)?))),
        Some(KIND_TRAFFIC) => {
            let TrafficEvent { cookie, time_ns, sent_bytes, received_bytes, .. } = read(bytes)?;
            let traffic = Traffic { sent_bytes, received_bytes };
            Ok(Record::Traffic(TrafficRecord { cookie, time_ns, traffic }))
        }
        Some(KIND_INTERFACE) => {
            let InterfaceEvent { cookie, interface, .. } = read(bytes)?;
            Ok(Record::Interface(InterfaceRecord { cookie, interface }))
        }
        Some(kind) => Err(DecodeError::Kind(kind)),
        None => Err(DecodeError::Length(0)),
    }
}

/// Decodes the options of one socket, as the daemon asked for them.
///
/// # Errors
/// When the bytes are not an `AskedOptions`.
pub fn asked_options(bytes: &[u8]) -> Result<AskedOptions, DecodeError> {
    read(bytes)
}

fn socket(raw: &SocketEvent) -> Socket {
    // A minisock's has the interface in the place of the cookie.
    let (cookie, interface) =
        if raw.flags & FLAG_MINISOCK == 0 { (raw.cookie, 0) } else { (0, raw.cookie as u32) };
    Socket {
        cookie,
        netns: raw.netns,
        interface,
        local: endpoint(raw.saddr, raw.sport),
        remote: endpoint(raw.daddr, raw.dport),
        flags: raw.flags,
    }
}

fn reset(raw: &ResetEvent) -> Result<ResetRecord, DecodeError> {
    let has = |flag| raw.socket.value & flag != 0;
    Ok(ResetRecord {
        socket: socket(&raw.socket),
        time_ns: raw.socket.time_ns,
        state: state(raw.socket.new_state)?,
        received: has(RESET_RECEIVED),
        answers: has(RESET_ANSWERS),
        zero_linger: has(RESET_ZERO_LINGER),
        exiting: has(RESET_EXITING),
        policy: has(RESET_POLICY),
        pid: pid(raw.tgid),
        unread_bytes: raw.unread_bytes,
        unsent: raw.unsent,
        unacknowledged: raw.unacknowledged,
    })
}

#[inline]
fn transition(raw: &SocketEvent) -> Result<What, DecodeError> {
    let (from, to) = (state(raw.old_state)?, state(raw.new_state)?);
    if to != TcpState::Close {
        return Ok(What::Transition { from, to, value: raw.value });
    }
    let (error, total_retrans) = upper_eight(raw.value);
    Ok(What::End { from, error, total_retrans })
}

/// A process id; `None` for 0, which the programs write where they do not know it.
fn pid(value: u32) -> Option<u32> {
    (value != 0).then_some(value)
}

/// Splits a value into its upper 8 and its lower 24 bits.
fn upper_eight(value: u32) -> (u8, u32) {
    ((value >> 24) as u8, value & 0x00ff_ffff)
}

// Each record is made in place: moving it costs more than the rest of decoding.
impl SocketRecord {
    #[inline]
    fn of(raw: &SocketEvent, what: What) -> Self {
        Self { socket: socket(raw), time_ns: raw.time_ns, what, traffic: None }
    }

    /// Both addresses begin with eight zero bytes, in whose place the record has the traffic.
    #[inline]
    fn with_traffic(raw: &SocketEvent, what: What) -> Self {
        let [[sent_bytes, local], [received_bytes, remote]]: [[u64; 2]; 2] =
            [bytemuck::cast(raw.saddr), bytemuck::cast(raw.daddr)];
        let socket = Socket {
            local: endpoint(bytemuck::cast([0, local]), raw.sport),
            remote: endpoint(bytemuck::cast([0, remote]), raw.dport),
            ..socket(raw)
        };
        Self { socket, time_ns: raw.time_ns, what, traffic: Some(Traffic { sent_bytes, received_bytes }) }
    }
}

fn retransmits(raw: &RetransmitEvent) -> Retransmits {
    Retransmits {
        since_ns: raw.since_ns,
        segments: raw.segments,
        bytes_before: raw.bytes_before,
        bytes: raw.bytes,
        duplicates: raw.duplicates,
        failures: raw.failures.map(u64::from),
        stalls: Recovery::ALL.map(|recovery| Blocked::of(raw, recovery)),
        stalled: Stalled::of(raw),
    }
}

fn task(raw: &TaskEvent) -> TaskRecord {
    TaskRecord {
        pid: raw.tgid,
        start_ns: raw.start_ns,
        comm: Comm::new(raw.comm),
        exec_id: raw.exec_id,
        stack: raw.stack,
    }
}

pub(super) fn read<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Result<T, DecodeError> {
    bytemuck::try_pod_read_unaligned(bytes).map_err(|_| DecodeError::Length(bytes.len()))
}

pub(super) fn state(number: u8) -> Result<TcpState, DecodeError> {
    TcpState::from_kernel(number).ok_or(DecodeError::State(number))
}

pub(super) fn endpoint(addr: [u8; 16], port: u16) -> Endpoint {
    Endpoint { addr: Ipv6Addr::from(addr), port }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use bytemuck::Zeroable as _;

    use super::*;

    fn event() -> SocketEvent {
        SocketEvent { kind: KIND_TRANSITION, old_state: 2, new_state: 1, sport: 80, ..SocketEvent::zeroed() }
    }

    #[test]
    fn a_transition_keeps_its_states_and_ports() {
        let Ok(Record::Socket(record)) = record(bytemuck::bytes_of(&event())) else { panic!() };
        assert_eq!(record.socket.local.port, 80);
        let (from, to) = (TcpState::SynSent, TcpState::Established);
        assert_eq!(record.what, What::Transition { from, to, value: 0 });
    }

    #[test]
    fn traffic_is_read_from_the_zero_bytes_of_ipv4_addresses() {
        let mut raw = SocketEvent { kind: KIND_TRANSITION_WITH_TRAFFIC, ..event() };
        let address = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        (raw.saddr, raw.daddr) = (address.octets(), address.octets());
        raw.saddr[..8].copy_from_slice(&5_000_000_000_u64.to_ne_bytes());
        raw.daddr[..8].copy_from_slice(&7_u64.to_ne_bytes());
        let Ok(Record::Socket(record)) = record(bytemuck::bytes_of(&raw)) else { panic!() };
        assert_eq!(record.traffic, Some(Traffic { sent_bytes: 5_000_000_000, received_bytes: 7 }));
        assert_eq!((record.socket.local.addr, record.socket.remote.addr), (address, address));
    }

    #[test]
    fn a_minisock_has_its_interface_in_the_place_of_the_cookie() {
        let raw = SocketEvent { kind: KIND_MINISOCK_END, flags: FLAG_MINISOCK, cookie: 7, ..event() };
        for (flags, expected) in [(FLAG_MINISOCK, (0, 7)), (FLAG_BOUND, (7, 0))] {
            let raw = SocketEvent { flags, ..raw };
            let Ok(Record::Socket(record)) = record(bytemuck::bytes_of(&raw)) else { panic!() };
            assert_eq!((record.socket.cookie, record.socket.interface), expected);
        }
    }

    #[test]
    fn malformed_bytes_are_refused_with_the_reason() {
        let bad_state = SocketEvent { old_state: 12, ..event() };
        let good = event();
        for (bytes, error) in [
            (&[][..], DecodeError::Length(0)),
            (&bytemuck::bytes_of(&good)[..63], DecodeError::Length(63)),
            (&[77; 64], DecodeError::Kind(77)),
            (bytemuck::bytes_of(&bad_state), DecodeError::State(12)),
        ] {
            assert_eq!(record(bytes), Err(error));
        }
    }

    #[test]
    fn a_name_without_nul_and_without_utf8_is_kept() {
        let raw = TaskEvent { kind: KIND_TASK, comm: [0xff; 16], ..TaskEvent::zeroed() };
        let Ok(Record::Task(task)) = record(bytemuck::bytes_of(&raw)) else { panic!() };
        assert_eq!(task.comm.text(), r"\xff".repeat(16));
    }
}
