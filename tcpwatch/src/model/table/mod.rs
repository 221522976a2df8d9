//! The connections that exist now: a slab, found by socket cookie, listed by state.
//!
//! The lists find a connection that stands too long in a state without a walk through all others. A minisock (TIME_WAIT,
//! orphaned FIN_WAIT2) is also found by its ends, because a socket that reuses those ends replaces it.
//! Bounded by `limit`; the caller decides what happens when it is reached.

mod conn;
mod tallies;

use std::{cell::Cell, hash::BuildHasher as _};

use hashbrown::{HashTable, hash_table::Entry};
use rustc_hash::FxBuildHasher;
use slab::Slab;

use self::tallies::Tallies;
pub use self::{
    conn::{Conn, ConnFlags, EndFacts, Idle, ProcessSeen, Standing},
    tallies::{PortUse, StateCounts},
};
use crate::{
    events::decode::{Ends, Socket, Traffic},
    model::{groups::Role, processes::ProcessId},
    tcp::{
        life::{Cause, Life},
        state::TcpState,
    },
};

/// The place of a connection in the table; valid while the connection is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnKey(u32);

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
    len: usize,
}

/// The index of the list of minisocks in FIN_WAIT2, behind the list of each state: their timers start when they become
/// minisocks, not when they enter the state.
const ORPHANED_FIN_WAIT2: usize = TcpState::COUNT;

/// How far a minisock may stand behind its exact place in the order of expiry. Each sweep reads the kernel's clocks anew,
/// which shifts the computed expiry of a step of the timer wheel a little; without this slack each new minisock would walk
/// past all minisocks of its step.
const EXPIRY_SLACK_NS: u64 = 50_000_000;

/// Connections for which address space is reserved at the start, unless the limit is lower. Only used pages take memory. A
/// growing table would be copied, because the allocator remaps only its largest blocks.
const RESERVED_ROWS: usize = 1 << 20;

/// An entry of an index: the connection's place and its hash, so that the index grows without reading connections.
#[derive(Clone, Copy)]
struct IndexEntry {
    hash: u32,
    conn: u32,
}

pub struct Table {
    conns: Slab<Conn>,
    by_cookie: HashTable<IndexEntry>,
    minisocks: HashTable<IndexEntry>,
    /// The connections found last, by the lower bits of their cookies: the records of a connection arrive close to each
    /// other and to those of its other end.
    recent: [Cell<u32>; 8],
    lists: [List; TcpState::COUNT + 1],
    tallies: Tallies,
    limit: usize,
}

impl Table {
    pub fn new(limit: usize) -> Self {
        Self {
            conns: Slab::with_capacity(limit.min(RESERVED_ROWS)),
            by_cookie: HashTable::new(),
            minisocks: HashTable::new(),
            recent: Default::default(),
            lists: [List { first: NONE, last: NONE, len: 0 }; TcpState::COUNT + 1],
            tallies: Tallies::default(),
            limit,
        }
    }

    pub fn is_full(&self) -> bool {
        self.conns.len() >= self.limit
    }

    pub fn len(&self) -> usize {
        self.conns.len()
    }

    pub fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }

    #[inline]
    pub fn get(&self, key: ConnKey) -> &Conn {
        &self.conns[key.0 as usize]
    }

    /// The connection, to change anything but what the table counts it by: its state, process, ends and role have methods of
    /// their own.
    #[inline]
    pub fn get_mut(&mut self, key: ConnKey) -> &mut Conn {
        &mut self.conns[key.0 as usize]
    }

    pub fn find(&self, cookie: u64) -> Option<ConnKey> {
        let recent = self.recent(cookie);
        if let Some(conn) = self.conns.get(recent.get() as usize)
            && conn.cookie == cookie
            && !conn.has_lost_cookie()
        {
            return Some(ConnKey(recent.get()));
        }
        let found = self.find_in_index(cookie)?;
        recent.set(found.0);
        Some(found)
    }

    fn recent(&self, cookie: u64) -> &Cell<u32> {
        &self.recent[cookie as usize % self.recent.len()]
    }

    fn find_in_index(&self, cookie: u64) -> Option<ConnKey> {
        let hash = hash(cookie);
        let same =
            |entry: &IndexEntry| entry.hash == hash && self.conns[entry.conn as usize].cookie == cookie;
        self.by_cookie.find(spread(hash), same).map(|entry| ConnKey(entry.conn))
    }

    /// The minisock with these ends, seen from its own side.
    pub fn find_minisock(&self, ends: Ends) -> Option<ConnKey> {
        let hash = hash_ends(&ends);
        let same = |entry: &IndexEntry| entry.hash == hash && self.conns[entry.conn as usize].ends() == ends;
        self.minisocks.find(spread(hash), same).map(|entry| ConnKey(entry.conn))
    }

    /// Adds a connection that is not in the table; its owner and group are set afterwards.
    pub fn insert(
        &mut self,
        socket: &Socket,
        life: Life,
        role: Role,
        now_ns: u64,
        flags: ConnFlags,
    ) -> ConnKey {
        let conn = Conn {
            cookie: socket.cookie,
            netns: socket.netns,
            interface: socket.interface,
            local: socket.local,
            remote: socket.remote,
            life,
            seen_ns: now_ns,
            expires_ns: u64::MAX,
            opener: None,
            process: None,
            closer: None,
            group: None,
            role,
            // Also where the connection continues one that had these flags.
            flags: flags - (ConnFlags::TRAFFIC_KNOWN | ConnFlags::AFTER_CLOSE_KNOWN),
            error: 0,
            total_retrans: if flags.contains(ConnFlags::OLDER) { conn::UNKNOWN } else { 0 },
            retransmits: None,
            end: None,
            traffic: Traffic::default(),
            connect: None,
            unread_bytes: 0,
            swept: 0,
            list: 0,
            previous: NONE,
            next: NONE,
        };
        let key = self.conns.insert(conn) as u32;
        self.index_cookie(key, socket.cookie);
        self.link(key);
        self.tallies.add(&self.conns[key as usize]);
        ConnKey(key)
    }

    /// The kernel knows the connection's minisock by another cookie than its full socket, which had none when the minisock
    /// was made.
    pub fn set_cookie(&mut self, key: ConnKey, cookie: u64) {
        self.forget_cookie(key.0, self.get(key).cookie);
        self.get_mut(key).cookie = cookie;
        self.index_cookie(key.0, cookie);
    }

    fn index_cookie(&mut self, key: u32, cookie: u64) {
        let hash = hash(cookie);
        self.by_cookie
            .insert_unique(spread(hash), IndexEntry { hash, conn: key }, |entry| spread(entry.hash));
        self.recent(cookie).set(key);
    }

    /// Moves the connection to `state` at `now_ns`.
    pub fn enter(&mut self, key: ConnKey, state: TcpState, cause: Cause, now_ns: u64) {
        self.unlink(key.0);
        let conn = &mut self.conns[key.0 as usize];
        self.tallies.move_state(conn.process, conn.state(), state);
        conn.life.enter(state, cause, now_ns);
        conn.seen_ns = now_ns;
        conn.flags.remove(ConnFlags::STATE_OLDER);
        self.link(key.0);
    }

    /// Makes the connection belong to `process`, and returns to whom it belonged.
    pub fn set_process(&mut self, key: ConnKey, process: Option<ProcessId>) -> Option<ProcessId> {
        let conn = &mut self.conns[key.0 as usize];
        let before = std::mem::replace(&mut conn.process, process);
        self.tallies.move_process(conn.state(), before, process);
        before
    }

    /// Changes anything by which the connection takes a local port: its ends and its role.
    pub fn change_ends(&mut self, key: ConnKey, change: impl FnOnce(&mut Conn)) {
        let conn = &mut self.conns[key.0 as usize];
        let before = PortUse::of(conn);
        change(conn);
        self.tallies.move_port(before, PortUse::of(conn));
    }

    /// Connections by state, of those that belong to `process`, or to none that is known.
    pub fn states_of(&self, process: Option<ProcessId>) -> StateCounts {
        self.tallies.states_of(process)
    }

    /// How many processes have connections; each program that a process ran counts by itself.
    pub fn owners(&self) -> usize {
        self.tallies.owners()
    }

    /// How many connections of clients need a local port of their own, by what they need it toward.
    pub fn ports(&self) -> impl Iterator<Item = (&PortUse, u32)> {
        self.tallies.ports()
    }

    /// Times that a connection was not counted in [`Table::ports`], as there were too many destinations.
    pub fn ports_left_out(&self) -> u64 {
        self.tallies.ports_left_out()
    }

    /// The kernel replaced the socket by a minisock in the connection's present state. Returns the minisock that had the
    /// same ends until now: it is over and no longer found by them.
    #[must_use]
    pub fn shrink(&mut self, key: ConnKey, expires_ns: u64) -> Option<ConnKey> {
        if self.get(key).is(ConnFlags::MINISOCK) {
            self.expire_at(key, expires_ns);
            return None;
        }
        self.unlink(key.0);
        let conn = self.get_mut(key);
        conn.flags.insert(ConnFlags::MINISOCK);
        conn.expires_ns = expires_ns;
        let (ends, cookie, lost) = (conn.ends(), conn.cookie, conn.has_lost_cookie());
        self.link(key.0);
        if lost {
            self.forget_cookie(key.0, cookie);
        }
        let conns = &self.conns;
        let entry = IndexEntry { hash: hash_ends(&ends), conn: key.0 };
        let same = |other: &IndexEntry| other.hash == entry.hash && conns[other.conn as usize].ends() == ends;
        match self.minisocks.entry(spread(entry.hash), same, |entry| spread(entry.hash)) {
            Entry::Occupied(mut had) => Some(ConnKey(std::mem::replace(had.get_mut(), entry).conn)),
            Entry::Vacant(free) => {
                free.insert(entry);
                None
            }
        }
    }

    fn forget_cookie(&mut self, key: u32, cookie: u64) {
        if let Ok(entry) = self.by_cookie.find_entry(spread(hash(cookie)), |entry| entry.conn == key) {
            entry.remove();
        }
    }

    /// Corrects when a minisock expires.
    pub fn expire_at(&mut self, key: ConnKey, expires_ns: u64) {
        let conn = self.get_mut(key);
        conn.expires_ns = expires_ns;
        // Searched from its present place: a correction moves it little, and many minisocks stand behind it.
        let (list, mut before, mut after) = (usize::from(conn.list), conn.previous, conn.next);
        let sooner =
            self.conns.get(before as usize).is_some_and(|conn| is_later(conn.expires_ns, expires_ns));
        while let Some(conn) = self.conns.get(after as usize)
            && is_later(expires_ns, conn.expires_ns)
        {
            (before, after) = (after, conn.next);
        }
        if sooner || before != self.get(key).previous {
            self.unlink(key.0);
            self.link_behind(key.0, list, before);
        }
    }

    /// The minisock's timer starts anew: the minisock moves to the end of its list, or nearly.
    pub fn restart_timer(&mut self, key: ConnKey, expires_ns: u64) {
        self.unlink(key.0);
        self.get_mut(key).expires_ns = expires_ns;
        self.link(key.0);
    }

    pub fn remove(&mut self, key: ConnKey) -> Conn {
        self.unlink(key.0);
        let conn = self.conns.remove(key.0 as usize);
        self.tallies.subtract(&conn);
        self.forget_cookie(key.0, conn.cookie);
        if conn.is(ConnFlags::MINISOCK)
            && let Ok(entry) =
                self.minisocks.find_entry(spread(hash_ends(&conn.ends())), |entry| entry.conn == key.0)
        {
            entry.remove();
        }
        conn
    }

    pub fn has_minisocks(&self) -> bool {
        !self.minisocks.is_empty()
    }

    pub fn count(&self, state: TcpState) -> usize {
        let orphaned = if state == TcpState::FinWait2 { self.lists[ORPHANED_FIN_WAIT2].len } else { 0 };
        self.lists[state.index()].len + orphaned
    }

    pub fn iter(&self) -> impl Iterator<Item = &Conn> {
        self.conns.iter().map(|(_, conn)| conn)
    }

    pub fn keys(&self) -> impl Iterator<Item = (ConnKey, &Conn)> {
        self.conns.iter().map(|(key, conn)| (ConnKey(key as u32), conn))
    }

    /// The connections in `state`.
    pub fn in_state(&self, state: TcpState) -> impl Iterator<Item = &Conn> + use<'_> {
        let orphaned = (state == TcpState::FinWait2).then(|| self.walk(ORPHANED_FIN_WAIT2));
        self.walk(state.index()).chain(orphaned.into_iter().flatten())
    }

    /// The connections that entered `state` at or before `limit_ns`. Walks the whole list: connections that a sweep found
    /// stand behind younger ones.
    pub fn lingering(&self, state: TcpState, limit_ns: u64) -> impl Iterator<Item = &Conn> + use<'_> {
        self.in_state(state).filter(move |conn| conn.since_ns() <= limit_ns)
    }

    /// The minisock in this state that expires first.
    pub fn oldest_minisock(&self, state: TcpState) -> Option<(ConnKey, &Conn)> {
        let list = if state == TcpState::FinWait2 { ORPHANED_FIN_WAIT2 } else { state.index() };
        let first = self.lists[list].first;
        (first != NONE)
            .then(|| (ConnKey(first), &self.conns[first as usize]))
            .filter(|(_, conn)| conn.is(ConnFlags::MINISOCK))
    }

    fn walk(&self, list: usize) -> impl Iterator<Item = &Conn> + use<'_> {
        let mut at = self.lists[list].first;
        std::iter::from_fn(move || {
            let conn = self.conns.get(at as usize)?;
            at = conn.next;
            Some(conn)
        })
    }

    fn link(&mut self, key: u32) {
        let conn = &self.conns[key as usize];
        let list = if conn.is(ConnFlags::MINISOCK) && conn.state() == TcpState::FinWait2 {
            ORPHANED_FIN_WAIT2
        } else {
            conn.state().index()
        };
        self.link_behind(key, list, self.lists[list].last);
    }

    /// Links it behind `previous`, or further to the front where `previous` and others expire later. Only minisocks expire;
    /// all others belong at the end of the list. Minisocks nearly always do too, as all their timers run equally long.
    fn link_behind(&mut self, key: u32, list: usize, mut previous: u32) {
        let expires_ns = self.conns[key as usize].expires_ns;
        if expires_ns != u64::MAX {
            while let Some(before) = self.conns.get(previous as usize)
                && is_later(before.expires_ns, expires_ns)
            {
                previous = before.previous;
            }
        }
        let next = match self.conns.get_mut(previous as usize) {
            Some(before) => std::mem::replace(&mut before.next, key),
            None => std::mem::replace(&mut self.lists[list].first, key),
        };
        match self.conns.get_mut(next as usize) {
            Some(after) => after.previous = key,
            None => self.lists[list].last = key,
        }
        let conn = &mut self.conns[key as usize];
        (conn.list, conn.previous, conn.next) = (list as u8, previous, next);
        self.lists[list].len += 1;
    }

    fn unlink(&mut self, key: u32) {
        let conn = &self.conns[key as usize];
        let (list, previous, next) = (conn.list as usize, conn.previous, conn.next);
        match self.conns.get_mut(previous as usize) {
            Some(before) => before.next = next,
            None => self.lists[list].first = next,
        }
        match self.conns.get_mut(next as usize) {
            Some(after) => after.previous = previous,
            None => self.lists[list].last = previous,
        }
        self.lists[list].len -= 1;
    }
}

/// Whether a minisock expires later than another by more than the slack.
fn is_later(expires_ns: u64, than_ns: u64) -> bool {
    expires_ns > than_ns.saturating_add(EXPIRY_SLACK_NS)
}

/// The kernel assigns cookies in sequence to the sockets that a processor creates, and records of sockets created together
/// arrive together: sixteen consecutive cookies lie side by side, so that their records find them in the processor's cache.
fn hash(cookie: u64) -> u32 {
    side_by_side(FxBuildHasher.hash_one(cookie >> 4), cookie as u32 & 0xf, 4)
}

/// The ephemeral ports of one client toward one server rise a little with each connection: 128 consecutive ports lie side
/// by side. Both ends of a connection within this machine have the same hash; so have the few connections that differ only
/// in the interface.
fn hash_ends(Ends { netns, local, remote, .. }: &Ends) -> u32 {
    let (ports, lower) = (local.port ^ remote.port, local.port.min(remote.port));
    let [local, remote] = [local, remote].map(|end| FxBuildHasher.hash_one(end.addr.to_bits()));
    let block = u64::from(*netns) << 32 | u64::from(ports >> 7) << 16 | u64::from(lower);
    side_by_side(FxBuildHasher.hash_one(block ^ local.wrapping_add(remote)), u32::from(ports >> 1) & 0x3f, 6)
}

/// `place`: the place within its block of `1 << bits`.
fn side_by_side(block: u64, place: u32, bits: u32) -> u32 {
    let block = (block ^ (block >> 32)) as u32;
    // Neighbours must differ in the bits that hashbrown compares first (see `spread`).
    (block << bits | place) ^ (place << 25)
}

/// hashbrown takes the place from the lower bits and compares the seven uppermost bits first.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::events::decode::Endpoint;

    const SECOND: u64 = 1_000_000_000;

    fn socket(cookie: u64) -> Socket {
        let end = |port| Endpoint { addr: Ipv6Addr::LOCALHOST, port };
        Socket::new(cookie, 1, end(cookie as u16), end(80), 0)
    }

    fn insert(table: &mut Table, cookie: u64, state: TcpState, now_ns: u64) -> ConnKey {
        let life = Life::new(state, Cause::Peer, now_ns);
        table.insert(&socket(cookie), life, Role::Client, now_ns, ConnFlags::default())
    }

    fn cookies<'a>(conns: impl Iterator<Item = &'a Conn>) -> Vec<u64> {
        conns.map(|conn| conn.cookie).collect()
    }

    #[test]
    fn lists_keep_the_order_of_entry_through_moves_and_removals() {
        let mut table = Table::new(10);
        let keys: Vec<_> =
            (0..4).map(|cookie| insert(&mut table, cookie, TcpState::Established, cookie)).collect();
        table.enter(keys[1], TcpState::CloseWait, Cause::Peer, 10);
        table.enter(keys[3], TcpState::CloseWait, Cause::Peer, 11);
        table.enter(keys[0], TcpState::CloseWait, Cause::Peer, 12);
        table.remove(keys[3]);
        assert_eq!(cookies(table.in_state(TcpState::CloseWait)), [1, 0]);
        assert_eq!(cookies(table.in_state(TcpState::Established)), [2]);
        assert_eq!(cookies(table.lingering(TcpState::CloseWait, 11)), [1]);
        assert_eq!(table.count(TcpState::CloseWait), 2);
        assert_eq!(table.find(3), None);
        assert_eq!(table.find(2), Some(keys[2]));
    }

    #[test]
    fn minisocks_stand_in_the_order_in_which_they_expire_whatever_corrects_their_timers() {
        let mut table = Table::new(10);
        let keys: Vec<_> = (0..5)
            .map(|cookie| {
                let key = insert(&mut table, cookie, TcpState::TimeWait, cookie);
                assert_eq!(table.shrink(key, 10 * cookie * SECOND), None);
                key
            })
            .collect();
        for (which, expires, order) in [
            (2, 21, [0, 1, 2, 3, 4]),
            (2, 30, [0, 1, 2, 3, 4]),
            (2, 31, [0, 1, 3, 2, 4]),
            (4, 5, [0, 4, 1, 3, 2]),
            (0, 99, [4, 1, 3, 2, 0]),
            (0, 0, [0, 4, 1, 3, 2]),
            (0, 5, [0, 4, 1, 3, 2]),
        ] {
            table.expire_at(keys[which], expires * SECOND);
            assert_eq!(cookies(table.in_state(TcpState::TimeWait)), order, "{which} at {expires}");
        }
        assert_eq!(table.count(TcpState::TimeWait), 5);
    }

    #[test]
    fn minisocks_that_expire_a_little_sooner_stand_where_they_came() {
        let mut table = Table::new(10);
        for (cookie, expires_ns) in
            [(0, SECOND), (1, SECOND - EXPIRY_SLACK_NS), (2, SECOND - 2 * EXPIRY_SLACK_NS - 1)]
        {
            let key = insert(&mut table, cookie, TcpState::TimeWait, cookie);
            assert_eq!(table.shrink(key, expires_ns), None);
        }
        assert_eq!(cookies(table.in_state(TcpState::TimeWait)), [2, 0, 1]);
    }

    #[test]
    fn a_minisock_is_found_by_its_ends_until_it_is_gone() {
        let mut table = Table::new(10);
        let key = insert(&mut table, 7, TcpState::FinWait2, 0);
        let ends = table.get(key).ends();
        assert_eq!(table.find_minisock(ends), None);
        assert_eq!(table.shrink(key, 5), None);
        assert_eq!(table.find_minisock(ends), Some(key));
        assert_eq!(table.oldest_minisock(TcpState::FinWait2).map(|(key, _)| key), Some(key));
        assert_eq!((table.count(TcpState::FinWait2), table.count(TcpState::TimeWait)), (1, 0));
        let mut younger = socket(8);
        younger.local = ends.local;
        let life = Life::new(TcpState::FinWait2, Cause::Peer, 1);
        let younger = table.insert(&younger, life, Role::Client, 1, ConnFlags::default());
        assert_eq!(table.shrink(younger, 6), Some(key));
        table.remove(key);
        assert_eq!(table.find_minisock(ends), Some(younger));
        table.remove(younger);
        assert_eq!(table.find_minisock(ends), None);
    }
}
