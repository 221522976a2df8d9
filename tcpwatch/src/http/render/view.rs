//! A connection as JSON shows it, in short (a row) and in full.

use std::{cmp::Ordering, collections::BTreeMap};

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    events::decode::{FAILURES, Kind},
    http::render::text::{bounded_count, printable},
    model::{
        address::Address,
        groups::Role,
        interfaces::{Interface, local_text, remote_text},
        processes::{Process, ProcessId},
        table::{Conn, ConnFlags, ProcessSeen},
        tracker::{Ended, overflows::Queue},
    },
    node::Node,
    tcp::{
        connect_outcome::Outcome,
        errno::Errno,
        first_close::FirstClose,
        life::{Cause, Step},
        reset_reason::{Direction, Discarded, ObservedReset, ResetReason},
        stall::{Blocked, Recovery, Stalls},
        state::TcpState,
        time::{Clock, seconds},
    },
};

/// A connection in short.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Connection")]
pub(crate) struct Row {
    /// Identifier: the socket's cookie in hexadecimal, as `ss -e` shows it after `sk:`; where `/status` says that sockets
    /// are identified by their address, a number that only this tcpwatch knows.
    pub id: String,
    /// Inode of the network namespace, as in /proc/PID/ns/net; 0 where the kernel's types are not known.
    pub netns: u32,
    /// `client`: this side connected. `server`: a listener made it. `listener`. `unknown`: only a minisock is left of a
    /// connection that is older than tcpwatch, or repair mode (TCP_REPAIR) has restored it, as CRIU does.
    pub role: Role,
    /// TCP state under the kernel's name. Of a connection that ended its last one before CLOSE, and CLOSE where connect()
    /// failed before SYN_SENT.
    pub state: TcpState,
    /// Seconds that the connection has been in this state.
    pub state_seconds: f64,
    /// Whether `state_seconds` is a lower bound: the connection was in this state when tcpwatch first saw it there.
    pub state_is_lower_bound: bool,
    /// Seconds since the connection began; of one that ended, until its end.
    pub age_seconds: f64,
    /// Whether `age_seconds` is a lower bound: the connection existed when tcpwatch first saw it.
    pub age_is_lower_bound: bool,
    /// Whether a process has accepted a server's connection, as far as it was seen to hold or close it. Absent of other
    /// roles, and where neither that nor a sweep has shown it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<bool>,
    /// The process that holds the connection, or held it last; `null` where it is not known.
    pub process: Option<Process>,
    /// How `process` is known; `null` where it is `null`.
    pub process_seen: Option<ProcessSeen>,
    /// This socket's end.
    pub local: Address,
    /// The other end.
    pub remote: Address,
    /// The interface that the socket is bound to, by SO_BINDTODEVICE, by the scope of a link-local address, or to a VRF:
    /// part of the connection's identity. `null` for none.
    pub interface: Option<Interface>,
    /// The stall under way: delivery stands still behind a lost segment, as of the last record about it. Absent while
    /// there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stalled: Option<ShownStalled>,
    #[serde(flatten)]
    pub queue: Option<Queue>,
}

impl Row {
    /// Its local end, for people.
    pub(crate) fn local_text(&self) -> String {
        printable(&local_text(self.local, self.interface.as_ref()))
    }

    /// Its remote end, for people.
    pub(crate) fn remote_text(&self) -> String {
        printable(&remote_text(self.remote, self.interface.as_ref()))
    }

    /// The name of the process for people, marked where it is inferred.
    pub(crate) fn shown_process(&self) -> String {
        let Some(process) = &self.process else { return "-".to_owned() };
        let name = printable(&process.comm);
        if self.process_seen == Some(ProcessSeen::Listener) { format!("{name} (listener)") } else { name }
    }
}

/// A stall that is not over.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Stalled")]
pub(crate) struct ShownStalled {
    /// Seconds since the lost segment was first sent, or the first one behind it received.
    pub duration_seconds: f64,
    /// What is to repair the loss: `fast`, `timeout`, `probe` or `peer` (this is the receiving side).
    pub recovery: Recovery,
    /// Bytes sent after the lost segment, or received and waiting behind it.
    pub waiting_bytes: u32,
}

/// Stalls that are over.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Blocked")]
pub(crate) struct ShownBlocked {
    /// Number of stalls.
    pub count: u64,
    /// Seconds that they lasted together.
    pub duration_seconds: f64,
    /// Bytes that waited behind the lost segments.
    pub waiting_bytes: u64,
}

/// By what repaired the loss; non-zero only.
pub(crate) fn blocked(stalls: &Stalls) -> BTreeMap<&'static str, ShownBlocked> {
    let some = Recovery::ALL.iter().zip(stalls).filter(|(_, one)| one.durations.count() > 0);
    let shown = |one: &Blocked| ShownBlocked {
        count: one.durations.count(),
        duration_seconds: one.durations.sum_seconds(),
        waiting_bytes: one.bytes,
    };
    some.map(|(recovery, one)| (recovery.name(), shown(one))).collect()
}

/// Such as `5 wait, limit 4: full; 46 refused`.
pub(crate) fn show_queue(queue: &Queue) -> String {
    let full = if queue.queue > queue.queue_limit { ": full" } else { "" };
    let refused = match queue.overflows {
        0 => String::new(),
        count => format!("; {} refused", bounded_count(count, queue.overflows_is_lower_bound)),
    };
    let deferred = if queue.deferred { "; deferred until data comes" } else { "" };
    format!("{} wait, limit {}{full}{refused}{deferred}", queue.queue, queue.queue_limit)
}

/// Everything about one connection.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ConnectionDetail")]
pub(crate) struct Detail {
    #[serde(flatten)]
    pub row: Row,
    /// When the connection began; where `age_is_lower_bound`, when it is first known to have existed.
    pub opened_at: String,
    /// When it ended; `null` while it lives. `age_seconds` and `state_seconds` are until then.
    pub ended_at: Option<String>,
    /// Whether it had ended before `ended_at`: its end was not seen, only that it was gone.
    pub ended_at_is_upper_bound: bool,
    /// The process that connected or listens; `null` for a server's connection, and where it is not known.
    pub opener: Option<Process>,
    /// The process that closed the connection or shut down its sending side; `null` while none has, and where it is not
    /// known.
    pub closer: Option<Process>,
    /// What became of a client's connect; `null` of other roles, and where the connection was established before tcpwatch
    /// saw it.
    pub connect: Option<Connect>,
    /// Seconds that the connection was, or has been, ESTABLISHED; `null` where it was not seen to be, or neither the
    /// beginning nor the end of that was seen.
    pub established_seconds: Option<f64>,
    /// Whether `established_seconds` is a lower bound: the connection was ESTABLISHED when tcpwatch first saw it.
    pub established_is_lower_bound: bool,
    /// Whether `established_seconds` is an upper bound: the end of that state was not seen.
    pub established_is_upper_bound: bool,
    /// Who closed first; `null` while nobody has, and of what never was ESTABLISHED.
    pub first_close: Option<FirstClose>,
    /// Bytes received after the local side's FIN, where that came first; `null` otherwise, and where it is not known.
    pub received_after_close_bytes: Option<u64>,
    /// Bytes sent after the peer's FIN, where that came first; `null` otherwise, and where it is not known.
    pub sent_after_close_bytes: Option<u64>,
    /// How long the connection had been idle when a side first closed it; `null` while none has, where it was not idle
    /// (data both sent and received within 32 ticks of the kernel), and where that is not known.
    pub idle: Option<ShownIdle>,
    /// The reset that ended the connection; `null` where none was reported.
    pub reset: Option<ShownReset>,
    /// Name of the errno that the connection ended with, such as `ECONNRESET`; `null` for none, while the connection
    /// lives, and where the hook for state changes does not report it (see `/status`).
    pub errno: Option<Errno>,
    /// Bytes of data sent since the connection began, each once, as of its end or the latest sweep (`transfer` has them as
    /// of now); `null` where the kernel has not reported them yet.
    pub sent_bytes: Option<u64>,
    /// Bytes of data received, with the same meaning.
    pub received_bytes: Option<u64>,
    /// Segments retransmitted so far, as `ss -ti` shows them; of a server's connection with its SYN-ACKs, of a listener
    /// its SYN-ACKs since tcpwatch started. `null` where the kernel has not reported them yet.
    pub retransmits: Option<u32>,
    /// Segments retransmitted since tcpwatch started, by the kernel's reason; non-zero only. SYN-ACKs are the listener's.
    pub retransmits_by_kind: BTreeMap<&'static str, u64>,
    /// Bytes retransmitted since tcpwatch started, without headers.
    pub retransmitted_bytes: u64,
    /// Segments that the peer reported to have received twice, as of the last retransmit or the end.
    pub spurious_retransmits: u64,
    /// Retransmits that the kernel tried and could not send, by the name of the errno; non-zero only.
    pub retransmits_failed: BTreeMap<&'static str, u64>,
    /// Head-of-line blocking that is over, by what repaired the loss, or was to repair it when the connection ended: of one
    /// that timed out, the last stall by `timeout` was never repaired. Non-zero only.
    pub blocked: BTreeMap<&'static str, ShownBlocked>,
    /// Bytes received and not read by the application, as of the peer's FIN or the latest sweep; of a connection that ended,
    /// those that the application closed unread.
    pub unread_bytes: u32,
    /// The states that the connection went through, the first one first.
    pub life: Vec<LifeStep>,
}

/// What became of a connect.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub(crate) struct Connect {
    /// Its outcome; `null` while it waits for an answer.
    pub outcome: Option<Outcome>,
    /// Seconds until the peer's answer, the failure, or now; `null` where its beginning or its end was not seen, and
    /// where connect() failed before it sent anything. Of a connect that waited for the first data (TCP_FASTOPEN_CONNECT) and was
    /// established without a repeated SYN, since it sent the SYN.
    pub duration_seconds: Option<f64>,
    /// SYNs retransmitted; `null` where that is not known.
    pub syn_retransmits: Option<u64>,
}

/// How long a connection had been idle, to a tick of the kernel.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Idle")]
pub(crate) struct ShownIdle {
    /// Seconds since data was last sent, or since the connection was established.
    pub sending_seconds: f64,
    /// Seconds since data was last received, or since the connection was established.
    pub receiving_seconds: f64,
}

/// The reset that ended a connection.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[schemars(rename = "Reset")]
pub(crate) struct ShownReset {
    /// Whether this side sent or received it.
    pub direction: Direction,
    /// Why it was sent, as far as the kernel of this side knows.
    pub reason: ResetReason,
    /// Whether it was sent because the process exited.
    pub process_exited: bool,
    #[serde(flatten)]
    pub discarded: Discarded,
}

/// A state that the connection was in.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct LifeStep {
    /// TCP state under the kernel's name.
    pub state: TcpState,
    /// When the connection entered it; where `duration_is_lower_bound`, when it was first known to be in it.
    pub entered_at: String,
    /// Seconds that it lasted, or has lasted; `null` where neither the entry into the state nor its end was seen.
    pub duration_seconds: Option<f64>,
    /// Whether `duration_seconds` is a lower bound: the entry into the state was not seen.
    pub duration_is_lower_bound: bool,
    /// Whether `duration_seconds` is an upper bound: the end of the state was not seen.
    pub duration_is_upper_bound: bool,
    /// Who caused the entry: `application` (this side), `peer`, `timer` (of the kernel) or `unknown`: it was not seen.
    pub cause: Cause,
}

pub(crate) fn row(node: &Node, clock: Clock, conn: &Conn) -> Row {
    let tracker = &node.tracker;
    let queue = tracker.queue(conn.cookie).filter(|_| conn.role == Role::Listener);
    Row {
        id: format!("{:x}", conn.id()),
        netns: conn.netns,
        role: conn.role,
        state: conn.state(),
        state_seconds: clock.seconds_since(conn.since_ns()),
        state_is_lower_bound: conn.is(ConnFlags::STATE_OLDER),
        age_seconds: clock.seconds_since(conn.opened_ns()),
        age_is_lower_bound: conn.is(ConnFlags::OLDER),
        accepted: (conn.role == Role::Server).then(|| conn.accepted()).flatten(),
        process: process(node, conn.process),
        process_seen: conn.process_seen(),
        local: conn.local.into(),
        remote: conn.remote.into(),
        interface: tracker.interface(conn.netns, conn.interface),
        stalled: conn.stalled().map(|stalled| ShownStalled {
            duration_seconds: clock.seconds_since(stalled.since_ns),
            recovery: stalled.recovery,
            waiting_bytes: stalled.bytes,
        }),
        queue: queue.map(Queue::from),
    }
}

pub(crate) fn detail(node: &Node, clock: Clock, conn: &Conn, ended: Option<&Ended>) -> Detail {
    // For one that ended, time stands still there.
    let clock = ended.map_or(clock, |ended| clock.at(ended.ended_ns));
    let mut steps: Vec<Step> = conn.life().steps().collect();
    let (latest, latest_is_bound) = (steps.len() - 1, conn.is(ConnFlags::STATE_OLDER));
    // A connect that failed at once never left it.
    if let Some(ended) = ended.filter(|ended| ended.conn.state() != TcpState::Close) {
        steps.push(Step { state: TcpState::Close, cause: ended.cause, since_ns: ended.ended_ns });
    }
    let lasted = |index: usize| {
        let until_ns = steps.get(index + 1).map_or(clock.now_ns, |next: &Step| next.since_ns);
        until_ns.saturating_sub(steps[index].since_ns)
    };
    // Of the earlier states nothing else remains of how their entry became known.
    let entry_unseen = |index: usize| match index.cmp(&latest) {
        Ordering::Less => steps[index].cause == Cause::Unknown,
        Ordering::Equal => latest_is_bound,
        Ordering::Greater => false,
    };
    let end_unseen = |index: usize| steps.get(index + 1).is_some_and(|next| next.cause == Cause::Unknown);
    // Where neither is known the time in between says nothing.
    let known = |index: usize| (!entry_unseen(index) || !end_unseen(index)).then(|| lasted(index));
    let is_lower = |index: usize| entry_unseen(index) && !end_unseen(index);
    let is_upper = |index: usize| end_unseen(index) && !entry_unseen(index);
    let was_in = |state| steps.iter().position(|step| step.state == state);
    let established = was_in(TcpState::Established);
    let in_syn_sent = was_in(TcpState::SynSent).filter(|index| !end_unseen(*index)).map(lasted);
    let connect = connect(conn, in_syn_sent.filter(|_| !conn.is(ConnFlags::OLDER)));
    let retransmitted = conn.retransmits.as_ref().map(|tally| tally.counted).unwrap_or_default();
    let failures = conn.retransmits.as_ref().map(|tally| tally.failures).unwrap_or_default();
    let after_close =
        |by| conn.after_close_bytes().filter(|_| FirstClose::of_state(conn.state()) == Some(by));
    Detail {
        row: row(node, clock, conn),
        opened_at: clock.at(conn.opened_ns()).rfc3339(),
        ended_at: ended.map(|ended| clock.at(ended.ended_ns).rfc3339()),
        ended_at_is_upper_bound: ended.is_some_and(|ended| ended.cause == Cause::Unknown),
        opener: process(node, conn.opener),
        closer: process(node, conn.closer),
        connect,
        established_seconds: established.and_then(known).map(seconds),
        established_is_lower_bound: established.is_some_and(is_lower),
        established_is_upper_bound: established.is_some_and(is_upper),
        first_close: first_close(node, conn, ended),
        received_after_close_bytes: after_close(FirstClose::Local),
        sent_after_close_bytes: after_close(FirstClose::Peer),
        reset: conn.reset().map(reset),
        idle: conn.idle().map(|idle| ShownIdle {
            sending_seconds: seconds(idle.sending_ns),
            receiving_seconds: seconds(idle.receiving_ns),
        }),
        errno: Errno::of(conn.error),
        sent_bytes: conn.traffic().map(|traffic| traffic.sent_bytes),
        received_bytes: conn.traffic().map(|traffic| traffic.received_bytes),
        retransmits: conn.total_retrans(),
        retransmits_by_kind: kinds(&retransmitted.segments),
        retransmitted_bytes: retransmitted.bytes,
        spurious_retransmits: retransmitted.spurious,
        retransmits_failed: FAILURES.iter().copied().zip(failures).filter(|(_, count)| *count > 0).collect(),
        blocked: conn.retransmits.as_ref().map(|tally| blocked(&tally.stalls)).unwrap_or_default(),
        unread_bytes: conn.unread_bytes,
        life: steps
            .iter()
            .enumerate()
            .map(|(index, step)| LifeStep {
                state: step.state,
                entered_at: clock.at(step.since_ns).rfc3339(),
                duration_seconds: known(index).map(seconds),
                duration_is_lower_bound: is_lower(index),
                duration_is_upper_bound: is_upper(index),
                cause: step.cause,
            })
            .collect(),
    }
}

/// Retransmitted segments by the kernel's reason; non-zero only.
pub(crate) fn kinds(segments: &[u64; Kind::COUNT]) -> BTreeMap<&'static str, u64> {
    let all = Kind::ALL.iter().map(|kind| kind.name()).zip(*segments);
    all.filter(|(_, count)| *count > 0).collect()
}

fn connect(conn: &Conn, nanos: Option<u64>) -> Option<Connect> {
    let waits = matches!(conn.state(), TcpState::SynSent | TcpState::SynRecv);
    let known = conn.role == Role::Client && (waits || conn.connect.is_some());
    known.then(|| Connect {
        outcome: conn.connect,
        duration_seconds: nanos.map(|nanos| seconds(nanos.saturating_sub(conn.deferred_ns()))),
        syn_retransmits: conn.syn_retransmits(),
    })
}

fn reset(reset: &ObservedReset) -> ShownReset {
    ShownReset {
        direction: reset.reason.direction(),
        reason: reset.reason,
        process_exited: reset.exiting,
        discarded: reset.discarded,
    }
}

fn first_close(node: &Node, conn: &Conn, ended: Option<&Ended>) -> Option<FirstClose> {
    let first = FirstClose::of_state(conn.state());
    first.or_else(|| {
        let ended = ended.filter(|_| conn.state() == TcpState::Established)?;
        let is_known = ended.cause != Cause::Unknown && !node.tracker.reported().errnos_missing;
        let in_repair = conn.is(ConnFlags::ENDED_IN_REPAIR);
        Some(FirstClose::of(conn.state(), is_known.then_some(conn.error), in_repair))
    })
}

pub(crate) fn process(node: &Node, id: Option<ProcessId>) -> Option<Process> {
    id.map(|id| node.tracker.processes().get(id).clone())
}
