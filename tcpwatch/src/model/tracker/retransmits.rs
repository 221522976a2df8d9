//! Retransmits and stalls: whose they are, and how many of them are new. The sum of retransmits over all groups is what
//! the kernel counts (`TcpRetransSegs`).
//!
//! Those of a SYN-ACK belong to the listener, as no connection exists yet; the connection that comes of it inherits their
//! number (`newtp->total_retrans = req->num_retrans` in tcp_create_openreq_child, net/ipv4/tcp_minisocks.c), so there
//! counting starts.

use crate::{
    events::decode::{Kind, Retransmits, SocketRecord},
    model::{
        groups::{GroupId, Peer, Role},
        socket_retransmits::{Retransmitted, SocketRetransmits},
        table::{ConnFlags, ConnKey},
        tracker::Tracker,
    },
    tcp::state::TcpState,
};

/// Sockets without a place in the table whose retransmits are counted as they happen; those of more are counted when
/// they end. As many as the programs count at once.
const UNLISTED: usize = 16384;

impl Tracker {
    /// `total`: the socket's own count, where it is known.
    pub(crate) fn retransmitted(
        &mut self,
        record: &SocketRecord,
        state: TcpState,
        total: Option<u32>,
        told: &Retransmits,
    ) {
        let Some(slot) = self.find_or_insert(&record.socket, state, record.time_ns) else {
            self.count_unlisted(record, told);
            return;
        };
        let unlisted = self.unlisted.remove(&record.socket.cookie);
        let conn = self.table.get_mut(slot);
        let older = conn.is(ConnFlags::OLDER);
        let tally = conn.retransmits.get_or_insert_with(|| Box::new(unlisted.unwrap_or_default()));
        let news = tally.news(told);
        let segments = news.segments;
        let new: u64 = segments.iter().sum();
        let new_bounded = u32::try_from(new).unwrap_or(u32::MAX);
        let total = total.unwrap_or_else(|| conn.total_retrans.unwrap_or(0).saturating_add(new_bounded));
        let known = conn.total_retrans.unwrap_or(total.saturating_sub(new_bounded));
        conn.total_retrans = Some(known.max(total));
        let new = tally.count(told, segments, total.saturating_sub(known).into(), older);
        self.count_retransmitted(slot, &new, record.time_ns);
        if !news.is_only_segments()
            && let Some(group) = self.group_or_server(slot, record.time_ns)
        {
            self.groups.counts(group).add_news(&news);
        }
    }

    /// What is new since the last look at the socket's own count. Of an older connection the first look only says
    /// where counting starts.
    pub(crate) fn count_retransmits(&mut self, slot: ConnKey, total: u32, now_ns: u64) {
        let conn = self.table.get_mut(slot);
        let new = conn.total_retrans.map_or(0, |last| total.saturating_sub(last));
        conn.total_retrans = conn.total_retrans.max(Some(total));
        if new > 0 {
            // Records tell of kinds, and come before: what is left no program saw.
            let new = Retransmitted::unknown(new.into());
            conn.retransmits.get_or_insert_default().counted.add(&new);
            self.count_retransmitted(slot, &new, now_ns);
        }
    }

    fn count_retransmitted(&mut self, slot: ConnKey, new: &Retransmitted, now_ns: u64) {
        if *new == Retransmitted::default() {
            return;
        }
        if let Some(group) = self.group_or_server(slot, now_ns) {
            self.groups.counts(group).retransmitted.add(new);
        }
    }

    /// A listener's are counted with those of the connections that it makes.
    fn group_or_server(&mut self, slot: ConnKey, now_ns: u64) -> Option<GroupId> {
        let conn = self.table.get_mut(slot);
        if conn.role == Role::Listener && conn.group.is_none() {
            let process = conn.process.map(|id| &self.processes.get(id).comm);
            conn.group = Some(self.groups.hold(process, Role::Server, conn.peer(), now_ns));
        }
        self.group(slot, now_ns)
    }

    /// The table has no place for it, so whose it is is not known.
    fn count_unlisted(&mut self, record: &SocketRecord, told: &Retransmits) {
        let cookie = record.socket.cookie;
        if self.unlisted.len() >= UNLISTED && !self.unlisted.contains_key(&cookie) {
            return;
        }
        let tally = self.unlisted.entry(cookie).or_default();
        let news = tally.news(told);
        let new = tally.count(told, news.segments, news.segments.iter().sum(), true);
        let counts = self.groups.counts_of(None, Role::Unknown, Peer::Unknown, record.time_ns);
        counts.retransmitted.add(&new);
        counts.add_news(&news);
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

/// By the cookie of the socket.
pub(crate) type Unlisted = rustc_hash::FxHashMap<u64, SocketRetransmits>;
