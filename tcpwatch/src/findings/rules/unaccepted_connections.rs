//! `unaccepted_connections`: handshakes complete, and nobody calls accept().

use rustc_hash::FxHashMap;

use crate::{
    findings::{
        Rule, Severity,
        evidence::OtherEnds,
        observation::{Evidence, Group, Member, Observation, Observations, Subject, Ties, View, connections},
        rules::Spec,
        thresholds::Threshold,
    },
    model::{
        table::{Conn, ConnFlags},
        tracker::overflows::Listening,
    },
    tcp::state::TcpState,
};

const WAITS_SECONDS: Threshold = Threshold {
    name: "unaccepted_connections.waits_seconds",
    default: 6.0,
    reason: "three looks at the queue in a row: a healthy listener's is empty at most of them",
};
const OLDEST_SECONDS: Threshold = Threshold {
    name: "unaccepted_connections.oldest_seconds",
    default: 5.0,
    reason: "health checks give up after 1 to 5 s; a pause of an event loop that is longer is an incident",
};
const CRITICAL_SECONDS: Threshold = Threshold {
    name: "unaccepted_connections.critical_seconds",
    default: 30.0,
    reason: "three health checks of 10 s each have failed: the process is about to be killed",
};
const GAVE_UP: Threshold = Threshold {
    name: "unaccepted_connections.critical_gave_up",
    default: 3.0,
    reason: "three clients in a row closed before anybody accepted them",
};
const YOUNG_SECONDS: Threshold = Threshold {
    name: "unaccepted_connections.young_seconds",
    default: 30.0,
    reason: "programs listen before they are ready, and activated services before they run",
};

pub(super) const SPEC: Spec = Spec {
    rule: Rule::UnacceptedConnections,
    observe,
    thresholds: &[&WAITS_SECONDS, &OLDEST_SECONDS, &CRITICAL_SECONDS, &GAVE_UP, &YOUNG_SECONDS],
    signals: &[],
    hold_seconds: 6,
    resolution_seconds: 2.0,
    evidence: &["waiting", "oldest", "gave_up", "unread", "accepted"],
    page: include_str!("../../../../docs/findings/unaccepted_connections.md"),
    explanation: "The kernel completes handshakes without the process: the connections wait in the listener's accept queue \
                  until the process calls accept(). It does not, or not often enough: a limit on connections is reached, \
                  its accept loop or its only thread is blocked, or it has no descriptor left. Clients see a connection \
                  that is established and never answers.",
};

fn observe(view: &View<'_>, out: &mut Observations) {
    let mut listeners: FxHashMap<Subject, Vec<(&Conn, &Listening)>> = FxHashMap::default();
    for (conn, queue) in waiting(view) {
        listeners.entry(Subject::of(view.tracker, conn)).or_default().push((conn, queue));
    }
    if listeners.is_empty() {
        return;
    }
    let mut queued: FxHashMap<u64, Vec<&Conn>> = FxHashMap::default();
    for (conn, listener) in view.tracker.in_accept_queues() {
        if conn.state() != TcpState::SynRecv {
            queued.entry(listener).or_default().push(conn);
        }
    }
    let other_ends = OtherEnds::find(view.tracker, queued.values().flatten().copied());
    for (subject, listeners) in listeners {
        let mut conns: Vec<&Conn> =
            listeners.iter().flat_map(|(conn, _)| queued.remove(&conn.cookie).unwrap_or_default()).collect();
        conns.sort_unstable_by_key(|conn| (conn.opened_ns(), conn.cookie));
        let found = Found { listeners: &listeners, queued: Group { conns } };
        let oldest_ns = view.thresholds.nanos(&OLDEST_SECONDS);
        if let Some(since_ns) =
            found.since_ns().filter(|since_ns| since_ns + oldest_ns <= view.tracker.swept_ns())
        {
            let ties = Ties {
                sockets: found.queued.sockets(),
                other_ends: other_ends.cookies(&found.queued.conns),
                listener: listeners.first().map(|(conn, _)| conn.cookie),
                ..Ties::default()
            };
            out.push(found.observation(view, subject, since_ns, ties));
        }
    }
}

/// The listeners in whose queue each look has found something for long enough.
fn waiting<'a>(view: &View<'a>) -> impl Iterator<Item = (&'a Conn, &'a Listening)> {
    let waits_ns = view.thresholds.nanos(&WAITS_SECONDS);
    let tracker = view.tracker;
    let listeners = tracker.table().in_state(TcpState::Listen);
    let with_queue = listeners.filter_map(|conn| Some((conn, tracker.queue(conn.cookie)?)));
    with_queue.filter(move |(_, queue)| queue.waited_ns() >= waits_ns)
}

/// The listeners of one subject in whose queues something waits.
struct Found<'a> {
    listeners: &'a [(&'a Conn, &'a Listening)],
    /// What the latest sweep found in them, oldest first.
    queued: Group<'a>,
}

impl Found<'_> {
    /// When the oldest of those that wait was established. Where the sweep does not list them, something was accepted from
    /// the queue since, or it has stood there since the first look.
    fn since_ns(&self) -> Option<u64> {
        let listed = self.queued.conns.first().map(|conn| conn.opened_ns());
        let unlisted = || {
            let (_, queue) = self.listeners.first()?;
            queue
                .waits_since_ns
                .filter(|since_ns| queue.shrank_ns.is_none_or(|shrank_ns| shrank_ns < *since_ns))
        };
        listed.or_else(unlisted)
    }

    /// Nothing was accepted since something waits: no look found less in the queue, and what was first there still is.
    fn has_stopped(&self) -> bool {
        let oldest_ns = self.queued.conns.first().map(|conn| conn.opened_ns());
        self.listeners.iter().all(|(_, queue)| {
            let Some(since_ns) = queue.waits_since_ns else { return false };
            queue.shrank_ns.is_none_or(|shrank_ns| shrank_ns < since_ns)
                && oldest_ns.is_none_or(|oldest_ns| oldest_ns <= since_ns)
        })
    }

    fn is_young(&self, view: &View<'_>) -> bool {
        let young_ns = view.thresholds.nanos(&YOUNG_SECONDS);
        let begun =
            |conn: &Conn| !conn.is(ConnFlags::STATE_OLDER) && conn.since_ns() + young_ns > view.now_ns;
        self.listeners.iter().all(|(conn, _)| begun(conn))
    }

    fn observation(&self, view: &View<'_>, subject: Subject, since_ns: u64, ties: Ties) -> Observation {
        let waiting: u64 = self.listeners.iter().map(|(_, queue)| u64::from(queue.queue.waiting)).sum();
        // The kernel admits one more than the limit (sk_acceptq_is_full in include/net/sock.h).
        let room: u64 = self.listeners.iter().map(|(_, queue)| u64::from(queue.queue.limit) + 1).sum();
        let is_full = self.listeners.iter().any(|(_, queue)| queue.queue.waiting > queue.queue.limit);
        let gone = self.queued.conns.iter().filter(|conn| conn.state() == TcpState::CloseWait).count();
        let unread: u64 = self.queued.conns.iter().map(|conn| u64::from(conn.unread_bytes)).sum();
        let age = view.seconds_since(since_ns);
        let stopped = self.has_stopped();
        let accepted = accepted(view, self.listeners);
        let lasts = age >= view.thresholds.get(&CRITICAL_SECONDS);
        let severity = match stopped {
            _ if self.is_young(view) => Severity::Info,
            true if lasts || is_full || gone >= view.thresholds.count(&GAVE_UP) => Severity::Critical,
            _ => Severity::Warning,
        };
        let is_lower_bound = self.queued.conns.first().is_none_or(|conn| conn.is(ConnFlags::OLDER));
        let members = self.listeners.iter().filter_map(|(conn, _)| conn.process);
        let members = members.map(|id| Member::from(view.tracker.processes().get(id)));
        let (name, port) = (subject.name().to_owned(), self.listeners[0].0.local.port);
        let gave_up = match gone {
            0 => String::new(),
            1 => "; the client of one of them has given up".to_owned(),
            gone => format!("; the clients of {gone} of them have given up"),
        };
        let waits = if waiting == 1 { "waits" } else { "wait" };
        let count = connections(usize::try_from(waiting).unwrap_or(usize::MAX));
        let rate = if stopped {
            format!("accepts nothing on port {port}")
        } else {
            format!("accepts on port {port} more slowly than connections come")
        };
        let mut observation = Observation {
            rule: SPEC.rule,
            severity,
            since_ns,
            since_is_lower_bound: is_lower_bound,
            count: waiting,
            evidence: vec![
                Evidence::new("waiting", waiting as f64, "connections").against(room as f64),
                Evidence::new("oldest", age, "seconds")
                    .against(view.thresholds.get(&OLDEST_SECONDS))
                    .at_least(is_lower_bound),
                Evidence::new("gave_up", gone as f64, "connections"),
                Evidence::new("unread", unread as f64, "bytes"),
                Evidence::new("accepted", accepted as f64, "connections"),
            ],
            summary: format!(
                "{name} {rate}: {count} {waits} in a queue that takes {room}, the oldest for {age:.0} s{gave_up}."
            ),
            next_step: format!(
                "See why {name} does not call accept(): a thread dump shows a blocked loop. It holds {accepted} accepted \
                 connections; a round number that stays is a limit, which idle keep-alive clients may fill."
            ),
            examples: self.queued.examples(),
            members: members.collect(),
            ties,
            subject,
        };
        observation.members.dedup();
        observation
    }
}

/// How many connections that these listeners made have been accepted and are open.
fn accepted(view: &View<'_>, listeners: &[(&Conn, &Listening)]) -> usize {
    let is_theirs = |conn: &&Conn| {
        let here = |(listener, _): &(&Conn, &Listening)| {
            (listener.netns, listener.local.port) == (conn.netns, conn.local.port)
                && (listener.local.is_wildcard() || listener.local.addr == conn.local.addr)
        };
        listeners.iter().any(here) && conn.accepted() == Some(true)
    };
    let states = [TcpState::Established, TcpState::CloseWait];
    states.into_iter().map(|state| view.tracker.table().in_state(state).filter(is_theirs).count()).sum()
}
