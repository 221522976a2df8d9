//! Sweeps: what the kernel's iterators found, merged with what the ring told.
//!
//! A sweep looks at every socket of the namespaces that it *covers*, then at every socket that a process
//! holds, in any namespace. Each look is applied as it comes; what a covered namespace did not show is gone at
//! the end. A record of the ring that is newer than the look always wins.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    aggregate::Role,
    decode::{Seen, TaskRecord},
    life::{Cause, Life},
    live::Found,
    process::ProcessId,
    state::TcpState,
    table::{Conn, Ends, Marks, Slot},
    ticks::Ticks,
    tracker::{Ended, MINISOCK_NS, Tracker},
};

/// The sweep under way.
#[derive(Debug, Default)]
pub struct Progress {
    /// Number of the latest sweep; connections carry the number of the last that saw them.
    number: u32,
    began_ns: u64,
    /// The one before it.
    began_before_ns: u64,
    /// The kernel's tick count was read in this sweep.
    ticks_read: bool,
    /// Sockets that ended since it began, by cookie, and when: what it says of them is old.
    ended: Option<FxHashMap<u64, u64>>,
    /// The same for minisocks.
    ended_minisocks: FxHashMap<Ends, u64>,
    /// Minisocks it saw and the table does not have.
    new_minisocks: FxHashMap<Ends, Seen>,
    /// The first process found to hold a socket that is booked to another: the owner from now on, unless the
    /// other turns out to hold it too.
    other_holders: FxHashMap<u64, OtherHolder>,
    /// Sockets that retransmitted more than records have told, by cookie; and those of the sweep before.
    untold: FxHashMap<u64, Untold>,
    untold_before: FxHashMap<u64, Untold>,
    /// It saw something that may be about to change: only another sweep will know.
    pub(crate) doubts: bool,
    pub(crate) live: Found,
}

#[derive(Clone, Copy, Debug)]
struct Untold {
    total_retrans: u32,
    /// When a sweep saw it first.
    since_ns: u64,
}

/// A change of state is told before the kernel makes it, and whoever makes it may lose the processor in between: most of all
/// there, as the program that tells of it may not be interrupted. A look that finds the state before so long after the last
/// record is no sign of a lost one yet.
const UNSETTLED_NS: u64 = 100_000_000;

/// A record that tells of a retransmit comes later than this only if it was lost.
const UNTOLD_NS: u64 = 1_000_000_000;

#[derive(Debug)]
struct OtherHolder {
    process: Option<ProcessId>,
    /// The last look at any holder.
    looked_ns: u64,
}

impl Progress {
    pub(crate) fn ended(&mut self, cookie: u64, now_ns: u64) {
        if let Some(ended) = &mut self.ended {
            ended.insert(cookie, now_ns);
        }
    }

    /// A record says that the socket lives again, or an identity was given anew: looks from now on are at that life.
    pub(crate) fn began(&mut self, cookie: u64) {
        if let Some(ended) = &mut self.ended {
            ended.remove(&cookie);
        }
    }

    pub(crate) fn ended_minisock(&mut self, ends: Ends, now_ns: u64) {
        if self.ended.is_some() {
            self.ended_minisocks.insert(ends, now_ns);
        }
    }

    fn ended_after(&self, seen: &Seen) -> bool {
        let ended = self.ended.as_ref().and_then(|ended| ended.get(&seen.socket.cookie));
        ended.is_some_and(|ended_ns| ended_ns.saturating_add(UNSETTLED_NS) >= seen.time_ns)
    }

    fn minisock_ended_after(&self, ends: &Ends, seen: &Seen) -> bool {
        self.ended_minisocks.get(ends).is_some_and(|ended_ns| *ended_ns >= seen.time_ns)
    }
}

/// Which namespaces a sweep listed completely.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Inodes.
    pub namespaces: FxHashSet<u32>,
    /// No other namespace with a process or a name exists.
    pub all: bool,
}

/// A socket in CLOSE that a process holds.
#[derive(Clone, Copy, Debug)]
pub struct Unconnected {
    /// CLOCK_MONOTONIC of the sweep that saw it first.
    pub since_ns: u64,
    pub process: Option<ProcessId>,
    pub fd: u32,
    /// It has a local port.
    pub bound: bool,
    /// It once had a peer.
    pub connected: bool,
    /// The first sweep saw it: it is older than this run.
    pub older: bool,
    /// The last sweep that saw it.
    swept: u32,
}

impl Tracker {
    /// To be called before a sweep looks at its first socket.
    pub fn begin_sweep(&mut self, now_ns: u64) {
        self.sweep = Progress {
            number: self.sweep.number.wrapping_add(1),
            began_ns: now_ns,
            began_before_ns: self.sweep.began_ns,
            ended: Some(FxHashMap::default()),
            untold_before: std::mem::take(&mut self.sweep.untold),
            ..Progress::default()
        };
    }

    /// One look of the sweep, after the ring was drained once more.
    pub fn apply_seen(&mut self, seen: &Seen) {
        if !self.sweep.ticks_read
            && let Some(reading) = Ticks::from_reading(self.tick_rate, seen.jiffies, seen.time_ns)
        {
            self.ticks = Some(reading);
            self.sweep.ticks_read = true;
        }
        if seen.socket.is_minisock() {
            self.apply_minisock(seen);
        } else if !self.sweep.ended_after(seen) {
            self.apply_full(seen);
        }
    }

    /// The sweep has looked at everything.
    pub fn end_sweep(&mut self, coverage: &Coverage) {
        let mut minisocks = std::mem::take(&mut self.sweep.new_minisocks);
        minisocks.retain(|ends, seen| !self.sweep.minisock_ended_after(ends, seen));
        self.sweep.ended = None;
        self.sweep.ended_minisocks = FxHashMap::default();
        self.settle_owners();
        self.groups.set_live(std::mem::take(&mut self.sweep.live));
        self.forget_unswept_unconnected();
        if !coverage.namespaces.is_empty() {
            self.remove_vanished(coverage, &mut minisocks);
        }
        // In the order of their expiry, which is the order of their lists.
        let mut left: Vec<_> = minisocks.into_values().collect();
        left.sort_by_key(|seen| (seen.expires_jiffies, seen.socket.cookie));
        let mut thought_over = self.take_thought_over(&left);
        for seen in &left {
            let ends = (seen.socket.netns, seen.socket.local, seen.socket.remote);
            let before = thought_over.remove(&ends);
            self.insert_minisock(seen, before.as_ref());
            if let Some(before) = before {
                self.forget(&before);
            }
        }
    }

    /// Takes those of the found minisocks back from the ended whose timers should have ended them: the FIN
    /// that an orphan in FIN_WAIT2 waited for may have set its timer anew just before.
    fn take_thought_over(&mut self, found: &[Seen]) -> FxHashMap<Ends, Conn> {
        let mut taken = FxHashMap::default();
        if found.is_empty() {
            return taken;
        }
        let found: FxHashSet<Ends> =
            found.iter().map(|seen| (seen.socket.netns, seen.socket.local, seen.socket.remote)).collect();
        let since_ns = self.sweep.began_ns.saturating_sub(MINISOCK_NS);
        self.ended.retain(|Ended { conn, ended_ns, cause }| {
            let by_estimate = conn.is(Marks::MINISOCK) && *cause == Cause::Timer && *ended_ns >= since_ns;
            let over = !by_estimate || !found.contains(&conn.ends());
            if !over {
                taken.insert(conn.ends(), conn.clone());
            }
            over
        });
        taken
    }

    /// What is known of the connection stands, until another sweep looks.
    fn doubt(&mut self, slot: Slot, seen: &Seen) {
        let conn = self.table.get_mut(slot);
        conn.swept = self.sweep.number;
        // Of one that is older than the record there is no doubt.
        self.sweep.doubts |= conn.seen_ns <= seen.time_ns;
    }

    fn apply_full(&mut self, seen: &Seen) {
        let listens = seen.state == TcpState::Listen;
        if let Some(slot) = self.table.find(seen.socket.cookie) {
            let conn = self.table.get(slot);
            let (minisock, newer) = (conn.is(Marks::MINISOCK), conn.seen_ns > seen.time_ns);
            if minisock && (newer || seen.state == TcpState::Close) {
                // Its descriptor may still be open.
                if !newer {
                    self.note_unconnected(seen);
                }
                return;
            }
            // The same socket in another life: the end of the one before was lost, or is a minisock.
            let another = minisock
                || seen.state == TcpState::Close
                || listens != (conn.role == Role::Listener)
                || self.is_another(slot, &seen.socket);
            if another && is_unsettled(conn, seen) {
                self.doubt(slot, seen);
                return;
            }
            if another {
                self.repairs.vanished += u64::from(!minisock);
                self.supersede(slot, seen.time_ns);
            }
        }
        // A socket that never was a connection, or is none any more.
        if seen.state == TcpState::Close {
            if self.table.find(seen.socket.cookie).is_none() {
                self.note_unconnected(seen);
            }
            return;
        }
        let known = self.table.find(seen.socket.cookie);
        let Some(slot) = known.or_else(|| self.insert_seen(seen)) else { return };
        let number = self.sweep.number;
        // A request has no count that its connection would go on with.
        if !seen.socket.is_request() {
            self.look_at_retransmits(slot, seen);
        }
        if listens {
            self.queues.insert(seen.socket.cookie, seen.queue);
        }
        // What the ring told since is newer than what the sweep saw.
        if self.table.get(slot).seen_ns <= seen.time_ns {
            self.describe(slot, &seen.socket);
            let conn = self.table.get_mut(slot);
            conn.unread_bytes = seen.unread_bytes;
            if conn.state() != seen.state && is_unsettled(conn, seen) {
                self.sweep.doubts = true;
            } else if conn.state() != seen.state {
                // The record of this change was lost.
                if seen.state.follows_established() {
                    self.note_established(slot, seen.time_ns);
                }
                self.table.enter(slot, seen.state, Cause::Unknown, seen.time_ns);
                self.table.get_mut(slot).marks.insert(Marks::STATE_OLDER);
                self.repairs.changed += 1;
            }
        }
        let conn = self.table.get_mut(slot);
        let first_look = conn.swept != number;
        if first_look {
            conn.swept = number;
            conn.marks.remove(Marks::OWNER_HOLDS | Marks::MEASURED);
        }
        if let Some((task, _)) = &seen.holder {
            self.apply_holder(slot, seen, task);
        }
        // Now that the owner is known.
        if !listens && !seen.socket.is_request() {
            self.carry(slot, seen.traffic, seen.time_ns);
            self.measure(slot, seen);
        }
        if first_look {
            self.sample_answer(slot, seen);
        }
        self.doubt_listener(slot, seen.time_ns);
    }

    /// How long the answer took that a client received last, if that was since the sweep before: each counts once. From the
    /// last data sent to the last received, so it is an upper bound of when the answer began. Where both times are the
    /// same tick it may also have asked again, so what takes less is not told.
    fn sample_answer(&mut self, slot: Slot, seen: &Seen) {
        let Some(ticks) = self.ticks.filter(|_| self.sweep.number > 1) else { return };
        let is_client = self.table.get(slot).role == Role::Client && seen.state == TcpState::Established;
        let answered_ns = ticks.time_of_past(seen.data_received_jiffies);
        if !is_client || !seen.data_sent || answered_ns < self.sweep.began_before_ns {
            return;
        }
        let waited = seen.data_received_jiffies.wrapping_sub(seen.sent_jiffies);
        if waited == 0 || waited > i32::MAX as u32 {
            return;
        }
        let Some(group) = self.group(slot, seen.time_ns) else { return };
        let answers = self.groups.counts(group).answers.get_or_insert_default();
        answers.seconds.observe(self.tick_rate.nanos(waited));
        if let Some(rtt_ns) = seen.rtt_ns {
            answers.round_trips.observe(rtt_ns);
        }
    }

    /// The kernel counts a retransmit before it sends it, and tells of it afterwards: a look that comes between knows
    /// more than the records, and not of which kind. So what no record has told counts only once they had their time.
    fn look_at_retransmits(&mut self, slot: Slot, seen: &Seen) {
        let cookie = seen.socket.cookie;
        let now = Untold { total_retrans: seen.total_retrans, since_ns: seen.time_ns };
        let Some(known) = self.table.get(slot).total_retrans else {
            self.count_retransmits(slot, now.total_retrans, seen.time_ns);
            return;
        };
        if now.total_retrans <= known {
            return;
        }
        let mut untold = self.sweep.untold_before.get(&cookie).copied().unwrap_or(now);
        if seen.time_ns.saturating_sub(untold.since_ns) >= UNTOLD_NS {
            self.count_retransmits(slot, untold.total_retrans, seen.time_ns);
            untold = now;
        }
        self.sweep.untold.insert(cookie, untold);
    }

    fn apply_holder(&mut self, slot: Slot, seen: &Seen, task: &TaskRecord) {
        let conn = self.table.get(slot);
        if conn.seen_ns > seen.time_ns {
            return;
        }
        let owner = conn.process;
        let holder = self.processes.learn(task);
        if owner.is_none() || owner == holder {
            self.own(slot, holder, seen.time_ns);
            self.table.get_mut(slot).marks.set(Marks::OWNER_HOLDS, holder.is_some());
        } else if !conn.is(Marks::OWNER_HOLDS) {
            let other = OtherHolder { process: holder, looked_ns: seen.time_ns };
            self.sweep.other_holders.entry(seen.socket.cookie).or_insert(other).looked_ns = seen.time_ns;
        }
    }

    /// Sockets whose owner does not hold them any more go to the process that does; what nobody has accepted
    /// yet to its listener's, which may have become known after it.
    fn settle_owners(&mut self) {
        for (cookie, holder) in std::mem::take(&mut self.sweep.other_holders) {
            if let Some(slot) = self.table.find(cookie) {
                let conn = self.table.get(slot);
                if !conn.is(Marks::OWNER_HOLDS) && conn.seen_ns <= holder.looked_ns {
                    self.own(slot, holder.process, holder.looked_ns);
                }
            }
        }
        let Progress { number, began_ns, .. } = self.sweep;
        for slot in self.table.slots().map(|(slot, _)| slot).collect::<Vec<_>>() {
            let conn = self.table.get(slot);
            if conn.swept != number || conn.is(Marks::MINISOCK) {
                continue;
            }
            if conn.is(Marks::UNACCEPTED) {
                let listener = self.listener_of(conn.netns, conn.local);
                self.set_process(slot, listener, began_ns);
            }
            self.group(slot, began_ns);
        }
    }

    /// A socket in CLOSE: never connected, or over and not closed by its owner. Only sweeps tell of them.
    fn note_unconnected(&mut self, seen: &Seen) {
        let Some((task, fd)) = &seen.holder else { return };
        let number = self.sweep.number;
        let process = self.processes.learn(task);
        let socket = Unconnected {
            since_ns: seen.time_ns,
            process,
            fd: *fd,
            bound: seen.socket.local.port != 0,
            connected: seen.socket.remote.port != 0,
            older: number == 1,
            swept: number,
        };
        let known = self.unconnected.get(&seen.socket.cookie).copied();
        if known.is_some_and(|known| known.swept == number) {
            return;
        }
        if let Some(id) = process {
            self.processes.add_user(id);
        }
        let socket = known.map_or(socket, |Unconnected { since_ns, older, .. }| Unconnected {
            since_ns,
            older,
            ..socket
        });
        self.unconnected.insert(seen.socket.cookie, socket);
        if let Some(id) = known.and_then(|known| known.process) {
            self.processes.drop_user(id);
        }
    }

    fn forget_unswept_unconnected(&mut self) {
        let (number, processes) = (self.sweep.number, &mut self.processes);
        self.unconnected.retain(|_, socket| {
            let found = socket.swept == number;
            if !found && let Some(id) = socket.process {
                processes.drop_user(id);
            }
            found
        });
    }

    /// A socket of which the ring told nothing: older than the daemon, or its record was lost.
    fn insert_seen(&mut self, seen: &Seen) -> Option<Slot> {
        if self.sweep.number > 1 {
            self.repairs.appeared += 1;
        }
        let marks = Marks::OLDER | Marks::STATE_OLDER;
        let marks = marks.with(Marks::ESTABLISHED, seen.state.follows_established());
        let life = Life::new(seen.state, Cause::Unknown, self.known_since(seen));
        self.insert(&seen.socket, life, seen.time_ns, marks)
    }

    /// Since when at least this socket has been in its state, for all that the kernel tells. Whoever closed
    /// its side sends nothing more but acknowledgements: the segment received last is the FIN or came later.
    /// An ESTABLISHED one was so when it last sent or received.
    fn known_since(&self, seen: &Seen) -> u64 {
        let Some(ticks) = self.ticks else { return seen.time_ns };
        let last = |jiffies: u32| match jiffies {
            0 => seen.time_ns,
            jiffies => ticks.time_of_past(jiffies).min(seen.time_ns),
        };
        match seen.state {
            TcpState::Established => last(seen.received_jiffies).min(last(seen.sent_jiffies)),
            TcpState::CloseWait => last(seen.received_jiffies),
            _ => seen.time_ns,
        }
    }

    fn apply_minisock(&mut self, seen: &Seen) {
        let ends = (seen.socket.netns, seen.socket.local, seen.socket.remote);
        if self.sweep.minisock_ended_after(&ends, seen) {
            return;
        }
        let Some(slot) = self.table.find_minisock(ends.0, ends.1, ends.2) else {
            if self.shrink_full(seen) {
                self.sweep.new_minisocks.insert(ends, seen.clone());
            }
            return;
        };
        let conn = self.table.get_mut(slot);
        conn.swept = self.sweep.number;
        if conn.seen_ns > seen.time_ns {
            return;
        }
        if conn.state() != seen.state {
            // The peer's FIN reached an orphan in FIN_WAIT2: its timer says when.
            let since_ns = self.timer_set_ns(seen).unwrap_or(seen.time_ns);
            self.table.enter(slot, seen.state, Cause::Peer, since_ns);
        }
        let expires_ns = self.expires_ns(seen);
        if self.table.get(slot).expires_ns.abs_diff(expires_ns) > TIMER_NOISE_NS {
            self.table.expire_at(slot, expires_ns);
        }
    }

    /// The end of a full socket was lost: the minisock has its cookie. `true` when there is no such socket.
    fn shrink_full(&mut self, seen: &Seen) -> bool {
        let Some(slot) = self.table.find(seen.socket.cookie) else { return true };
        let conn = self.table.get(slot);
        if conn.seen_ns > seen.time_ns {
            return false;
        }
        if conn.is(Marks::MINISOCK) {
            self.supersede(slot, seen.time_ns);
            return true;
        }
        let state = conn.state();
        self.repairs.vanished += 1;
        if state.follows_established() {
            self.note_established(slot, seen.time_ns);
        }
        self.count_closed(slot, state, None, seen.time_ns);
        self.describe(slot, &seen.socket);
        self.become_minisock(slot, seen);
        false
    }

    /// The full socket's place was taken by the minisock that the sweep saw.
    fn become_minisock(&mut self, slot: Slot, seen: &Seen) {
        let since_ns = self.timer_set_ns(seen).unwrap_or(seen.time_ns);
        self.table.enter(slot, seen.state, Cause::Unknown, since_ns);
        let expires_ns = self.expires_ns(seen);
        self.shrink(slot, expires_ns, seen.time_ns);
        self.table.get_mut(slot).swept = self.sweep.number;
        self.doubt_listener(slot, seen.time_ns);
    }

    /// `before`: the same minisock, as it was when it was thought to be over.
    fn insert_minisock(&mut self, seen: &Seen, before: Option<&Conn>) {
        let since_ns = self.timer_set_ns(seen).unwrap_or(seen.time_ns);
        if self.sweep.number > 1 && before.is_none() {
            self.repairs.appeared += 1;
        }
        let older = Marks::OLDER.with(Marks::STATE_OLDER, seen.state != TcpState::TimeWait);
        let (marks, life) = match before {
            Some(before) => (before.marks, before.life().then(seen.state, Cause::Peer, since_ns)),
            None => (older, Life::new(seen.state, Cause::Unknown, since_ns)),
        };
        let marks = (marks | Marks::ESTABLISHED) - Marks::MINISOCK;
        if let Some(slot) = self.table.find(seen.socket.cookie) {
            self.supersede(slot, seen.time_ns);
        }
        let Some(slot) = self.insert(&seen.socket, life, seen.time_ns, marks) else { return };
        if let Some(before) = before {
            self.take_owners(slot, before, seen.time_ns);
        }
        let (number, expires_ns) = (self.sweep.number, self.expires_ns(seen));
        self.table.get_mut(slot).swept = number;
        self.shrink(slot, expires_ns, seen.time_ns);
    }

    fn take_owners(&mut self, slot: Slot, before: &Conn, now_ns: u64) {
        self.table.get_mut(slot).role = before.role;
        self.set_process(slot, before.process, now_ns);
        self.refer(slot, before.opener, |conn| &mut conn.opener);
        self.refer(slot, before.closer, |conn| &mut conn.closer);
    }

    /// When a TIME_WAIT's timer was set, which is when it began.
    fn timer_set_ns(&self, seen: &Seen) -> Option<u64> {
        let ticks = self.ticks.filter(|_| seen.state == TcpState::TimeWait)?;
        Some(ticks.time_of(seen.expires_jiffies).saturating_sub(MINISOCK_NS).min(seen.time_ns))
    }

    fn expires_ns(&self, seen: &Seen) -> u64 {
        self.ticks.map_or(seen.time_ns.saturating_add(MINISOCK_NS), |ticks| {
            ticks.expiry_fires(seen.expires_jiffies, ticks.ticks(MINISOCK_NS))
        })
    }

    /// What the table has, was not heard of since the sweep began, and the sweep did not find.
    fn remove_vanished(&mut self, coverage: &Coverage, minisocks: &mut FxHashMap<Ends, Seen>) {
        let Progress { number, began_ns, .. } = self.sweep;
        let gone: Vec<Slot> = self
            .table
            .slots()
            .filter(|(_, conn)| conn.swept != number && conn.seen_ns < began_ns)
            // A namespace that is nowhere to be found took its minisocks with it; full sockets keep one alive.
            .filter(|(_, conn)| {
                coverage.namespaces.contains(&conn.netns) || (coverage.all && conn.is(Marks::MINISOCK))
            })
            .map(|(slot, _)| slot)
            .collect();
        for slot in gone {
            let conn = self.table.get(slot);
            let (state, full, ends) = (conn.state(), conn.is_full(), conn.ends());
            let left = full.then(|| minisocks.remove(&ends)).flatten();
            if full {
                // Its end was lost: when is not known, so no duration is counted.
                self.repairs.vanished += 1;
                self.count_closed(slot, state, None, began_ns);
            }
            if let Some(seen) = left {
                self.become_minisock(slot, &seen);
            } else {
                self.remove(slot, Cause::Unknown, began_ns);
            }
        }
    }
}

fn is_unsettled(conn: &Conn, seen: &Seen) -> bool {
    conn.seen_ns.saturating_add(UNSETTLED_NS) > seen.time_ns
}

/// Two readings of one timer differ by less than this.
const TIMER_NOISE_NS: u64 = 50_000_000;
