//! Sweeps: what the kernel's iterators found, merged with what records reported.
//!
//! A sweep reads every socket of the namespaces that it *covers*, then every socket that a process holds, in any
//! namespace. What it reads of one socket is a sighting, applied as it comes. At the end, connections of covered
//! namespaces without a sighting are gone, and so are those of namespaces that are gone. A record that is newer than
//! a sighting wins, and so does one that is up to [`UNSETTLED_NS`] older and contradicts it.

use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::{
    events::{
        decode::{Ends, TaskRecord},
        frame::Coverage,
        seen::{ListOwner, Seen, SeenList},
    },
    model::{
        groups::Role,
        live::Found,
        processes::ProcessId,
        table::{Conn, ConnFlags, ConnKey, Standing},
        tracker::{Ended, MINISOCK_NS, Tracker, overflows::Listening, pools::Noted},
    },
    tcp::{
        answer_time::{AnswerTime, Exchange},
        life::{Cause, Life},
        state::TcpState,
        ticks::{TickRate, Ticks},
    },
};

/// The sweep under way.
#[derive(Debug, Default)]
pub struct Progress {
    /// Number of the latest sweep; each connection carries the number of the latest that saw it.
    number: u32,
    began_ns: u64,
    /// When the sweep before it began.
    began_before_ns: u64,
    /// When the latest that has ended began.
    pub(crate) swept_ns: u64,
    /// The kernel's tick count was read in this sweep.
    ticks_read: bool,
    /// When sockets ended since the sweep began, by cookie: sightings of them may be stale.
    ended: Option<FxHashMap<u64, u64>>,
    /// The same for minisocks.
    ended_minisocks: FxHashMap<Ends, u64>,
    /// When minisocks that the table does not have entered TIME_WAIT since the sweep began: sightings in FIN_WAIT2 may be
    /// stale.
    time_waits: FxHashMap<Ends, u64>,
    /// Minisocks that it saw and the table does not have.
    new_minisocks: FxHashMap<Ends, Seen>,
    /// The first process found to hold a socket whose known owner is another: the owner from now on, unless the known owner
    /// turns out to hold it too.
    other_holders: FxHashMap<u64, OtherHolder>,
    /// What the sweep that ended last has listed.
    listed: Coverage,
    /// The listener's cookie of each connection that it found in an accept queue or as a request, by the connection's.
    queued: FxHashMap<u64, u64>,
    /// Listeners whose accept queues have more connections than it could list, and when it listed them.
    long_queues: Vec<(u64, u64)>,
    /// Processes found to hold sockets in CLOSE that no sweep had seen there before, by cookie.
    closed: FxHashMap<u64, ProcessId>,
    /// Sockets that retransmitted more than records have reported, by cookie; and those of the sweep before.
    unreported: FxHashMap<u64, UnreportedRetransmits>,
    unreported_before: FxHashMap<u64, UnreportedRetransmits>,
    /// A sighting contradicted a record that is hardly older: only another sweep will know.
    pub(crate) doubts: bool,
    pub(crate) live: Found,
    pub(crate) noted: Noted,
    /// It found a socket that a process holds, such as our own.
    holders_seen: bool,
}

#[derive(Clone, Copy, Debug)]
struct UnreportedRetransmits {
    total_retrans: u32,
    /// When a sweep saw it first.
    since_ns: u64,
}

/// How long after a record a sighting that contradicts it may still be stale. A change of state is reported before the kernel
/// makes it, and the task that makes it may lose the processor in between: above all right there, because the reporting
/// program runs with preemption off and a due reschedule follows it.
const UNSETTLED_NS: u64 = 100_000_000;

/// How late a record of a retransmit may come; a later one was lost.
const RECORD_DELAY_NS: u64 = 1_000_000_000;

#[derive(Debug)]
struct OtherHolder {
    process: Option<ProcessId>,
    /// CLOCK_MONOTONIC of the latest sighting of any holder.
    seen_ns: u64,
}

impl Progress {
    pub(crate) fn ended(&mut self, cookie: u64, now_ns: u64) {
        if let Some(ended) = &mut self.ended {
            ended.insert(cookie, now_ns);
        }
    }

    /// A record begins another life of the socket, or of another one with its address: sightings are of that life now.
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

    pub(crate) fn is_under_way(&self) -> bool {
        self.ended.is_some()
    }

    pub(crate) fn entered_time_wait(&mut self, ends: Ends, now_ns: u64) {
        if self.ended.is_some() {
            self.time_waits.insert(ends, now_ns);
        }
    }

    /// Whether a record reported the socket's end, so that the sighting is stale.
    fn has_ended(&self, seen: &Seen) -> bool {
        let ended = self.ended.as_ref().and_then(|ended| ended.get(&seen.socket.cookie));
        ended.is_some_and(|ended_ns| is_unsettled(*ended_ns, seen))
    }

    /// The same for a minisock.
    fn has_minisock_ended(&self, ends: &Ends, seen: &Seen) -> bool {
        self.ended_minisocks.get(ends).is_some_and(|ended_ns| is_unsettled(*ended_ns, seen))
    }
}

/// A socket in CLOSE that a process holds.
#[derive(Clone, Copy, Debug)]
pub struct Unconnected {
    /// CLOCK_MONOTONIC of its first sighting.
    pub since_ns: u64,
    pub process: Option<ProcessId>,
    pub fd: u32,
    /// Whether it has a local port.
    pub bound: bool,
    /// Whether it has been in a connection, or tried to.
    pub connected: bool,
    /// Whether the first sweep saw it: it is older than this run.
    pub older: bool,
    /// Number of the latest sweep that saw it.
    swept: u32,
}

impl Tracker {
    /// Begins a sweep. To be called before it reads its first socket.
    pub fn begin_sweep(&mut self, now_ns: u64) {
        self.silent.begin_sweep();
        self.sweep = Progress {
            number: self.sweep.number.wrapping_add(1),
            began_ns: now_ns,
            began_before_ns: self.sweep.began_ns,
            swept_ns: self.sweep.swept_ns,
            ended: Some(FxHashMap::default()),
            unreported_before: std::mem::take(&mut self.sweep.unreported),
            listed: std::mem::take(&mut self.sweep.listed),
            ..Progress::default()
        };
    }

    /// Applies a sighting. To be called once all records from before it are applied.
    pub fn apply_seen(&mut self, seen: &Seen) {
        if !self.sweep.ticks_read
            && let Some(reading) = Ticks::from_reading(self.tick_rate, seen.jiffies, seen.time_ns)
        {
            self.ticks = Some(reading);
            self.sweep.ticks_read = true;
        }
        if seen.socket.is_minisock() {
            self.apply_minisock(seen);
        } else if !self.sweep.has_ended(seen) {
            self.apply_full(seen);
        }
    }

    /// Applies a list. To be called once the sightings before it are applied.
    pub fn apply_list(&mut self, list: &SeenList) {
        match &list.of {
            ListOwner::Listener { cookie: listener, truncated } => {
                self.sweep.queued.extend(list.cookies.iter().map(|cookie| (*cookie, *listener)));
                if *truncated {
                    self.sweep.long_queues.push((*listener, list.time_ns));
                }
            }
            ListOwner::Holder(task) => {
                for cookie in &list.cookies {
                    let found = self.table.find(*cookie);
                    if let Some(key) = found.filter(|key| self.table.get(*key).is_full()) {
                        self.look_at(key);
                        self.apply_holder(key, list.time_ns, task);
                    }
                }
            }
        }
    }

    /// Ends the sweep, which has read all sockets of what it covers.
    pub fn end_sweep(&mut self, coverage: &Coverage) {
        let mut minisocks = std::mem::take(&mut self.sweep.new_minisocks);
        minisocks.retain(|ends, seen| !self.sweep.has_minisock_ended(ends, seen));
        self.correct_time_waits(&mut minisocks);
        self.sweep.ended = None;
        self.sweep.ended_minisocks = FxHashMap::default();
        self.settle_owners();
        self.settle_ended_owners();
        self.groups.set_live(std::mem::take(&mut self.sweep.live));
        self.forget_unswept_unconnected();
        self.remove_vanished(coverage, &mut minisocks);
        // In the order of their expiry, which is the order of their lists.
        let mut left: Vec<_> = minisocks.into_values().collect();
        left.sort_by_key(|seen| (seen.expires_jiffies, seen.socket.cookie));
        let mut resurrected = self.resurrect_minisocks(&left);
        for seen in &left {
            let ends = seen.socket.ends();
            let before = resurrected.remove(&ends);
            self.insert_minisock(seen, before.as_ref());
            if let Some(before) = before {
                self.forget(&before);
            }
        }
        self.settle_overflows(coverage, self.sweep.began_ns);
        self.queued = std::mem::take(&mut self.sweep.queued);
        let noted = std::mem::take(&mut self.sweep.noted);
        self.settle_pools(noted, self.sweep.began_ns);
        self.silent.end_sweep();
        self.sweep.swept_ns = self.sweep.began_ns;
        self.sweep.listed = coverage.clone();
    }

    /// How many network namespaces the latest sweep found, or read where the kernel does not list them.
    pub fn namespaces_found(&self) -> usize {
        let Coverage { namespaces, existing, .. } = &self.sweep.listed;
        existing.as_ref().map_or(namespaces.len(), FxHashMap::len)
    }

    /// Whether a socket of this namespace that the table does not have began in this run, though no record says so: a sweep
    /// that has ended would have found it.
    pub(crate) fn began_unseen(&self, netns: u32) -> bool {
        let Coverage { namespaces, all, .. } = &self.sweep.listed;
        self.untracked == 0 && (*all || namespaces.contains(&netns))
    }

    /// Sightings of minisocks in FIN_WAIT2 that a record has since reported to be in TIME_WAIT.
    fn correct_time_waits(&mut self, minisocks: &mut FxHashMap<Ends, Seen>) {
        for (ends, entered_ns) in std::mem::take(&mut self.sweep.time_waits) {
            if let Some(seen) = minisocks.get_mut(&ends)
                && seen.state == TcpState::FinWait2
                && seen.time_ns <= entered_ns
            {
                let ticks = |nanos| self.ticks.map_or(0, |ticks| ticks.ticks(nanos));
                seen.state = TcpState::TimeWait;
                seen.jiffies = seen.jiffies.saturating_add(ticks(entered_ns - seen.time_ns));
                seen.expires_jiffies = seen.jiffies.saturating_add(ticks(MINISOCK_NS));
                seen.time_ns = entered_ns;
            }
        }
    }

    /// Takes the found minisocks back from the ended connections where only a computed timer had ended them: the FIN that an
    /// orphan in FIN_WAIT2 waited for may have restarted its timer shortly before.
    fn resurrect_minisocks(&mut self, found: &[Seen]) -> FxHashMap<Ends, Conn> {
        let mut taken = FxHashMap::default();
        if found.is_empty() {
            return taken;
        }
        let found: FxHashSet<Ends> = found.iter().map(|seen| seen.socket.ends()).collect();
        let since_ns = self.sweep.began_ns.saturating_sub(MINISOCK_NS);
        self.ended.retain(|Ended { conn, ended_ns, cause }| {
            let by_estimate = conn.is(ConnFlags::MINISOCK) && *cause == Cause::Timer && *ended_ns >= since_ns;
            let over = !by_estimate || !found.contains(&conn.ends());
            if !over {
                taken.insert(conn.ends(), conn.clone());
            }
            over
        });
        taken
    }

    /// Keeps what is known of the connection until another sweep sees it.
    fn doubt(&mut self, key: ConnKey, seen: &Seen) {
        let conn = self.table.get_mut(key);
        conn.swept = self.sweep.number;
        // A sighting that is older than the record is simply stale.
        self.sweep.doubts |= conn.seen_ns <= seen.time_ns;
    }

    fn apply_full(&mut self, seen: &Seen) {
        let listens = seen.state == TcpState::Listen;
        if let Some(key) = self.table.find(seen.socket.cookie) {
            let conn = self.table.get(key);
            let (minisock, newer) = (conn.is(ConnFlags::MINISOCK), conn.seen_ns > seen.time_ns);
            if minisock && (newer || seen.state == TcpState::Close) {
                // Its descriptor may still be open.
                if !newer {
                    self.note_unconnected(seen);
                }
                return;
            }
            // The same socket in another life: the end of the life before was lost, or is a minisock.
            let another = minisock
                || seen.state == TcpState::Close
                || listens != (conn.role == Role::Listener)
                || self.is_another(key, &seen.socket);
            if another && is_unsettled(conn.seen_ns, seen) {
                self.doubt(key, seen);
                return;
            }
            if another {
                self.repairs.vanished += u64::from(!minisock);
                self.supersede(key, seen.time_ns);
            }
        }
        // The socket has not been a connection, or is none any more.
        if seen.state == TcpState::Close {
            if self.table.find(seen.socket.cookie).is_none() {
                self.note_unconnected(seen);
            }
            return;
        }
        let known = self.table.find(seen.socket.cookie);
        let Some(key) = known.or_else(|| self.insert_seen(seen)) else { return };
        // The connection does not continue the count of its request.
        if !seen.socket.is_request() {
            self.see_retransmits(key, seen);
        }
        if listens {
            let listening = self.queues.entry(seen.socket.cookie).or_insert_with(Listening::new);
            listening.observe(seen.queue, seen.time_ns);
        }
        if seen.listener != 0 {
            self.sweep.queued.insert(seen.socket.cookie, seen.listener);
        }
        // Else a newer record has described it.
        if self.table.get(key).seen_ns <= seen.time_ns {
            self.describe(key, &seen.socket);
            let conn = self.table.get_mut(key);
            if conn.is(ConnFlags::UNACCEPTED) {
                conn.flags.insert(ConnFlags::FOUND_UNACCEPTED);
            }
            conn.unread_bytes = seen.unread_bytes;
            if conn.state() != seen.state && is_unsettled(conn.seen_ns, seen) {
                self.sweep.doubts = true;
            } else if conn.state() != seen.state {
                // The record of this change was lost.
                if seen.state.follows_established() {
                    self.note_established(key, seen.time_ns);
                }
                self.table.enter(key, seen.state, Cause::Unknown, seen.time_ns);
                self.table.get_mut(key).flags.insert(ConnFlags::STATE_OLDER);
                self.repairs.changed += 1;
            }
        }
        let first_look = self.look_at(key);
        if let Some((task, _)) = &seen.holder {
            self.sweep.holders_seen = true;
            self.apply_holder(key, seen.time_ns, task);
        }
        self.note_standing(key, seen, first_look);
        // After the owner is known, by which they are grouped.
        if !listens && !seen.socket.is_request() {
            self.carry(key, seen.traffic, seen.time_ns);
            self.measure(key, seen);
        }
        if first_look {
            self.note_use(key, seen);
            self.sample_answer(key, seen);
        }
        self.doubt_listener(key, seen.time_ns);
    }

    /// Notes that the sweep sees it. Returns whether it is for the first time.
    fn look_at(&mut self, key: ConnKey) -> bool {
        let conn = self.table.get_mut(key);
        let first_look = conn.swept != self.sweep.number;
        if first_look {
            conn.swept = self.sweep.number;
            conn.flags.remove(ConnFlags::OWNER_HOLDS | ConnFlags::MEASURED);
        }
        first_look
    }

    /// Notes what a sighting shows of a socket in a state that should be short.
    fn note_standing(&mut self, key: ConnKey, seen: &Seen, first_look: bool) {
        let of_past = |jiffies: u32| {
            let ticks = self.ticks.filter(|_| jiffies != 0);
            ticks.map(|ticks| ticks.time_of_past(jiffies).min(seen.time_ns))
        };
        let (sent_ns, received_ns) = (of_past(seen.sent_jiffies), of_past(seen.data_received_jiffies));
        let conn = self.table.get_mut(key);
        if conn.state() != seen.state || !Standing::is_noted_in(seen.state) {
            return;
        }
        let standing = conn.end.get_or_insert_default().standing.get_or_insert_default();
        let found = seen.holder.is_some() || (!first_look && standing.descriptor_found);
        *standing = Standing {
            orphan: seen.socket.is_orphan(),
            held: seen.socket.is_held(),
            descriptor_found: found,
            without_descriptor: standing.without_descriptor && !found,
            unsent: seen.unsent,
            unacknowledged_segments: seen.unacknowledged,
            sent_ns: sent_ns.filter(|_| seen.data_sent),
            received_ns: received_ns.filter(|_| seen.traffic.received_bytes > 0),
            queue: seen.queue,
            handshake_acknowledged: seen.handshake_acknowledged,
            listener: standing.listener,
        };
    }

    /// By the first process that the sweep finds to hold it; who that is was noted before.
    pub(crate) fn measure(&mut self, key: ConnKey, seen: &Seen) {
        let flags = &mut self.table.get_mut(key).flags;
        if seen.holder.is_none() || flags.replace(ConnFlags::MEASURED, true) {
            return;
        }
        self.see_trouble(seen);
        self.note_silent(key, seen);
        self.suspect(seen);
        if let Some(group) = self.group(key, seen.time_ns) {
            self.sweep.live.entry(group).or_default().add_seen(seen, self.tick_rate);
        }
    }

    /// Samples how long the latest answer to a client took, if it came since the sweep before, so that each is sampled at
    /// most once.
    fn sample_answer(&mut self, key: ConnKey, seen: &Seen) {
        let Some(ticks) = self.ticks.filter(|_| self.sweep.number > 1) else { return };
        let is_client = self.table.get(key).role == Role::Client && seen.state == TcpState::Established;
        let answered_ns = ticks.time_of_past(seen.data_received_jiffies);
        if !is_client || answered_ns < self.sweep.began_before_ns {
            return;
        }
        let Some(AnswerTime::Came(took)) = exchange(seen, self.tick_rate).answer() else { return };
        let Some(group) = self.group(key, seen.time_ns) else { return };
        let answers = self.groups.counts(group).answers.get_or_insert_default();
        answers.seconds.observe(took.as_nanos() as u64);
        if let Some(rtt_ns) = seen.rtt_ns {
            answers.round_trips.observe(rtt_ns);
        }
    }

    /// The kernel counts a retransmit before it sends it and reports it afterwards: a sighting in between knows more than the
    /// records, but not the kind. So what no record has reported is counted only after a record's longest delay.
    fn see_retransmits(&mut self, key: ConnKey, seen: &Seen) {
        let cookie = seen.socket.cookie;
        let now = UnreportedRetransmits { total_retrans: seen.total_retrans, since_ns: seen.time_ns };
        let Some(known) = self.table.get(key).total_retrans() else {
            self.count_retransmits(key, now.total_retrans, seen.time_ns);
            return;
        };
        if now.total_retrans <= known {
            return;
        }
        let mut unreported = self.sweep.unreported_before.get(&cookie).copied().unwrap_or(now);
        if seen.time_ns.saturating_sub(unreported.since_ns) >= RECORD_DELAY_NS {
            self.count_retransmits(key, unreported.total_retrans, seen.time_ns);
            unreported = now;
        }
        self.sweep.unreported.insert(cookie, unreported);
    }

    fn apply_holder(&mut self, key: ConnKey, seen_ns: u64, task: &TaskRecord) {
        let conn = self.table.get(key);
        if conn.seen_ns > seen_ns {
            return;
        }
        let owner = conn.process;
        let holder = self.processes.see(task);
        let both = owner.zip(holder);
        // After an exec it is another identity of the owner.
        let same = both.is_some_and(|(owner, holder)| self.processes.is_same_process(owner, holder));
        if owner.is_none() || same {
            self.own(key, holder, seen_ns);
            self.table.get_mut(key).flags.set(ConnFlags::OWNER_HOLDS, holder.is_some());
        } else if !conn.is(ConnFlags::OWNER_HOLDS) {
            let other = OtherHolder { process: holder, seen_ns };
            self.sweep.other_holders.entry(conn.cookie).or_insert(other).seen_ns = seen_ns;
        }
    }

    /// Gives sockets whose owner does not hold them any more to the process that does, and connections that nobody has
    /// accepted yet to the process that holds their listener.
    fn settle_owners(&mut self) {
        for (cookie, holder) in std::mem::take(&mut self.sweep.other_holders) {
            if let Some(key) = self.table.find(cookie) {
                let conn = self.table.get(key);
                if !conn.is(ConnFlags::OWNER_HOLDS) && conn.seen_ns <= holder.seen_ns {
                    self.own(key, holder.process, holder.seen_ns);
                    let flags = &mut self.table.get_mut(key).flags;
                    flags.set(ConnFlags::OWNER_HOLDS, holder.process.is_some());
                }
            }
        }
        let Progress { number, began_ns, holders_seen, .. } = self.sweep;
        for key in self.table.keys().map(|(key, _)| key).collect::<Vec<_>>() {
            let conn = self.table.get(key);
            if conn.swept != number || conn.is(ConnFlags::MINISOCK) {
                continue;
            }
            let waits = conn.is(ConnFlags::UNACCEPTED) || conn.is(ConnFlags::REQUEST);
            let listener = if waits { self.found_at(conn) } else { None };
            let conn = self.table.get_mut(key);
            if let Some(standing) = conn.end.as_mut().and_then(|end| end.standing.as_mut()) {
                standing.without_descriptor = holders_seen && standing.held && !standing.descriptor_found;
                standing.listener = listener;
            }
            let (unaccepted, established) =
                (conn.is(ConnFlags::UNACCEPTED), conn.state().follows_established());
            if unaccepted {
                let process = listener.and_then(|listener| self.holder_of(listener));
                self.set_process(key, process, began_ns);
            }
            if established {
                self.note_established(key, began_ns);
            }
            self.group(key, began_ns);
        }
    }

    /// The listener on whose accept queue this sweep found the connection, or that the request was made to.
    fn found_at(&self, conn: &Conn) -> Option<u64> {
        self.sweep.queued.get(&conn.cookie).copied().or_else(|| self.long_queue_of(conn))
    }

    /// The process that this sweep found to hold a listener.
    fn holder_of(&self, listener: u64) -> Option<ProcessId> {
        let listener = self.table.get(self.table.find(listener)?);
        let is_held = listener.swept == self.sweep.number && listener.is(ConnFlags::OWNER_HOLDS);
        listener.process.filter(|_| is_held)
    }

    /// A connection that was in a queue, and in none of the lists of its namespace, is further back in the one queue that is
    /// longer than its list.
    fn long_queue_of(&self, conn: &Conn) -> Option<u64> {
        let of_netns =
            |listener| self.table.find(listener).is_some_and(|key| self.table.get(key).netns == conn.netns);
        let mut long = self.sweep.long_queues.iter().filter(|(listener, _)| of_netns(*listener));
        let (listener, listed_ns) = long.next()?;
        (long.next().is_none() && conn.opened_ns() < *listed_ns).then_some(*listener)
    }

    /// Of a connection that ended with a reset or an error, its process keeps the socket, in CLOSE, until it closes it.
    fn settle_ended_owners(&mut self) {
        let mut closed = std::mem::take(&mut self.sweep.closed);
        for Ended { conn, .. } in self.ended.iter_mut().rev() {
            if closed.is_empty() {
                break;
            }
            if let Some(holder) = closed.remove(&conn.cookie)
                && !conn.is(ConnFlags::OWNER_SEEN)
            {
                self.processes.set_user(&mut conn.process, Some(holder));
                conn.flags.insert(ConnFlags::OWNER_SEEN);
                conn.flags.remove(ConnFlags::UNACCEPTED);
            }
        }
    }

    /// A socket in CLOSE: never connected, or over and not closed by its owner. Known from sweeps only.
    fn note_unconnected(&mut self, seen: &Seen) {
        let Some((task, fd)) = &seen.holder else { return };
        let number = self.sweep.number;
        let process = self.processes.see(task);
        let socket = Unconnected {
            since_ns: seen.time_ns,
            process,
            fd: *fd,
            bound: seen.socket.local.port != 0,
            connected: seen.socket.was_connected(),
            older: number == 1,
            swept: number,
        };
        let known = self.unconnected.get(&seen.socket.cookie).copied();
        if known.is_some_and(|known| known.swept == number) {
            return;
        }
        if let Some(id) = process {
            self.processes.add_user(id);
            if known.is_none() && socket.connected {
                self.sweep.closed.insert(seen.socket.cookie, id);
            }
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

    /// Inserts a socket that no record reported: it is older than the daemon, or its record was lost.
    fn insert_seen(&mut self, seen: &Seen) -> Option<ConnKey> {
        if self.sweep.number > 1 {
            self.repairs.appeared += 1;
        }
        let flags = self.older(&seen.socket, seen.state.follows_established()) | ConnFlags::STATE_OLDER;
        let life = Life::new(seen.state, Cause::Unknown, self.known_since(seen));
        self.insert(&seen.socket, life, seen.time_ns, flags)
    }

    /// The earliest time at which the socket is known to have been in its state. A peer that has closed its side sends only
    /// acknowledgements, so the latest received segment is its FIN or came later. An ESTABLISHED socket was so when it last
    /// sent or received data.
    fn known_since(&self, seen: &Seen) -> u64 {
        let Some(ticks) = self.ticks else { return seen.time_ns };
        let last = |jiffies: u32| match jiffies {
            0 => seen.time_ns,
            jiffies => ticks.time_of_past(jiffies).min(seen.time_ns),
        };
        match seen.state {
            TcpState::Established => last(seen.received_jiffies).min(last(seen.sent_jiffies)),
            // In FIN_WAIT2 the peer may send data: the latest segment is the acknowledgement of the FIN or came later.
            TcpState::CloseWait | TcpState::FinWait2 => last(seen.received_jiffies),
            _ => seen.time_ns,
        }
    }

    fn apply_minisock(&mut self, seen: &Seen) {
        let ends = seen.socket.ends();
        let Some(key) = self.table.find_minisock(ends) else {
            // What is left of a known full socket is not the minisock that this socket had replaced.
            let full = self.table.find(seen.socket.cookie).is_some_and(|key| self.table.get(key).is_full());
            if (full || !self.sweep.has_minisock_ended(&ends, seen)) && self.shrink_full(seen) {
                self.sweep.new_minisocks.insert(ends, seen.clone());
            }
            return;
        };
        let (conn, cookie) = (self.table.get(key), seen.socket.cookie);
        // The socket got its cookie from the record of its end, after its minisock was made without one.
        let first_known_at_end =
            conn.swept == 0 && conn.is(ConnFlags::OLDER) && !conn.is(ConnFlags::BY_ADDRESS);
        if first_known_at_end && conn.cookie != cookie && self.table.find(cookie).is_none() {
            self.table.set_cookie(key, cookie);
        }
        let conn = self.table.get_mut(key);
        conn.swept = self.sweep.number;
        if conn.seen_ns > seen.time_ns {
            return;
        }
        let known = conn.state();
        let expires_ns = self.expires_ns(seen);
        if known == TcpState::FinWait2 && seen.state == TcpState::TimeWait {
            // The peer's FIN reached an orphan; the timer that this started says when.
            let since_ns = self.timer_set_ns(seen).unwrap_or(seen.time_ns);
            self.repairs.changed += 1;
            self.enter_time_wait(key, since_ns, seen.time_ns, expires_ns);
        } else if known != seen.state {
            self.table.enter(key, seen.state, Cause::Peer, seen.time_ns);
        }
        if self.table.get(key).expires_ns().abs_diff(expires_ns) > TIMER_NOISE_NS {
            self.table.expire_at(key, expires_ns);
        }
    }

    /// Turns the full socket with the minisock's cookie, whose end was lost, into the minisock. `true` when there is no such
    /// socket.
    fn shrink_full(&mut self, seen: &Seen) -> bool {
        let Some(key) = self.table.find(seen.socket.cookie) else { return true };
        let conn = self.table.get(key);
        if conn.seen_ns > seen.time_ns {
            return false;
        }
        if conn.is(ConnFlags::MINISOCK) {
            self.supersede(key, seen.time_ns);
            return true;
        }
        if is_unsettled(conn.seen_ns, seen) {
            self.doubt(key, seen);
            return false;
        }
        let state = conn.state();
        self.repairs.vanished += 1;
        if state.follows_established() {
            self.note_established(key, seen.time_ns);
        }
        self.count_closed(key, state, None, seen.time_ns);
        self.describe(key, &seen.socket);
        self.become_minisock(key, seen);
        false
    }

    /// The minisock that the sweep saw has taken the full socket's place.
    fn become_minisock(&mut self, key: ConnKey, seen: &Seen) {
        let since_ns = self.timer_set_ns(seen).unwrap_or(seen.time_ns);
        self.table.enter(key, seen.state, Cause::Unknown, since_ns);
        let expires_ns = self.expires_ns(seen);
        self.shrink(key, expires_ns, seen.time_ns);
        self.table.get_mut(key).swept = self.sweep.number;
        self.doubt_listener(key, seen.time_ns);
    }

    /// `before`: the same minisock, as it was when its computed timer ended it.
    fn insert_minisock(&mut self, seen: &Seen, before: Option<&Conn>) {
        let since_ns = self.timer_set_ns(seen).unwrap_or(seen.time_ns);
        if self.sweep.number > 1 && before.is_none() {
            self.repairs.appeared += 1;
        }
        let older = ConnFlags::OLDER.with(ConnFlags::STATE_OLDER, seen.state != TcpState::TimeWait);
        let (flags, life) = match before {
            Some(before) => (before.flags, before.life().then(seen.state, Cause::Peer, since_ns)),
            None => (older, Life::new(seen.state, Cause::Unknown, since_ns)),
        };
        let flags = (flags | ConnFlags::ESTABLISHED) - ConnFlags::MINISOCK;
        if let Some(key) = self.table.find(seen.socket.cookie) {
            self.supersede(key, seen.time_ns);
        }
        let Some(key) = self.insert(&seen.socket, life, seen.time_ns, flags) else { return };
        if let Some(before) = before {
            self.take_owners(key, before, seen.time_ns);
        }
        let (number, expires_ns) = (self.sweep.number, self.expires_ns(seen));
        self.table.get_mut(key).swept = number;
        self.shrink(key, expires_ns, seen.time_ns);
    }

    fn take_owners(&mut self, key: ConnKey, before: &Conn, now_ns: u64) {
        self.table.change_ends(key, |conn| conn.role = before.role);
        self.set_process(key, before.process, now_ns);
        self.refer(key, before.opener, |conn| &mut conn.opener);
        self.refer(key, before.closer, |conn| &mut conn.closer);
    }

    /// When the timer of a TIME_WAIT was started, which is when TIME_WAIT began.
    fn timer_set_ns(&self, seen: &Seen) -> Option<u64> {
        let ticks = self.ticks.filter(|_| seen.state == TcpState::TimeWait)?;
        Some(ticks.time_of(seen.expires_jiffies).saturating_sub(MINISOCK_NS).min(seen.time_ns))
    }

    fn expires_ns(&self, seen: &Seen) -> u64 {
        self.ticks.map_or(seen.time_ns.saturating_add(MINISOCK_NS), |ticks| {
            ticks.expiry_fires(seen.expires_jiffies, ticks.ticks(MINISOCK_NS))
        })
    }

    /// Removes connections that the sweep did not find and no record mentioned since it began: of the namespaces that it
    /// read, and of those that are gone, also where another one has the inode by now.
    fn remove_vanished(&mut self, coverage: &Coverage, minisocks: &mut FxHashMap<Ends, Seen>) {
        let Progress { number, began_ns, began_before_ns, .. } = self.sweep;
        let now = coverage.existing.as_ref();
        let replaced: FxHashSet<u32> = now
            .into_iter()
            .flatten()
            .filter(|(inode, now)| self.namespaces.get(*inode).is_some_and(|before| before != *now))
            .map(|(inode, _)| *inode)
            .collect();
        let is_gone = |conn: &Conn| match now {
            Some(now) => {
                !now.contains_key(&conn.netns)
                    // What was seen since may be of the new one.
                    || (conn.seen_ns < began_before_ns && replaced.contains(&conn.netns))
            }
            // It has taken its minisocks with it; full sockets keep a namespace alive.
            None => coverage.all && conn.is(ConnFlags::MINISOCK),
        };
        let gone: Vec<ConnKey> = self
            .table
            .keys()
            .filter(|(_, conn)| conn.swept != number && conn.seen_ns < began_ns)
            .filter(|(_, conn)| coverage.namespaces.contains(&conn.netns) || is_gone(conn))
            .map(|(key, _)| key)
            .collect();
        self.namespaces = now.cloned().unwrap_or_default();
        if let Some(now) = now {
            self.settings.retain(|netns, _| now.contains_key(netns));
        }
        for key in gone {
            let conn = self.table.get(key);
            let (state, full, ends) = (conn.state(), conn.is_full(), conn.ends());
            let left = full.then(|| minisocks.remove(&ends)).flatten();
            if full {
                // Its end was lost. As its time is not known, no duration is counted.
                self.repairs.vanished += 1;
                self.count_closed(key, state, None, began_ns);
            }
            if let Some(seen) = left {
                self.become_minisock(key, &seen);
            } else {
                self.remove(key, Cause::Unknown, began_ns);
            }
        }
    }
}

/// Whether the sighting may be stale where it contradicts a record of that time.
fn is_unsettled(record_ns: u64, seen: &Seen) -> bool {
    record_ns.saturating_add(UNSETTLED_NS) > seen.time_ns
}

/// How far two readings of one timer may differ.
const TIMER_NOISE_NS: u64 = 50_000_000;

fn exchange(seen: &Seen, tick_rate: TickRate) -> Exchange {
    // Another processor may have counted a tick more when it wrote the socket's.
    let ago = |jiffies: u32| {
        let ticks = (seen.jiffies as u32).wrapping_sub(jiffies).cast_signed().max(0).cast_unsigned();
        Duration::from_nanos(tick_rate.nanos(ticks))
    };
    Exchange {
        established: seen.state == TcpState::Established,
        has_sent: seen.data_sent,
        has_received: seen.traffic.received_bytes > 0,
        unacknowledged: seen.unacknowledged,
        sent: ago(seen.sent_jiffies),
        received: ago(seen.data_received_jiffies),
        acknowledged: ago(seen.received_jiffies),
    }
}
