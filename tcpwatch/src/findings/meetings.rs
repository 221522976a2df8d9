//! Requests that met a close: data that a client sent over a connection which its server had closed, or was closing.
//!
//! In: ends by a reset ([`KeptEnds`](crate::model::tracker::kept_ends::KeptEnds)). Out: a [`Meeting`] for each, with both
//! ends where both are on this node, and whose it is: that of [`keepalive_race`](super::rules), where the request was on its
//! way, or of `stale_pooled_connection`, where the client had not noticed the close for long.

use rustc_hash::FxHashMap;

use crate::{
    events::decode::Endpoint,
    findings::{
        Rule,
        evidence::is_loopback,
        observation::{Subject, View},
    },
    model::{
        groups::{Closer, Role},
        idle_times::{ClientKey, IdleKey},
        table::Conn,
        tracker::kept_ends::KeptEnd,
    },
    tcp::{
        life::Step,
        modes::{Mode, modes},
        reset_reason::ResetReason,
        state::TcpState,
    },
};

/// How far back meetings count.
pub(in crate::findings) const WINDOW_NS: u64 = 900_000_000_000;
/// A meeting is judged when it is this old: then it is known whether the client dialled again.
const SETTLED_NS: u64 = 1_000_000_000;
/// An observation is made anew while the latest meeting is this young, so that a finding was last seen when that was.
const FRESH_NS: u64 = 12_000_000_000;
/// The two ends of one meeting end within this time.
const SAME_NS: u64 = 1_000_000_000;
/// A request that comes within this time of the close was on its way: a round trip, and the delay of an event loop.
const ON_ITS_WAY_NS: u64 = 1_000_000_000;
/// A client that closes so soon after its peer watches its idle connections.
const WATCHES_MS: u32 = 1000;
/// A farewell of this many bytes is no request: QUIT, COM_QUIT, a TLS close_notify.
const FAREWELL_BYTES: u64 = 31;
/// Idle for less than this, the connection was in use when it was closed: a limit of requests, a rollout.
const IDLE_NS: u64 = 100_000_000;
/// What servers close as they end they close within this time.
const AT_ONCE_NS: u64 = 1_000_000_000;

/// One request that met a close.
pub(in crate::findings) struct Meeting<'a> {
    pub(in crate::findings) client: Option<&'a KeptEnd>,
    pub(in crate::findings) server: Option<&'a KeptEnd>,
    pub(in crate::findings) rule: Rule,
    /// CLOCK_MONOTONIC when the connection ended by it.
    pub(in crate::findings) at_ns: u64,
    /// CLOCK_MONOTONIC when the server's FIN was sent, or came.
    pub(in crate::findings) closed_ns: u64,
    /// How long the connection had been idle at the close; 0 for one in use.
    pub(in crate::findings) idle_ns: u64,
    /// Bytes of the request, as far as is known.
    pub(in crate::findings) bytes: u64,
    /// The request was sent before the FIN came.
    pub(in crate::findings) in_flight: bool,
}

impl Meeting<'_> {
    /// From the close to the reset.
    pub(in crate::findings) fn delay_ns(&self) -> u64 {
        self.at_ns.saturating_sub(self.closed_ns)
    }

    pub(in crate::findings) fn was_in_use(&self) -> bool {
        self.idle_ns < IDLE_NS
    }

    pub(in crate::findings) fn idle_ms(&self) -> u32 {
        u32::try_from(self.idle_ns / 1_000_000).unwrap_or(u32::MAX)
    }

    /// The time-outs at which the server closes idle connections, as far as samples show: at its own end, where that is here.
    pub(in crate::findings) fn server_modes(&self, view: &View<'_>) -> Vec<Mode> {
        match (self.server, self.client) {
            (Some(server), _) => idle_modes(view, &server.conn, Closer::Local),
            (None, Some(client)) => idle_modes(view, &client.conn, Closer::Peer),
            (None, None) => Vec::new(),
        }
    }

    /// The time-outs at which the client closes idle connections itself.
    pub(in crate::findings) fn client_modes(&self, view: &View<'_>) -> Vec<Mode> {
        self.client.map_or_else(Vec::new, |client| idle_modes(view, &client.conn, Closer::Local))
    }
}

fn idle_modes(view: &View<'_>, conn: &Conn, closer: Closer) -> Vec<Mode> {
    let key = IdleKey { netns: conn.netns, role: conn.role, server: conn.peer(), closer };
    modes(view.tracker.idle_times().closes(&key), view.tracker.tick_ms())
}

/// Whether they were all closed at one moment: the server ended.
pub(in crate::findings) fn were_closed_at_once(meetings: &[&Meeting<'_>]) -> bool {
    let at = || meetings.iter().map(|meeting| meeting.closed_ns);
    let (Some(first), Some(last)) = (at().min(), at().max()) else { return false };
    meetings.len() > 1 && last - first <= AT_ONCE_NS
}

/// The meetings of a rule in the window by whom they are about, oldest first; of subjects that have a new one.
pub(in crate::findings) fn of_rule<'a>(view: &View<'a>, rule: Rule) -> FxHashMap<Subject, Vec<Meeting<'a>>> {
    let mut found: FxHashMap<Subject, Vec<Meeting<'a>>> = FxHashMap::default();
    let fresh_ns = view.now_ns.saturating_sub(FRESH_NS);
    if view.tracker.kept_ends().met_close().back().is_none_or(|end| end.ended_ns < fresh_ns) {
        return found;
    }
    for meeting in all(view).into_iter().filter(|meeting| meeting.rule == rule) {
        // A race is the server's setting; a client that does not notice a close is the client's.
        let end = match rule {
            Rule::KeepaliveRace => meeting.server.or(meeting.client),
            _ => meeting.client.or(meeting.server),
        };
        if let Some(end) = end {
            found.entry(Subject::of(view.tracker, &end.conn)).or_default().push(meeting);
        }
    }
    found.retain(|_, meetings| meetings.last().is_some_and(|last| last.at_ns >= fresh_ns));
    found
}

/// All of the window, oldest first.
fn all<'a>(view: &View<'a>) -> Vec<Meeting<'a>> {
    let from_ns = view.now_ns.saturating_sub(WINDOW_NS);
    let settled_ns = view.now_ns.saturating_sub(SETTLED_NS);
    let ends = view.tracker.kept_ends().met_close().iter();
    let ends = ends.filter(|end| (from_ns..=settled_ns).contains(&end.ended_ns));
    let (clients, servers): (Vec<&KeptEnd>, Vec<&KeptEnd>) =
        ends.partition(|end| reason(end) == Some(ResetReason::PeerClosed));
    let mut by_ends: FxHashMap<(Endpoint, Endpoint), Vec<&KeptEnd>> = FxHashMap::default();
    for server in servers.into_iter().filter(|end| end.conn.role == Role::Server) {
        by_ends.entry((server.conn.local, server.conn.remote)).or_default().push(server);
    }
    let mut found = Vec::new();
    for client in clients.into_iter().filter(|end| end.conn.role == Role::Client) {
        let there = by_ends.get_mut(&(client.conn.remote, client.conn.local));
        let server = there.and_then(|there| {
            let place = there.iter().position(|server| are_one(client, server))?;
            Some(there.swap_remove(place))
        });
        found.extend(met(Some(client), server));
    }
    found.extend(by_ends.into_values().flatten().filter_map(|server| met(None, Some(server))));
    found.sort_by_key(|meeting| meeting.at_ns);
    decide(view, &mut found);
    found
}

fn reason(end: &KeptEnd) -> Option<ResetReason> {
    end.conn.reset().map(|reset| reset.reason)
}

fn are_one(client: &KeptEnd, server: &KeptEnd) -> bool {
    let reach = client.conn.netns == server.conn.netns || !is_loopback(client.conn.remote.addr);
    reach && client.ended_ns.abs_diff(server.ended_ns) <= SAME_NS
}

/// The meeting of these ends; `None` where it was no request, or the connection had served none before.
fn met<'a>(client: Option<&'a KeptEnd>, server: Option<&'a KeptEnd>) -> Option<Meeting<'a>> {
    let end = client.or(server)?;
    let (closer, state) = match client {
        Some(_) => (Closer::Peer, TcpState::CloseWait),
        None => (Closer::Local, TcpState::FinWait1),
    };
    let conn = &end.conn;
    let closed_ns = conn.life().steps().find(|step: &Step| step.state == state)?.since_ns;
    let unacknowledged = conn.reset().map_or(0, |reset| reset.discarded.unacknowledged_bytes);
    let after = conn.after_close_bytes();
    let in_flight = client.is_some() && after.unwrap_or(0) == 0 && unacknowledged > 0;
    let bytes = after.filter(|bytes| *bytes > 0).unwrap_or(unacknowledged);
    let is_farewell = client.is_some_and(|client| client.dialled_ns.is_none()) && bytes <= FAREWELL_BYTES;
    let served = conn.traffic().is_none_or(|traffic| {
        let (sent, received) = (traffic.sent_bytes, traffic.received_bytes);
        // What a server receives after it has closed is not counted.
        if client.is_some() { sent > bytes && received > 0 } else { sent > 0 && received > 0 }
    });
    (served && !is_farewell).then(|| Meeting {
        client,
        server,
        rule: Rule::KeepaliveRace,
        at_ns: end.ended_ns,
        closed_ns,
        idle_ns: conn.idle().map_or(0, |idle| idle.before_close(closer)),
        bytes,
        in_flight,
    })
}

/// Decides which are races, and which are connections whose close the client had not noticed: by whether it watches its idle
/// connections, which its other closes show, or requests that came long after a close.
fn decide(view: &View<'_>, meetings: &mut [Meeting<'_>]) {
    let mut unnoticed: FxHashMap<ClientKey, bool> = FxHashMap::default();
    for meeting in meetings.iter() {
        if let Some(client) = meeting.client {
            let key = client_key(view, &client.conn);
            let long_after = !meeting.in_flight && meeting.delay_ns() > ON_ITS_WAY_NS;
            let dwell = || view.tracker.idle_times().median_dwell_ms(&key);
            let late = unnoticed.get(&key).copied().unwrap_or(false)
                || dwell().map_or(long_after, |median_ms| median_ms > WATCHES_MS && long_after);
            unnoticed.insert(key, late);
        }
    }
    for meeting in meetings {
        let stale = match meeting.client {
            Some(client) => {
                !meeting.in_flight && unnoticed.get(&client_key(view, &client.conn)) == Some(&true)
            }
            None => meeting.delay_ns() > ON_ITS_WAY_NS,
        };
        if stale {
            meeting.rule = Rule::StalePooledConnection;
        }
    }
}

fn client_key(view: &View<'_>, conn: &Conn) -> ClientKey {
    let process = conn.process.map(|id| view.tracker.processes().get(id).comm.clone());
    ClientKey { netns: conn.netns, process, server: conn.peer() }
}
