//! The connections that exist now: a slab, found by socket cookie, listed by state.
//!
//! What stands too long in a state that should be short is found without looking at the connections in others. Sockets that
//! live on as the kernel's minisocks (TIME_WAIT, orphaned FIN_WAIT2) are also found by their ends, because whoever reuses
//! those ends replaces them.
//! Bounded by `limit`; the caller decides what happens at it.

mod conn;

use std::{cell::Cell, hash::BuildHasher as _};

use hashbrown::{HashTable, hash_table::Entry};
use rustc_hash::FxBuildHasher;
use slab::Slab;

pub use self::conn::{Conn, ConnFlags, EndFacts, Ends, Idle};
use crate::{
    events::decode::{Endpoint, Socket, Traffic},
    model::groups::Role,
    tcp::{
        life::{Cause, Life},
        state::TcpState,
    },
};

/// Where a connection lies in the slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnKey(u32);

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
    len: usize,
}

/// A list for each state, and one more: minisocks in FIN_WAIT2, whose clock runs from another moment.
const ORPHANED_FIN_WAIT2: usize = TcpState::COUNT;

/// Minisocks need no exact order: one may stand so much too late. Each sweep reads the kernel's clocks anew, which moves the
/// step of the timer wheel where they expire together by a little, and all that came before it would be looked at.
const EXPIRY_SLACK_NS: u64 = 50_000_000;

/// Rows for which room is reserved at once, as far as the limit goes: address space, of which only what is used takes
/// memory. A table that grew would be copied, as the allocator moves only its largest blocks.
const RESERVED_ROWS: usize = 1 << 20;

/// An element of an index: where the connection lies, and the hash by which it is found, so that the index grows
/// without looking at connections.
#[derive(Clone, Copy)]
struct Key {
    hash: u32,
    slot: u32,
}

pub struct Table {
    conns: Slab<Conn>,
    by_cookie: HashTable<Key>,
    minisocks: HashTable<Key>,
    /// Where those lie that were found last, by the lower bits of the cookie: what is told of a connection comes together,
    /// and with what is told of its other side.
    recent: [Cell<u32>; 8],
    lists: [List; TcpState::COUNT + 1],
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
    pub fn get(&self, slot: ConnKey) -> &Conn {
        &self.conns[slot.0 as usize]
    }

    /// For everything but the state, which [`Table::enter`] changes.
    #[inline]
    pub fn get_mut(&mut self, slot: ConnKey) -> &mut Conn {
        &mut self.conns[slot.0 as usize]
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
        let same = |key: &Key| key.hash == hash && self.conns[key.slot as usize].cookie == cookie;
        self.by_cookie.find(spread(hash), same).map(|key| ConnKey(key.slot))
    }

    /// The minisock with these ends, seen from its own side.
    pub fn find_minisock(&self, netns: u32, local: Endpoint, remote: Endpoint) -> Option<ConnKey> {
        let ends = (netns, local, remote);
        let hash = hash_ends(&ends);
        let same = |key: &Key| key.hash == hash && self.conns[key.slot as usize].ends() == ends;
        self.minisocks.find(spread(hash), same).map(|key| ConnKey(key.slot))
    }

    /// Adds a connection that is not in the table; its owner and group are set afterwards.
    pub fn insert(
        &mut self,
        socket: &Socket,
        life: Life,
        role: Role,
        now_ns: u64,
        marks: ConnFlags,
    ) -> ConnKey {
        let conn = Conn {
            cookie: socket.cookie,
            netns: socket.netns,
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
            // Also of one that goes on where another was.
            marks: marks - (ConnFlags::TRAFFIC_TOLD | ConnFlags::AFTER_CLOSE_TOLD),
            error: 0,
            total_retrans: (!marks.contains(ConnFlags::OLDER)).then_some(0),
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
        let slot = self.conns.insert(conn) as u32;
        let hash = hash(socket.cookie);
        self.by_cookie.insert_unique(spread(hash), Key { hash, slot }, |key| spread(key.hash));
        self.recent(socket.cookie).set(slot);
        self.link(slot);
        ConnKey(slot)
    }

    /// Moves the connection to `state` as of `now_ns`.
    pub fn enter(&mut self, slot: ConnKey, state: TcpState, cause: Cause, now_ns: u64) {
        self.unlink(slot.0);
        let conn = self.get_mut(slot);
        conn.life.enter(state, cause, now_ns);
        conn.seen_ns = now_ns;
        conn.marks.remove(ConnFlags::STATE_OLDER);
        self.link(slot.0);
    }

    /// The kernel replaced the socket by a minisock in the state that the connection is in. Returns another that had
    /// its ends until now: it is over, and no longer found by them.
    #[must_use]
    pub fn shrink(&mut self, slot: ConnKey, expires_ns: u64) -> Option<ConnKey> {
        if self.get(slot).is(ConnFlags::MINISOCK) {
            self.expire_at(slot, expires_ns);
            return None;
        }
        self.unlink(slot.0);
        let conn = self.get_mut(slot);
        conn.marks.insert(ConnFlags::MINISOCK);
        conn.expires_ns = expires_ns;
        let (ends, cookie, lost) = (conn.ends(), conn.cookie, conn.has_lost_cookie());
        self.link(slot.0);
        if lost {
            self.forget_cookie(slot.0, cookie);
        }
        let conns = &self.conns;
        let key = Key { hash: hash_ends(&ends), slot: slot.0 };
        let same = |other: &Key| other.hash == key.hash && conns[other.slot as usize].ends() == ends;
        match self.minisocks.entry(spread(key.hash), same, |key| spread(key.hash)) {
            Entry::Occupied(mut had) => Some(ConnKey(std::mem::replace(had.get_mut(), key).slot)),
            Entry::Vacant(free) => {
                free.insert(key);
                None
            }
        }
    }

    fn forget_cookie(&mut self, slot: u32, cookie: u64) {
        if let Ok(entry) = self.by_cookie.find_entry(spread(hash(cookie)), |key| key.slot == slot) {
            entry.remove();
        }
    }

    /// A minisock's timer was set anew.
    pub fn expire_at(&mut self, slot: ConnKey, expires_ns: u64) {
        let conn = self.get_mut(slot);
        conn.expires_ns = expires_ns;
        // Looked for from the place that it had: a correction moves it by little, and many are younger.
        let (list, mut before, mut after) = (usize::from(conn.list), conn.previous, conn.next);
        let sooner =
            self.conns.get(before as usize).is_some_and(|conn| is_later(conn.expires_ns, expires_ns));
        while let Some(conn) = self.conns.get(after as usize)
            && is_later(expires_ns, conn.expires_ns)
        {
            (before, after) = (after, conn.next);
        }
        if sooner || before != self.get(slot).previous {
            self.unlink(slot.0);
            self.link_behind(slot.0, list, before);
        }
    }

    pub fn remove(&mut self, slot: ConnKey) -> Conn {
        self.unlink(slot.0);
        let conn = self.conns.remove(slot.0 as usize);
        self.forget_cookie(slot.0, conn.cookie);
        if conn.is(ConnFlags::MINISOCK)
            && let Ok(entry) =
                self.minisocks.find_entry(spread(hash_ends(&conn.ends())), |key| key.slot == slot.0)
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

    pub fn slots(&self) -> impl Iterator<Item = (ConnKey, &Conn)> {
        self.conns.iter().map(|(key, conn)| (ConnKey(key as u32), conn))
    }

    /// The connections in `state`.
    pub fn in_state(&self, state: TcpState) -> impl Iterator<Item = &Conn> + use<'_> {
        let orphaned = (state == TcpState::FinWait2).then(|| self.walk(ORPHANED_FIN_WAIT2));
        self.walk(state.index()).chain(orphaned.into_iter().flatten())
    }

    /// The connections that entered `state` at or before `limit_ns`. All of the list are looked at: what a
    /// sweep found stands behind younger ones.
    pub fn lingering(&self, state: TcpState, limit_ns: u64) -> impl Iterator<Item = &Conn> + use<'_> {
        self.in_state(state).filter(move |conn| conn.since_ns() <= limit_ns)
    }

    /// The minisock, of those in this state, that became one first.
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

    /// Behind `previous`, or as far before it as those reach that expire later. Only minisocks expire; to all others the
    /// end of the list is the right place. Nearly always it is for minisocks too, as all run for the same time.
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

/// Of two times at which minisocks expire: by more than it matters.
fn is_later(expires_ns: u64, than_ns: u64) -> bool {
    expires_ns > than_ns.saturating_add(EXPIRY_SLACK_NS)
}

/// The kernel gives cookies in sequence to the sockets that a processor makes, and what was made together is told of
/// together: sixteen such lie side by side, so that their records find them in the processor's cache.
fn hash(cookie: u64) -> u32 {
    side_by_side(FxBuildHasher.hash_one(cookie >> 4), cookie as u32 & 0xf, 4)
}

/// The ephemeral ports of one client toward one server rise by a few with each connection: those of 128 such ports lie
/// side by side. Of a connection within this machine both sides are looked for in one place.
fn hash_ends((netns, local, remote): &Ends) -> u32 {
    let (ports, lower) = (local.port ^ remote.port, local.port.min(remote.port));
    let [local, remote] = [local, remote].map(|end| FxBuildHasher.hash_one(end.addr.to_bits()));
    let block = u64::from(*netns) << 32 | u64::from(ports >> 7) << 16 | u64::from(lower);
    side_by_side(FxBuildHasher.hash_one(block ^ local.wrapping_add(remote)), u32::from(ports >> 1) & 0x3f, 6)
}

/// `place`: where in its block of `1 << bits` it lies.
fn side_by_side(block: u64, place: u32, bits: u32) -> u32 {
    let block = (block ^ (block >> 32)) as u32;
    // What hashbrown compares first (see `spread`) is to differ between neighbours.
    (block << bits | place) ^ (place << 25)
}

/// hashbrown takes the place from the lower bits, and from the seven uppermost what it compares first.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

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
        let slots: Vec<_> =
            (0..4).map(|cookie| insert(&mut table, cookie, TcpState::Established, cookie)).collect();
        table.enter(slots[1], TcpState::CloseWait, Cause::Peer, 10);
        table.enter(slots[3], TcpState::CloseWait, Cause::Peer, 11);
        table.enter(slots[0], TcpState::CloseWait, Cause::Peer, 12);
        table.remove(slots[3]);
        assert_eq!(cookies(table.in_state(TcpState::CloseWait)), [1, 0]);
        assert_eq!(cookies(table.in_state(TcpState::Established)), [2]);
        assert_eq!(cookies(table.lingering(TcpState::CloseWait, 11)), [1]);
        assert_eq!(table.count(TcpState::CloseWait), 2);
        assert_eq!(table.find(3), None);
        assert_eq!(table.find(2), Some(slots[2]));
    }

    #[test]
    fn minisocks_stand_in_the_order_in_which_they_expire_whatever_corrects_their_timers() {
        let mut table = Table::new(10);
        let slots: Vec<_> = (0..5)
            .map(|cookie| {
                let slot = insert(&mut table, cookie, TcpState::TimeWait, cookie);
                assert_eq!(table.shrink(slot, 10 * cookie * SECOND), None);
                slot
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
            table.expire_at(slots[which], expires * SECOND);
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
            let slot = insert(&mut table, cookie, TcpState::TimeWait, cookie);
            assert_eq!(table.shrink(slot, expires_ns), None);
        }
        assert_eq!(cookies(table.in_state(TcpState::TimeWait)), [2, 0, 1]);
    }

    #[test]
    fn a_minisock_is_found_by_its_ends_until_it_is_gone() {
        let mut table = Table::new(10);
        let slot = insert(&mut table, 7, TcpState::FinWait2, 0);
        let ends = table.get(slot).ends();
        assert_eq!(table.find_minisock(ends.0, ends.1, ends.2), None);
        assert_eq!(table.shrink(slot, 5), None);
        assert_eq!(table.find_minisock(ends.0, ends.1, ends.2), Some(slot));
        assert_eq!(table.oldest_minisock(TcpState::FinWait2).map(|(slot, _)| slot), Some(slot));
        assert_eq!((table.count(TcpState::FinWait2), table.count(TcpState::TimeWait)), (1, 0));
        let mut younger = socket(8);
        younger.local = ends.1;
        let life = Life::new(TcpState::FinWait2, Cause::Peer, 1);
        let younger = table.insert(&younger, life, Role::Client, 1, ConnFlags::default());
        assert_eq!(table.shrink(younger, 6), Some(slot));
        table.remove(slot);
        assert_eq!(table.find_minisock(ends.0, ends.1, ends.2), Some(younger));
        table.remove(younger);
        assert_eq!(table.find_minisock(ends.0, ends.1, ends.2), None);
    }
}
