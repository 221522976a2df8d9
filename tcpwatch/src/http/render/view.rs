//! A connection as JSON shows it, in short (a row) and in full.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::{
    events::decode::{Endpoint, FAILURES, Kind},
    model::{
        groups::Role,
        processes::{Process, ProcessId},
        table::{Conn, ConnFlags},
        tracker::Ended,
    },
    node::Node,
    tcp::{
        connect_outcome::Outcome,
        first_close::FirstClose,
        life::{Cause, Step},
        reset_reason::{Direction, Discarded, ObservedReset, ResetReason},
        stall::{Blocked, Recovery, Stalls},
        state::TcpState,
        time::{Clock, seconds},
    },
};

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// The socket's cookie in hexadecimal, as `ss -e` shows it after `sk:`; on kernels before 5.12 a number that
    /// only tcpwatch knows.
    pub id: String,
    /// Inode of the network namespace, as in /proc/PID/ns/net.
    pub netns: u32,
    pub role: Role,
    pub state: TcpState,
    pub state_seconds: f64,
    pub age_seconds: f64,
    /// The times are lower bounds: it was there before tcpwatch saw it.
    pub at_least: bool,
    /// Of a server's connection: whether a process has accepted it. Until then `process` is the listener's.
    /// Absent until that was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<bool>,
    pub process: Option<Process>,
    pub local: End,
    pub remote: End,
    /// Its delivery stands still behind a lost segment. Absent while it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stalled: Option<ShownStalled>,
    #[serde(flatten)]
    pub queue: Option<Queue>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ShownStalled {
    /// Since the segment was first sent.
    pub seconds: f64,
    /// What is to make it good, as far as can be told.
    pub recovery: Recovery,
    /// Sent after it.
    pub bytes: u32,
}

/// Stalls that are over.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ShownBlocked {
    pub count: u64,
    pub seconds: f64,
    pub bytes: u64,
}

/// By what made the lost segment good; only those that there are.
pub(crate) fn blocked(stalls: &Stalls) -> BTreeMap<&'static str, ShownBlocked> {
    let some = Recovery::ALL.iter().zip(stalls).filter(|(_, one)| one.durations.count() > 0);
    let shown = |one: &Blocked| ShownBlocked {
        count: one.durations.count(),
        seconds: one.durations.sum_seconds(),
        bytes: one.bytes,
    };
    some.map(|(recovery, one)| (recovery.name(), shown(one))).collect()
}

/// Of a listener.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Queue {
    /// Connections that wait to be accepted.
    queue: u32,
    queue_limit: u32,
    /// Segments dropped, mostly for want of room in the queue (the socket's `sk_drops`).
    overflows: u32,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct End {
    pub addr: IpAddr,
    pub port: u16,
}

/// Everything about one connection.
#[derive(Debug, Serialize)]
pub(crate) struct Detail {
    #[serde(flatten)]
    pub row: Row,
    pub opened_at: String,
    /// `null` while it lives.
    pub ended_at: Option<String>,
    /// Who connected.
    pub opener: Option<Process>,
    /// Who closed it or shut down its sending side.
    pub closer: Option<Process>,
    /// What became of its connect; `null` where it did not connect, or that is not known.
    pub connect: Option<Connect>,
    /// How long it was, or has been, ESTABLISHED; `null` where it was not, or that is not known.
    pub established_seconds: Option<f64>,
    /// Who closed first; `null` while nobody has.
    pub first_close: Option<FirstClose>,
    /// Received after the local side's FIN, and sent after the peer's, of whichever came first; `null` of the other, and
    /// where it is not known.
    pub received_after_close_bytes: Option<u64>,
    pub sent_after_close_bytes: Option<u64>,
    /// How long it had been idle when a side first closed it; `null` while none has, of one that was not idle, and where
    /// that is not known.
    pub idle: Option<ShownIdle>,
    /// The reset that ended it; `null` where none was told.
    pub reset: Option<ShownReset>,
    /// The socket's errno at its end, 0 for none.
    pub error: u8,
    /// Data, each byte once, as of its end or the latest sweep; `null` where the kernel has not told yet.
    pub sent_bytes: Option<u64>,
    pub received_bytes: Option<u64>,
    /// Segments; `null` where the kernel has not told yet.
    pub retransmits: Option<u32>,
    /// Of these, those since tcpwatch watches, by the kernel's reason; only those that there are.
    pub retransmits_by_kind: BTreeMap<&'static str, u64>,
    pub retransmitted_bytes: u64,
    /// Segments that the peer said it had received twice.
    pub spurious_retransmits: u64,
    /// Retransmits that the kernel tried and could not send, by errno; only those that there are.
    pub retransmits_failed: BTreeMap<&'static str, u64>,
    /// Stalls that are over.
    pub blocked: BTreeMap<&'static str, ShownBlocked>,
    /// Received and not read by the application, when last looked at.
    pub unread_bytes: u32,
    /// The states it went through.
    pub life: Vec<LifeStep>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Connect {
    /// `null` while it waits for an answer.
    pub outcome: Option<Outcome>,
    /// Until the peer's answer, the failure, or now; `null` where its beginning was not seen.
    pub seconds: Option<f64>,
    /// SYNs repeated; `null` where that is not known.
    pub syn_retransmits: Option<u64>,
}

/// Since data was last sent and received, or the connection was established, to a jiffy.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ShownIdle {
    pub sending_seconds: f64,
    pub receiving_seconds: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ShownReset {
    pub direction: Direction,
    pub reason: ResetReason,
    /// Sent because the process exited.
    pub process_exited: bool,
    #[serde(flatten)]
    pub discarded: Discarded,
}

#[derive(Debug, Serialize)]
pub(crate) struct LifeStep {
    pub state: TcpState,
    pub since: String,
    /// How long it lasted, or has lasted.
    pub seconds: f64,
    /// Who caused it.
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
        age_seconds: clock.seconds_since(conn.opened_ns()),
        at_least: conn.at_least(),
        accepted: (conn.role == Role::Server).then(|| conn.accepted()).flatten(),
        process: process(node, conn.process),
        local: end(conn.local),
        remote: end(conn.remote),
        stalled: conn.stalled().map(|stalled| ShownStalled {
            seconds: clock.seconds_since(stalled.since_ns),
            recovery: stalled.recovery,
            bytes: stalled.bytes,
        }),
        queue: queue.map(|queue| Queue {
            queue: queue.waiting,
            queue_limit: queue.limit,
            overflows: queue.drops,
        }),
    }
}

pub(crate) fn detail(node: &Node, clock: Clock, conn: &Conn, ended: Option<&Ended>) -> Detail {
    // For one that ended, time stands still there.
    let clock = ended.map_or(clock, |ended| clock.at(ended.ended_ns));
    let mut steps: Vec<Step> = conn.life().steps().collect();
    // A connect that failed at once never left it.
    if let Some(ended) = ended.filter(|ended| ended.conn.state() != TcpState::Close) {
        steps.push(Step { state: TcpState::Close, cause: ended.cause, since_ns: ended.ended_ns });
    }
    let lasted = |index: usize| {
        let until_ns = steps.get(index + 1).map_or(clock.now_ns, |next: &Step| next.since_ns);
        until_ns.saturating_sub(steps[index].since_ns)
    };
    let was_in = |state| steps.iter().position(|step| step.state == state).map(lasted);
    let established_seconds = was_in(TcpState::Established).map(seconds);
    let connect = connect(conn, was_in(TcpState::SynSent).filter(|_| !conn.is(ConnFlags::OLDER)));
    let retransmitted = conn.retransmits.as_ref().map(|tally| tally.counted).unwrap_or_default();
    let failures = conn.retransmits.as_ref().map(|tally| tally.failures).unwrap_or_default();
    let after_close =
        |by| conn.after_close_bytes().filter(|_| FirstClose::of_state(conn.state()) == Some(by));
    Detail {
        row: row(node, clock, conn),
        opened_at: time(clock, conn.opened_ns()),
        ended_at: ended.map(|ended| time(clock, ended.ended_ns)),
        opener: process(node, conn.opener),
        closer: process(node, conn.closer),
        connect,
        established_seconds,
        first_close: first_close(node, conn, ended),
        received_after_close_bytes: after_close(FirstClose::Local),
        sent_after_close_bytes: after_close(FirstClose::Peer),
        reset: conn.reset().map(reset),
        idle: conn.idle().map(|idle| ShownIdle {
            sending_seconds: seconds(idle.sending_ns),
            receiving_seconds: seconds(idle.receiving_ns),
        }),
        error: conn.error,
        sent_bytes: conn.traffic().map(|traffic| traffic.sent_bytes),
        received_bytes: conn.traffic().map(|traffic| traffic.received_bytes),
        retransmits: conn.total_retrans,
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
                since: time(clock, step.since_ns),
                seconds: seconds(lasted(index)),
                cause: step.cause,
            })
            .collect(),
    }
}

/// Retransmitted segments by the kernel's reason, those that there are.
pub(crate) fn kinds(segments: &[u64; Kind::COUNT]) -> BTreeMap<&'static str, u64> {
    let all = Kind::ALL.iter().map(|kind| kind.name()).zip(*segments);
    all.filter(|(_, count)| *count > 0).collect()
}

fn connect(conn: &Conn, nanos: Option<u64>) -> Option<Connect> {
    let waits = matches!(conn.state(), TcpState::SynSent | TcpState::SynRecv);
    let known = conn.role == Role::Client && (waits || conn.connect.is_some());
    known.then(|| Connect {
        outcome: conn.connect,
        seconds: nanos.map(seconds),
        syn_retransmits: conn.syn_retransmits(),
    })
}

fn reset(told: &ObservedReset) -> ShownReset {
    ShownReset {
        direction: told.reason.direction(),
        reason: told.reason,
        process_exited: told.exiting,
        discarded: told.discarded,
    }
}

fn first_close(node: &Node, conn: &Conn, ended: Option<&Ended>) -> Option<FirstClose> {
    let first = FirstClose::of_state(conn.state());
    first.or_else(|| {
        let ended = ended.filter(|_| conn.state() == TcpState::Established)?;
        let told = ended.cause != Cause::Unknown && !node.tracker.reported().errnos_missing;
        Some(FirstClose::of(conn.state(), told.then_some(conn.error)))
    })
}

pub(crate) fn end(end: Endpoint) -> End {
    End { addr: end.addr.to_canonical(), port: end.port }
}

pub(crate) fn process(node: &Node, id: Option<ProcessId>) -> Option<Process> {
    id.map(|id| node.tracker.processes().get(id).clone())
}

/// RFC 3339, in UTC, with milliseconds.
fn time(clock: Clock, then_ns: u64) -> String {
    let then: SystemTime = clock.wall - Duration::from_nanos(clock.now_ns.saturating_sub(then_ns));
    humantime::format_rfc3339_millis(then).to_string()
}
