//! Counts retransmits and stalls by connection and group. The sum of retransmits over all groups is what the kernel counts
//! (`TcpRetransSegs`).
//!
//! Retransmits of a SYN-ACK belong to the listener, because no connection exists yet. The connection inherits their number
//! (`newtp->total_retrans = req->num_retrans` in tcp_create_openreq_child, net/ipv4/tcp_minisocks.c), so its count starts
//! there.

use crate::{
    events::decode::{Kind, Retransmits, SocketRecord},
    model::{
        groups::{GroupId, Peer, Role},
        processes::Activity,
        socket_retransmits::{Retransmitted, SocketRetransmits},
        table::{ConnFlags, ConnKey},
        tracker::Tracker,
    },
    tcp::state::TcpState,
};

/// Sockets without a place in the table whose retransmits are counted as they happen; those of any more are counted when
/// they end. The BPF programs count as many at once.
const UNLISTED: usize = 16384;

impl Tracker {
    /// Applies a record of retransmits. `total`: the socket's own count, where it is known.
    pub(crate) fn retransmitted(
        &mut self,
        record: &SocketRecord,
        state: TcpState,
        total: Option<u32>,
        reported: &Retransmits,
    ) {
        let Some(key) = self.find_or_insert(&record.socket, state, record.time_ns) else {
            self.count_unlisted(record, reported);
            return;
        };
        let unlisted = self.unlisted.remove(&record.socket.cookie);
        let conn = self.table.get_mut(key);
        let (older, before) = (conn.is(ConnFlags::OLDER), conn.total_retrans());
        let retransmits = conn.retransmits.get_or_insert_with(|| Box::new(unlisted.unwrap_or_default()));
        let delta = retransmits.delta(reported);
        let segments = delta.segments;
        let new: u64 = segments.iter().sum();
        let new_bounded = u32::try_from(new).unwrap_or(u32::MAX);
        let total = total.unwrap_or_else(|| before.unwrap_or(0).saturating_add(new_bounded));
        let known = before.unwrap_or(total.saturating_sub(new_bounded));
        let new = retransmits.count(reported, segments, total.saturating_sub(known).into(), older);
        conn.set_total_retrans(known.max(total));
        self.count_retransmitted(key, &new, record.time_ns);
        self.note_trouble(key, record.time_ns, reported, &delta);
        if !delta.is_only_segments()
            && let Some(group) = self.group_or_server(key, record.time_ns)
        {
            self.groups.counts(group).add_delta(&delta);
        }
    }

    /// Counts what is new in the socket's own count. The first count of an older connection only says where to start.
    pub(crate) fn count_retransmits(&mut self, key: ConnKey, total: u32, now_ns: u64) {
        let conn = self.table.get_mut(key);
        let before = conn.total_retrans().unwrap_or(total);
        let new = total.saturating_sub(before);
        conn.set_total_retrans(before.max(total));
        if new > 0 {
            // Records report kinds, and come first: no program saw the rest.
            let new = Retransmitted::unknown(new.into());
            conn.retransmits.get_or_insert_default().counted.add(&new);
            self.count_retransmitted(key, &new, now_ns);
        }
    }

    fn count_retransmitted(&mut self, key: ConnKey, new: &Retransmitted, now_ns: u64) {
        if *new == Retransmitted::default() {
            return;
        }
        if let Some(group) = self.group_or_server(key, now_ns) {
            self.groups.counts(group).retransmitted.add(new);
            self.count_activity(key, Activity::retransmits(new.total()));
        }
    }

    /// The group of the connection; of a listener the one of the connections that it makes.
    fn group_or_server(&mut self, key: ConnKey, now_ns: u64) -> Option<GroupId> {
        let conn = self.table.get_mut(key);
        if conn.role == Role::Listener && conn.group.is_none() {
            let process = conn.process.map(|id| &self.processes.get(id).comm);
            conn.group = Some(self.groups.hold(process, Role::Server, conn.peer(), now_ns));
        }
        self.group(key, now_ns)
    }

    /// Counts retransmits of a socket that has no place in the table, so that its owner is not known.
    fn count_unlisted(&mut self, record: &SocketRecord, reported: &Retransmits) {
        let cookie = record.socket.cookie;
        if self.unlisted.len() >= UNLISTED && !self.unlisted.contains_key(&cookie) {
            return;
        }
        let retransmits = self.unlisted.entry(cookie).or_default();
        let delta = retransmits.delta(reported);
        let new = retransmits.count(reported, delta.segments, delta.segments.iter().sum(), true);
        let counts = self.groups.counts_of(None, Role::Unknown, Peer::Unknown, record.time_ns);
        counts.retransmitted.add(&new);
        counts.add_delta(&delta);
        self.processes.count(None, Activity::retransmits(new.total()));
    }

    /// The end of a socket that has no place in the table.
    pub(crate) fn end_unlisted(&mut self, cookie: u64) {
        self.unlisted.remove(&cookie);
    }
}

impl Retransmits {
    /// One segment, by itself.
    pub(crate) fn one(time_ns: u64, state: TcpState) -> Self {
        let mut one = Self { since_ns: time_ns, ..Self::default() };
        let kind = if state == TcpState::SynSent { Kind::Syn } else { Kind::Unknown };
        one.segments[kind as usize] = 1;
        one
    }
}

/// By socket cookie.
pub(crate) type Unlisted = rustc_hash::FxHashMap<u64, SocketRetransmits>;
