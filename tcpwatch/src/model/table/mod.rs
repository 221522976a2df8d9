//! The connections that exist now: a slab, found by socket cookie, listed by state.
//!
//! The lists find a connection that stands too long in a state without a walk through all others. A minisock (TIME_WAIT,
//! orphaned FIN_WAIT2) is also found by its ends, because a socket that reuses those ends replaces it; and minisocks are
//! listed by when they expire, each change of which costs the same however many there are.
//! Bounded by `limit`; the caller decides what happens when it is reached.

mod conn;
mod expiries;
mod tallies;

use std::{cell::Cell, hash::BuildHasher as _};

use hashbrown::{HashTable, hash_table::Entry};
use rustc_hash::FxBuildHasher;
use slab::Slab;

pub use self::{
    conn::{Conn, ConnFlags, EndFacts, Idle, ProcessSeen, Standing},
    tallies::{PortUse, StateCounts},
};
use self::{expiries::Expiries, tallies::Tallies};
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

/// The lists of a connection's place: of its state, or those of minisocks.
#[derive(Clone, Copy, Debug)]
enum Place {
    State(u8),
    TimeWaits,
    Orphans,
}

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
    len: usize,
}

impl List {
    const EMPTY: Self = Self { first: NONE, last: NONE, len: 0 };
}

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
    /// All but minisocks in TIME_WAIT and FIN_WAIT2, by state, in the order in which they entered it.
    lists: [List; TcpState::COUNT],
    time_waits: Expiries,
    /// Minisocks in FIN_WAIT2.
    orphans: Expiries,
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
            lists: [List::EMPTY; TcpState::COUNT],
            time_waits: Expiries::default(),
            orphans: Expiries::default(),
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
            place: Place::State(0),
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

    /// Corrects when a minisock expires, or notes that its timer starts anew.
    pub fn expire_at(&mut self, key: ConnKey, expires_ns: u64) {
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
        self.lists[state.index()].len + self.expiries(state).map_or(0, Expiries::len)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Conn> {
        self.conns.iter().map(|(_, conn)| conn)
    }

    pub fn keys(&self) -> impl Iterator<Item = (ConnKey, &Conn)> {
        self.conns.iter().map(|(key, conn)| (ConnKey(key as u32), conn))
    }

    /// The connections in `state`.
    pub fn in_state(&self, state: TcpState) -> impl Iterator<Item = &Conn> + use<'_> {
        let minisocks = self.expiries(state).into_iter().flat_map(Expiries::lists);
        std::iter::once(&self.lists[state.index()]).chain(minisocks).flat_map(|list| self.walk(list.first))
    }

    /// The connections that entered `state` at or before `limit_ns`. Walks the whole list: connections that a sweep found
    /// stand behind younger ones.
    pub fn lingering(&self, state: TcpState, limit_ns: u64) -> impl Iterator<Item = &Conn> + use<'_> {
        self.in_state(state).filter(move |conn| conn.since_ns() <= limit_ns)
    }

    /// The minisock in this state that expires first, or within the same step (see `expiries`).
    pub fn oldest_minisock(&self, state: TcpState) -> Option<(ConnKey, &Conn)> {
        let first = self.expiries(state)?.lists().next()?.first;
        Some((ConnKey(first), &self.conns[first as usize]))
    }

    fn expiries(&self, state: TcpState) -> Option<&Expiries> {
        match state {
            TcpState::TimeWait => Some(&self.time_waits),
            TcpState::FinWait2 => Some(&self.orphans),
            _ => None,
        }
    }

    fn walk(&self, mut at: u32) -> impl Iterator<Item = &Conn> + use<'_> {
        std::iter::from_fn(move || {
            let conn = self.conns.get(at as usize)?;
            at = conn.next;
            Some(conn)
        })
    }

    /// Puts the connection at the end of its list.
    fn link(&mut self, key: u32) {
        let conn = &self.conns[key as usize];
        let (state, expires_ns) = (conn.state(), conn.expires_ns);
        let place = match state {
            TcpState::TimeWait if conn.is(ConnFlags::MINISOCK) => Place::TimeWaits,
            TcpState::FinWait2 if conn.is(ConnFlags::MINISOCK) => Place::Orphans,
            _ => Place::State(state.index() as u8),
        };
        let list = match place {
            Place::State(state) => &mut self.lists[usize::from(state)],
            Place::TimeWaits => self.time_waits.add_to(expires_ns),
            Place::Orphans => self.orphans.add_to(expires_ns),
        };
        list.len += 1;
        let previous = std::mem::replace(&mut list.last, key);
        if previous == NONE {
            list.first = key;
        } else {
            self.conns[previous as usize].next = key;
        }
        let conn = &mut self.conns[key as usize];
        (conn.place, conn.previous, conn.next) = (place, previous, NONE);
    }

    fn unlink(&mut self, key: u32) {
        let conn = &self.conns[key as usize];
        let (place, expires_ns, previous, next) = (conn.place, conn.expires_ns, conn.previous, conn.next);
        if let Some(before) = self.conns.get_mut(previous as usize) {
            before.next = next;
        }
        if let Some(after) = self.conns.get_mut(next as usize) {
            after.previous = previous;
        }
        let remove = |list: &mut List| {
            list.len -= 1;
            if previous == NONE {
                list.first = next;
            }
            if next == NONE {
                list.last = previous;
            }
        };
        match place {
            Place::State(state) => remove(&mut self.lists[usize::from(state)]),
            Place::TimeWaits => self.time_waits.remove_from(expires_ns, remove),
            Place::Orphans => self.orphans.remove_from(expires_ns, remove),
        }
    }
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

    fn minisock(table: &mut Table, cookie: u64, expires_ns: u64) -> ConnKey {
        let key = insert(table, cookie, TcpState::TimeWait, cookie);
        assert_eq!(table.shrink(key, expires_ns), None);
        key
    }

    #[test]
    fn minisocks_stand_in_the_order_in_which_they_expire_whatever_corrects_their_timers() {
        let mut table = Table::new(10);
        let keys: Vec<_> = (0..5).map(|cookie| minisock(&mut table, cookie, 10 * cookie * SECOND)).collect();
        for (which, expires, order) in [
            (2, 21, [0, 1, 2, 3, 4]),
            (2, 30, [0, 1, 3, 2, 4]),
            (2, 29, [0, 1, 2, 3, 4]),
            (2, 31, [0, 1, 3, 2, 4]),
            (4, 5, [0, 4, 1, 3, 2]),
            (0, 99, [4, 1, 3, 2, 0]),
            (0, 0, [0, 4, 1, 3, 2]),
            (0, 5, [4, 0, 1, 3, 2]),
        ] {
            table.expire_at(keys[which], expires * SECOND);
            assert_eq!(cookies(table.in_state(TcpState::TimeWait)), order, "{which} at {expires}");
        }
        assert_eq!(table.count(TcpState::TimeWait), 5);
        for key in keys {
            let oldest = table.oldest_minisock(TcpState::TimeWait).unwrap().1.cookie;
            assert_eq!(oldest, cookies(table.in_state(TcpState::TimeWait))[0]);
            table.remove(key);
        }
        assert!(table.oldest_minisock(TcpState::TimeWait).is_none());
        assert_eq!(table.count(TcpState::TimeWait), 0);
    }

    #[test]
    fn minisocks_that_expire_early_cost_no_more_than_others() {
        const COUNT: u64 = 30_000;
        let mut table = Table::new(2 * COUNT as usize);
        let mut add = |seconds: u64, first: u64| {
            let began = std::time::Instant::now();
            for number in 0..COUNT {
                let key = minisock(&mut table, first + number, (60 + seconds) * SECOND + number * 1000);
                // As a sweep corrects what a record cannot say: net.ipv4.tcp_fin_timeout is lower.
                table.expire_at(key, seconds * SECOND + number * 1000);
            }
            began.elapsed()
        };
        let (others, early) = (add(60, 0), add(10, COUNT));
        // Each one past all others would be 10^9 steps.
        assert!(early < others * 20, "{early:?}, the others {others:?}");
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
