//! The state of the node's TCP: applies records to processes, connections and counts.
//!
//! In: decoded records in the order of the ring, sweeps (see `sweep.rs`). Out: the table, the counts and the
//! processes, for others to read. Reads no clock and does no I/O: times come with the records.

pub(crate) mod connects;
pub(crate) mod owners;
pub(crate) mod resets;
pub(crate) mod retransmits;
pub mod sweep;
pub(crate) mod traffic;

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::{
    events::{
        decode::{IdleRecord, Record, Retransmits, Socket, SocketRecord, What},
        frame::{ProcDetails, ReportedFacts},
        seen::ListenQueue,
    },
    model::{
        groups::{Closer, GroupId, Groups, Role},
        processes::ProcessTable,
        table::{Conn, ConnFlags, ConnKey, Idle, Table},
        tracker::{
            connects::Failure,
            resets::Pending,
            retransmits::Unlisted,
            sweep::{Progress, Unconnected},
        },
    },
    tcp::{
        connect_outcome::Outcome,
        first_close::FirstClose,
        life::{Cause, Life, cause},
        state::TcpState,
        ticks::{TickRate, Ticks},
    },
};

/// include/net/tcp.h: TCP_TIMEWAIT_LEN. Also how long an orphan stays in FIN_WAIT2 as a minisock unless
/// tcp_fin_timeout or TCP_LINGER2 say less; then sweeps correct it.
pub(crate) const MINISOCK_NS: u64 = 60_000_000_000;

/// How far the computed end of a timer may be from its real one: a step of the wheel (see `ticks.rs`).
const TIMER_SLACK_NS: u64 = 5_000_000_000;

/// Bounds of the tables.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections: usize,
    /// Connections that ended and are still told of.
    pub ended: usize,
    /// Sets of process, role and peer.
    pub label_sets: usize,
}

/// What sweeps had to put right because no record told of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Repairs {
    pub appeared: u64,
    pub changed: u64,
    pub vanished: u64,
}

pub struct Tracker {
    table: Table,
    processes: ProcessTable,
    groups: Groups,
    /// Connections that ended, oldest first.
    ended: VecDeque<Ended>,
    queues: FxHashMap<u64, ListenQueue>,
    /// Sockets in CLOSE that a process holds, by cookie.
    unconnected: FxHashMap<u64, Unconnected>,
    /// Connections that found no room in the table.
    untracked: u64,
    repairs: Repairs,
    reported: ReportedFacts,
    unlisted: Unlisted,
    /// By the cookie of the socket.
    pending_resets: FxHashMap<u64, Pending>,
    tick_rate: TickRate,
    /// From the first look of a sweep on.
    ticks: Option<Ticks>,
    sweep: Progress,
    listeners: FxHashMap<(u32, u16), Vec<ConnKey>>,
    limits: Limits,
}

/// A connection that is over.
#[derive(Clone, Debug)]
pub struct Ended {
    pub conn: Conn,
    /// CLOCK_MONOTONIC.
    pub ended_ns: u64,
    pub cause: Cause,
}

impl Tracker {
    /// `reported`: what the records of this run report.
    pub fn new(limits: Limits, tick_rate: TickRate, reported: ReportedFacts) -> Self {
        // At once and exactly: then one that ends takes the place of the oldest, which was looked at just before. If that is
        // more than there is room for, it grows as far as it can.
        let mut ended = VecDeque::new();
        let _ = ended.try_reserve_exact(limits.ended);
        Self {
            table: Table::new(limits.connections),
            processes: ProcessTable::default(),
            groups: Groups::new(limits.label_sets),
            ended,
            queues: FxHashMap::default(),
            unconnected: FxHashMap::default(),
            untracked: 0,
            repairs: Repairs::default(),
            reported,
            unlisted: Unlisted::default(),
            pending_resets: FxHashMap::default(),
            tick_rate,
            ticks: None,
            sweep: Progress::default(),
            listeners: FxHashMap::default(),
            limits,
        }
    }

    /// The connections of now.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The processes that connections name.
    pub fn processes(&self) -> &ProcessTable {
        &self.processes
    }

    /// What is counted by process name, role and peer.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Connections that ended, oldest first.
    pub fn ended(&self) -> &VecDeque<Ended> {
        &self.ended
    }

    /// The accept queue of the listener with this cookie, as the latest sweep saw it.
    pub fn queue(&self, cookie: u64) -> Option<&ListenQueue> {
        self.queues.get(&cookie)
    }

    /// Sockets in CLOSE that a process holds, by cookie.
    pub fn unconnected(&self) -> &FxHashMap<u64, Unconnected> {
        &self.unconnected
    }

    /// Connections that found no room in the table.
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    /// Whether the latest sweep saw something that was about to change: only the next sweep will know.
    pub fn sweep_left_doubts(&self) -> bool {
        self.sweep.doubts
    }

    pub fn repairs(&self) -> Repairs {
        self.repairs
    }

    /// What the records of this run report.
    pub fn reported(&self) -> ReportedFacts {
        self.reported
    }

    /// Pid and start time of processes whose /proc was not read yet; each is returned once.
    pub fn take_unread_processes(&mut self) -> Vec<(u32, u64)> {
        self.processes.take_unread()
    }

    /// What /proc says of a process.
    pub fn describe_process(&mut self, pid: u32, start_ns: u64, details: &ProcDetails) {
        self.processes.describe(pid, start_ns, details);
    }

    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Task(task) => {
                self.processes.learn(task);
            }
            Record::Socket(record) => self.apply_socket(record),
            Record::Reset(record) => self.apply_reset(record),
            Record::Idle(record) => self.apply_idle(record),
            Record::Traffic(record) => self.apply_traffic(record),
            Record::Retransmit(record, told) => {
                if let What::Retransmit { state, total } = record.what {
                    self.retransmitted(record, state, total, told);
                }
            }
        }
    }

    fn apply_socket(&mut self, record: &SocketRecord) {
        match record.what {
            What::End { from, error, total_retrans } => self.end(record, from, error, total_retrans),
            What::Transition { from, to, value } => self.change(record, from, to, value),
            What::Retransmit { state, total } => {
                self.retransmitted(record, state, total, &Retransmits::one(record.time_ns, state));
            }
            What::MinisockEnd => self.end_minisock(&record.socket, record.time_ns),
            What::Accept { state, pid } => {
                if let Some(slot) = self.find_or_insert(&record.socket, state, record.time_ns) {
                    self.own(slot, pid.and_then(|pid| self.processes.by_pid(pid)), record.time_ns);
                    self.table.get_mut(slot).marks.remove(ConnFlags::UNACCEPTED);
                    self.group(slot, record.time_ns);
                }
            }
            What::ConnectFailed { pid, error } => self.fail_at_once(record, pid, error),
            What::Close { state, pid, unread_bytes } => {
                if let Some(slot) = self.find_or_insert(&record.socket, state, record.time_ns) {
                    self.table.get_mut(slot).unread_bytes = unread_bytes;
                    self.closed_by(slot, pid.and_then(|pid| self.processes.by_pid(pid)), record.time_ns);
                }
            }
        }
    }

    /// Comes just before the change of state; of a connection that is not known there is nothing to say.
    fn apply_idle(&mut self, record: &IdleRecord) {
        let Some(slot) = self.table.find(record.cookie) else { return };
        let conn = self.table.get_mut(slot);
        conn.end.get_or_insert_default().idle = Some(Idle {
            sending_ns: self.tick_rate.nanos(record.sent_ticks),
            receiving_ns: self.tick_rate.nanos(record.received_ticks),
        });
    }

    /// One side closed an ESTABLISHED connection first.
    fn count_idle(&mut self, slot: ConnKey, to: TcpState, now_ns: u64) {
        let closer = match to {
            TcpState::FinWait1 => Closer::Local,
            TcpState::CloseWait => Closer::Peer,
            _ => return,
        };
        if let Some(idle) = self.table.get(slot).idle()
            && let Some(group) = self.group(slot, now_ns)
        {
            let histogram = &mut self.groups.counts(group).idle[closer as usize];
            histogram.get_or_insert_default().observe(idle.sending_ns.min(idle.receiving_ns));
        }
    }

    fn change(&mut self, record: &SocketRecord, from: TcpState, to: TcpState, value: u32) {
        let now_ns = record.time_ns;
        if from == to {
            self.closed_again(record, to, value);
            return;
        }
        let cause = cause(from, to, 0);
        // The two ways a life begins before our eyes.
        let born = from == TcpState::Close || (from == TcpState::SynRecv && record.socket.is_passive());
        if from == TcpState::Close {
            self.forget_unconnected(record.socket.cookie);
        }
        let known = self.table.find(record.socket.cookie);
        let known = known.filter(|slot| {
            // Another life of the same socket; the end of the one before was lost, or is a minisock.
            let over = from == TcpState::Close
                || self.table.get(*slot).is(ConnFlags::MINISOCK)
                || self.is_another(*slot, &record.socket);
            if over {
                self.supersede(*slot, now_ns);
            }
            !over
        });
        // A record of its own had the same time.
        let traffic_told = record.traffic.is_some()
            || known
                .is_some_and(|slot| from == TcpState::Established && self.table.get(slot).seen_ns == now_ns);
        if let Some(slot) = known {
            self.leave(slot, from, to, now_ns);
            self.table.enter(slot, to, cause, now_ns);
        }
        let marks = ConnFlags::default().with(ConnFlags::OLDER, !born);
        let Some(slot) =
            known.or_else(|| self.insert(&record.socket, Life::new(to, cause, now_ns), now_ns, marks))
        else {
            return;
        };
        self.describe(slot, &record.socket);
        if from.follows_established() {
            self.note_established(slot, now_ns);
        }
        if let Some(traffic) = record.traffic {
            self.carry(slot, traffic, now_ns);
        }
        let conn = self.table.get_mut(slot);
        if traffic_told && FirstClose::of_state(to).is_some() {
            conn.marks.insert(ConnFlags::AFTER_CLOSE_TOLD);
        }
        match to {
            TcpState::SynSent | TcpState::Listen => {
                let process = self.processes.by_pid(value);
                self.own(slot, process, now_ns);
                self.refer(slot, process, |conn| &mut conn.opener);
                if to == TcpState::SynSent {
                    self.count_attempt(slot, now_ns);
                }
            }
            TcpState::FinWait1 | TcpState::LastAck => {
                self.closed_by(slot, self.processes.by_pid(value), now_ns);
            }
            TcpState::CloseWait => conn.unread_bytes = value,
            TcpState::Established => {
                if from == TcpState::SynRecv && record.socket.is_passive() && conn.retransmits.is_none() {
                    // Of the SYN-ACK, and counted as the listener's; but those of TCP Fast Open.
                    conn.total_retrans = Some(value);
                }
                let first = !conn.marks.replace(ConnFlags::ESTABLISHED, true);
                if known.is_some() {
                    self.replace_minisock(&record.socket, now_ns);
                }
                if first && let Some(group) = self.group(slot, now_ns) {
                    self.groups.counts(group).opened += 1;
                    self.count_connect(slot, Outcome::Established, now_ns);
                }
            }
            _ => {}
        }
        self.doubt_listener(slot, now_ns);
        self.group(slot, now_ns);
        if from == TcpState::Established {
            self.count_idle(slot, to, now_ns);
        }
    }

    /// A close() after shutdown() sets the state that is set already (tcp_close_state, net/ipv4/tcp.c).
    fn closed_again(&mut self, record: &SocketRecord, state: TcpState, value: u32) {
        let closes = matches!(state, TcpState::FinWait1 | TcpState::LastAck);
        if let Some(slot) = self.find_or_insert(&record.socket, state, record.time_ns)
            && closes
        {
            self.closed_by(slot, self.processes.by_pid(value), record.time_ns);
        }
    }

    /// The socket reached CLOSE: its life is over, or goes on as a minisock that no state change tells of.
    fn end(&mut self, record: &SocketRecord, from: TcpState, error: u8, total_retrans: u32) {
        let now_ns = record.time_ns;
        let cause = cause(from, TcpState::Close, error);
        self.sweep.ended(record.socket.cookie, now_ns);
        self.end_unlisted(record.socket.cookie);
        let mut known = self.table.find(record.socket.cookie);
        let over = |slot: ConnKey| {
            self.table.get(slot).is(ConnFlags::MINISOCK) || self.is_another(slot, &record.socket)
        };
        if let Some(slot) = known.filter(|slot| over(*slot)) {
            self.supersede(slot, now_ns);
            known = None;
        } else if known.is_none() && self.table.is_full() && minisock(&record.socket, from, error).is_none() {
            return;
        }
        let Some(slot) = known.or_else(|| self.insert_older(&record.socket, from, now_ns)) else { return };
        self.hear_of(slot, &record.socket, now_ns);
        if from.follows_established() {
            self.note_established(slot, now_ns);
        }
        self.count_retransmits(slot, total_retrans, now_ns);
        if let Some(traffic) = record.traffic {
            self.carry(slot, traffic, now_ns);
        }
        let told = (!self.reported.errnos_missing).then_some(error);
        self.count_closed(slot, from, told, now_ns);
        self.table.get_mut(slot).error = error;
        if matches!(from, TcpState::SynSent | TcpState::SynRecv) {
            let failure = Failure { from, error: told };
            self.fail_connect(slot, &record.socket, failure, now_ns);
        }
        if let Some(state) = minisock(&record.socket, from, error) {
            let Socket { netns, local, remote, .. } = record.socket;
            self.sweep.ended_minisock((netns, local, remote), now_ns);
            if state == self.table.get(slot).state() {
                self.table.get_mut(slot).seen_ns = now_ns;
            } else {
                self.leave(slot, from, state, now_ns);
                self.table.enter(slot, state, cause, now_ns);
                self.table.get_mut(slot).marks.set(ConnFlags::STATE_OLDER, state == from);
            }
            let timer = self.ticks.map(|ticks| ticks.timer_fires(now_ns, MINISOCK_NS));
            self.shrink(slot, timer.unwrap_or(now_ns.saturating_add(MINISOCK_NS)), now_ns);
            self.doubt_listener(slot, now_ns);
        } else {
            self.leave(slot, from, TcpState::Close, now_ns);
            self.remove(slot, cause, now_ns);
        }
    }

    /// Whether the connection cannot be that of this socket: another had its address before.
    pub(crate) fn is_another(&self, slot: ConnKey, socket: &Socket) -> bool {
        if !self.reported.identity_is_address {
            return false;
        }
        let remote = self.table.get(slot).remote;
        remote.port != 0 && socket.remote.port != 0 && remote != socket.remote
    }

    /// The connection is over; its end was not told.
    pub(crate) fn supersede(&mut self, slot: ConnKey, now_ns: u64) {
        let conn = self.table.get(slot);
        if conn.is_full() {
            self.count_closed(slot, conn.state(), None, now_ns);
        }
        self.remove(slot, Cause::Unknown, now_ns);
    }

    /// The socket in CLOSE begins a life.
    fn forget_unconnected(&mut self, cookie: u64) {
        if let Some(id) = self.unconnected.remove(&cookie).and_then(|socket| socket.process) {
            self.processes.drop_user(id);
        }
    }

    /// Its establishment shows by what came of it, though the record was lost.
    pub(crate) fn note_established(&mut self, slot: ConnKey, now_ns: u64) {
        let conn = self.table.get_mut(slot);
        let first = !conn.marks.replace(ConnFlags::ESTABLISHED, true) && !conn.is(ConnFlags::OLDER);
        if first && let Some(group) = self.group(slot, now_ns) {
            self.groups.counts(group).opened += 1;
            self.count_connect(slot, Outcome::Established, now_ns);
        }
    }

    /// Whether there is something whose further life no record tells.
    pub fn has_minisocks(&self) -> bool {
        self.table.has_minisocks()
    }

    /// A minisock is gone: by its timer, unless that was not due yet.
    pub(crate) fn end_minisock(&mut self, socket: &Socket, now_ns: u64) {
        self.sweep.ended_minisock((socket.netns, socket.local, socket.remote), now_ns);
        if let Some(slot) = self.table.find_minisock(socket.netns, socket.local, socket.remote) {
            let early = now_ns.saturating_add(TIMER_SLACK_NS) < self.table.get(slot).expires_ns;
            self.remove(slot, if early { Cause::Peer } else { Cause::Timer }, now_ns);
        }
    }

    /// Minisocks whose time is up at `now_ns` are gone. Where records tell, only what no record told of.
    pub fn expire(&mut self, now_ns: u64) {
        self.settle_pending_resets(now_ns);
        let now_ns = if self.reported.minisock_ends { now_ns.saturating_sub(TIMER_SLACK_NS) } else { now_ns };
        for state in [TcpState::TimeWait, TcpState::FinWait2] {
            while let Some((slot, conn)) = self.table.oldest_minisock(state) {
                let (expires_ns, ends) = (conn.expires_ns, conn.ends());
                if expires_ns > now_ns {
                    break;
                }
                self.sweep.ended_minisock(ends, now_ns);
                self.remove(slot, Cause::Timer, expires_ns);
            }
        }
    }

    /// The connection, or one entered now because the record presumes a life before it.
    pub(crate) fn find_or_insert(
        &mut self,
        socket: &Socket,
        state: TcpState,
        now_ns: u64,
    ) -> Option<ConnKey> {
        let known = self.table.find(socket.cookie);
        if let Some(slot) = known.filter(|slot| self.is_another(*slot, socket)) {
            self.supersede(slot, now_ns);
        } else if let Some(slot) = known {
            self.hear_of(slot, socket, now_ns);
            return known;
        }
        self.insert_older(socket, state, now_ns)
    }

    fn insert_older(&mut self, socket: &Socket, state: TcpState, now_ns: u64) -> Option<ConnKey> {
        let marks = ConnFlags::OLDER | ConnFlags::STATE_OLDER;
        self.insert(socket, Life::new(state, Cause::Unknown, now_ns), now_ns, marks)
    }

    fn hear_of(&mut self, slot: ConnKey, socket: &Socket, now_ns: u64) {
        self.describe(slot, socket);
        let conn = self.table.get_mut(slot);
        conn.seen_ns = conn.seen_ns.max(now_ns);
    }

    pub(crate) fn insert(
        &mut self,
        socket: &Socket,
        life: Life,
        now_ns: u64,
        marks: ConnFlags,
    ) -> Option<ConnKey> {
        // A socket that connects from a port of the kernel's choice has not got it yet.
        if socket.local.port != 0 {
            self.replace_minisock(socket, now_ns);
        }
        if self.table.is_full() && !self.make_room(now_ns) {
            self.untracked += 1;
            return None;
        }
        let role = match life.state() {
            TcpState::Listen => Role::Listener,
            // Also one that listened before.
            TcpState::SynSent => Role::Client,
            _ if socket.is_passive() => Role::Server,
            // It does not say who opened it: a listener on its port does.
            _ if marks.contains(ConnFlags::OLDER)
                && self.listeners.contains_key(&(socket.netns, socket.local.port)) =>
            {
                Role::Server
            }
            _ if socket.is_minisock() => Role::Unknown,
            _ => Role::Client,
        };
        let unaccepted = socket.is_unaccepted();
        let marks = marks
            .with(ConnFlags::UNACCEPTED, unaccepted)
            .with(ConnFlags::REQUEST, socket.is_request())
            .with(ConnFlags::ACCEPT_IS_TOLD, self.reported.accepts && !marks.contains(ConnFlags::OLDER))
            .with(ConnFlags::BY_ADDRESS, self.reported.identity_is_address);
        let slot = self.table.insert(socket, life, role, now_ns, marks);
        match role {
            Role::Listener => {
                self.listeners.entry((socket.netns, socket.local.port)).or_default().push(slot);
            }
            Role::Server if unaccepted => {
                let owner = self.listener_of(socket.netns, socket.local);
                self.set_process(slot, owner, now_ns);
            }
            _ => {}
        }
        Some(slot)
    }

    /// What every record repeats. A connecting socket gets its port, sometimes its address, only after
    /// SYN_SENT was announced.
    #[inline]
    pub(crate) fn describe(&mut self, slot: ConnKey, socket: &Socket) {
        let conn = self.table.get(slot);
        let same = (conn.local, conn.remote) == (socket.local, socket.remote);
        let accepted = conn.is(ConnFlags::UNACCEPTED) && socket.is_held();
        if !conn.is(ConnFlags::MINISOCK) && (!same || conn.is(ConnFlags::REQUEST) || accepted) {
            self.describe_anew(slot, socket);
        }
    }

    #[cold]
    fn describe_anew(&mut self, slot: ConnKey, socket: &Socket) {
        let conn = self.table.get_mut(slot);
        if conn.is(ConnFlags::REQUEST) && !socket.is_request() {
            conn.marks.remove(ConnFlags::REQUEST);
            conn.marks.set(ConnFlags::UNACCEPTED, socket.is_unaccepted());
            conn.swept = 0;
        }
        if socket.is_held() {
            conn.marks.remove(ConnFlags::UNACCEPTED);
        }
        if (conn.local, conn.remote) != (socket.local, socket.remote) {
            let (role, netns, port) = (conn.role, conn.netns, conn.local.port);
            (conn.local, conn.remote) = (socket.local, socket.remote);
            if role == Role::Listener && port != socket.local.port {
                self.unlist(slot, (netns, port));
                self.listeners.entry((netns, socket.local.port)).or_default().push(slot);
            }
        }
    }

    /// At the limit a TIME_WAIT, which nobody holds any more, gives way.
    fn make_room(&mut self, now_ns: u64) -> bool {
        let oldest = self.table.oldest_minisock(TcpState::TimeWait).map(|(slot, _)| slot);
        if let Some(slot) = oldest {
            self.untracked += 1;
            self.remove(slot, Cause::Unknown, now_ns);
        }
        oldest.is_some()
    }

    /// Whoever has these ends now replaced the minisock that had them.
    fn replace_minisock(&mut self, socket: &Socket, now_ns: u64) {
        if !socket.is_minisock() {
            self.sweep.ended_minisock((socket.netns, socket.local, socket.remote), now_ns);
        }
        if let Some(old) = self.table.find_minisock(socket.netns, socket.local, socket.remote) {
            self.remove(old, Cause::Unknown, now_ns);
        }
    }

    /// The connection goes on as a minisock, until `expires_ns`.
    pub(crate) fn shrink(&mut self, slot: ConnKey, expires_ns: u64, now_ns: u64) {
        if let Some(old) = self.table.shrink(slot, expires_ns) {
            self.remove(old, Cause::Unknown, now_ns);
        }
    }

    /// Where the connection is counted; chosen when there is first something to count, so that an owner
    /// learned late leaves no empty group behind. Listeners are not counted.
    #[inline]
    pub(crate) fn group(&mut self, slot: ConnKey, now_ns: u64) -> Option<GroupId> {
        let conn = self.table.get(slot);
        if conn.group.is_some() || conn.role == Role::Listener {
            return conn.group;
        }
        self.join_group(slot, now_ns)
    }

    fn join_group(&mut self, slot: ConnKey, now_ns: u64) -> Option<GroupId> {
        let conn = self.table.get_mut(slot);
        let process = conn.process.map(|id| &self.processes.get(id).comm);
        conn.group = Some(self.groups.hold(process, conn.role, conn.peer(), now_ns));
        conn.group
    }

    /// Notes how long the state lasted that ends now, where that is exactly known.
    fn leave(&mut self, slot: ConnKey, from: TcpState, to: TcpState, now_ns: u64) {
        let conn = self.table.get(slot);
        let (since_ns, exact) = (conn.since_ns(), conn.state() == from && !conn.is(ConnFlags::STATE_OLDER));
        if exact && let Some(group) = self.group(slot, now_ns) {
            let nanos = now_ns.saturating_sub(since_ns);
            match (from, to) {
                (TcpState::SynSent, TcpState::Established) => self.groups.observe(group, from, nanos),
                (TcpState::SynSent, _) => self.groups.observe_unaccepted(group, nanos),
                _ => self.groups.observe(group, from, nanos),
            }
        }
    }

    /// `error`: `None` where the end was not told.
    pub(crate) fn count_closed(&mut self, slot: ConnKey, from: TcpState, error: Option<u8>, now_ns: u64) {
        let was_established = self.table.get(slot).is(ConnFlags::ESTABLISHED) || from.follows_established();
        if was_established && let Some(group) = self.group(slot, now_ns) {
            self.groups.counts(group).closed[FirstClose::of(from, error) as usize] += 1;
        }
    }

    /// The connection is over; it stays among the ended while there is room.
    pub(crate) fn remove(&mut self, slot: ConnKey, cause: Cause, now_ns: u64) {
        if self.table.get(slot).is(ConnFlags::CONNECTING) {
            self.count_connect(slot, Outcome::Unknown, now_ns);
        }
        self.settle_reset(slot, now_ns);
        let mut conn = self.table.remove(slot);
        if let Some(group) = conn.group.take() {
            self.groups.release(group, now_ns);
        }
        if conn.role == Role::Listener {
            self.forget_listener(slot, &conn);
        }
        if conn.is(ConnFlags::REQUEST) || self.limits.ended == 0 {
            self.forget(&conn);
            return;
        }
        if self.ended.len() >= self.limits.ended
            && let Some(oldest) = self.ended.pop_front()
        {
            self.forget(&oldest.conn);
        }
        self.ended.push_back(Ended { conn, ended_ns: now_ns, cause });
    }

    pub(crate) fn forget(&mut self, conn: &Conn) {
        for id in [conn.opener, conn.process, conn.closer].into_iter().flatten() {
            self.processes.drop_user(id);
        }
    }
}

/// What the kernel keeps of a socket that went from `from` to CLOSE (tcp_time_wait and its callers in
/// net/ipv4/tcp_input.c and tcp.c). An error, such as a reset, keeps nothing.
fn minisock(socket: &Socket, from: TcpState, error: u8) -> Option<TcpState> {
    match from {
        TcpState::FinWait2 | TcpState::Closing if error != 0 => None,
        TcpState::FinWait2 | TcpState::Closing if socket.fin_received() => Some(TcpState::TimeWait),
        TcpState::FinWait2 if socket.is_orphan() => Some(TcpState::FinWait2),
        _ => None,
    }
}
