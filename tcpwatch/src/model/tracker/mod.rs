//! The state of the node's TCP: applies records to processes, connections and counts.
//!
//! In: decoded records in the order of their times, sweeps (see `sweep.rs`). Out: the table, the counts and the processes,
//! for others to read. It decides roles, owners and ends.

pub(crate) mod connects;
pub(crate) mod descriptors;
pub mod held_back;
pub(crate) mod idles;
pub mod kept_ends;
pub mod overflows;
pub(crate) mod owners;
pub mod pools;
pub(crate) mod resets;
pub(crate) mod retransmits;
pub mod silent;
pub mod sweep;
pub(crate) mod time_wait;
pub(crate) mod traffic;
pub mod troubles;
pub(crate) mod waiting;

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::{
    events::{
        decode::{Identity, IdleRecord, Record, Retransmits, Socket, SocketRecord, TaskRecord, What},
        frame::{InterfaceNames, NamespaceSettings, ProcDetails, ReportedFacts},
    },
    model::{
        groups::{Closer, GroupId, Groups, Role},
        idle_times::IdleTimes,
        interfaces::{Interface, Interfaces},
        processes::{Activity, ProcessTable},
        table::{Conn, ConnFlags, ConnKey, Idle, Table},
        tracker::{
            connects::Failure,
            descriptors::Counts,
            held_back::Suspects,
            kept_ends::KeptEnds,
            overflows::{Listening, NamespaceOverflows},
            pools::{Pools, ProcessKey},
            resets::Pending,
            retransmits::Unlisted,
            silent::SilentConns,
            sweep::{Progress, Unconnected},
            troubles::Troubles,
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

/// How long TIME_WAIT lasts: TCP_TIMEWAIT_LEN in include/net/tcp.h. Also how long an orphan stays in FIN_WAIT2 as a minisock
/// unless tcp_fin_timeout or TCP_LINGER2 say less; then sweeps correct it.
pub(crate) const MINISOCK_NS: u64 = 60_000_000_000;

/// How far the computed end of a timer may be from the real one: a step of the wheel (see `ticks.rs`).
const TIMER_SLACK_NS: u64 = 5_000_000_000;

/// Bounds of the tables.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections: usize,
    /// Ended connections that are kept.
    pub ended: usize,
    /// Sets of process, role and peer.
    pub label_sets: usize,
}

/// What sweeps corrected because no record had reported it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Repairs {
    /// Connections that were missing in the table.
    pub appeared: u64,
    /// Connections that were in another state.
    pub changed: u64,
    /// Connections that were over.
    pub vanished: u64,
}

pub struct Tracker {
    table: Table,
    processes: ProcessTable,
    interfaces: Interfaces,
    groups: Groups,
    /// Connections that ended, oldest first.
    ended: VecDeque<Ended>,
    kept_ends: KeptEnds,
    idle_times: IdleTimes,
    /// By the cookie of the listener.
    queues: FxHashMap<u64, Listening>,
    /// The listener's cookie of each connection that the latest sweep found in an accept queue or as a request, by the
    /// connection's.
    queued: FxHashMap<u64, u64>,
    overflows: NamespaceOverflows,
    /// Sockets in CLOSE that a process holds, by cookie.
    unconnected: FxHashMap<u64, Unconnected>,
    /// Connections that found no room in the table.
    untracked: u64,
    repairs: Repairs,
    reported: ReportedFacts,
    unlisted: Unlisted,
    troubles: Troubles,
    suspects: Suspects,
    /// By the cookie of the socket.
    pending_resets: FxHashMap<u64, Pending>,
    tick_rate: TickRate,
    /// From the first look of a sweep on.
    ticks: Option<Ticks>,
    sweep: Progress,
    pools: Pools,
    silent: SilentConns,
    descriptors: FxHashMap<ProcessKey, Counts>,
    /// What network namespaces are set to, by inode.
    settings: FxHashMap<u32, NamespaceSettings>,
    /// The network namespaces that the latest sweep found (`Coverage::existing`).
    namespaces: FxHashMap<u32, u32>,
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
        // Reserved at once and exactly: then a connection that ends takes the place of the oldest, which is in the cache. If
        // memory does not suffice, it grows as far as it can.
        let mut ended = VecDeque::new();
        let _ = ended.try_reserve_exact(limits.ended);
        Self {
            table: Table::new(limits.connections),
            processes: ProcessTable::default(),
            interfaces: Interfaces::default(),
            groups: Groups::new(limits.label_sets),
            ended,
            kept_ends: KeptEnds::default(),
            idle_times: IdleTimes::default(),
            queues: FxHashMap::default(),
            queued: FxHashMap::default(),
            overflows: NamespaceOverflows::default(),
            unconnected: FxHashMap::default(),
            untracked: 0,
            repairs: Repairs::default(),
            reported,
            unlisted: Unlisted::default(),
            troubles: Troubles::default(),
            suspects: Suspects::default(),
            pending_resets: FxHashMap::default(),
            tick_rate,
            ticks: None,
            sweep: Progress::default(),
            pools: Pools::default(),
            silent: SilentConns::default(),
            descriptors: FxHashMap::default(),
            settings: FxHashMap::default(),
            namespaces: FxHashMap::default(),
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

    /// Ends by a reset, which are kept for longer than the others.
    pub fn kept_ends(&self) -> &KeptEnds {
        &self.kept_ends
    }

    /// How long connections had been idle when a side closed them.
    pub fn idle_times(&self) -> &IdleTimes {
        &self.idle_times
    }

    /// How exact times are that the kernel keeps in ticks.
    pub fn tick_ms(&self) -> u32 {
        (self.tick_rate.nanos(1) / 1_000_000) as u32
    }

    /// The accept queue of the listener with this cookie.
    pub fn queue(&self, cookie: u64) -> Option<&Listening> {
        self.queues.get(&cookie)
    }

    /// The listener on whose accept queue the latest sweep found a connection that stands there, or that a request was
    /// made to.
    pub fn listener_of(&self, conn: &Conn) -> Option<&Conn> {
        let listener = conn.standing()?.listener?;
        Some(self.table.get(self.table.find(listener)?)).filter(|conn| conn.role == Role::Listener)
    }

    /// What the network namespace with this inode is set to, as the latest sweep that entered it read.
    pub fn namespace(&self, netns: u32) -> Option<&NamespaceSettings> {
        self.settings.get(&netns)
    }

    /// What all network namespaces are set to.
    pub fn all_settings(&self) -> impl Iterator<Item = &NamespaceSettings> {
        self.settings.values()
    }

    pub fn set_namespace(&mut self, settings: &NamespaceSettings) {
        self.settings.insert(settings.netns, settings.clone());
    }

    /// Connections that the latest sweep found in accept queues, each with the cookie of the listener.
    pub fn in_accept_queues(&self) -> impl Iterator<Item = (&Conn, u64)> {
        let found =
            self.queued.iter().filter_map(|(cookie, listener)| Some((self.table.find(*cookie)?, *listener)));
        found
            .map(|(key, listener)| (self.table.get(key), listener))
            .filter(|(conn, _)| conn.accepted() == Some(false))
    }

    /// CLOCK_MONOTONIC when the latest sweep that has ended began; 0 before.
    pub fn swept_ns(&self) -> u64 {
        self.sweep.swept_ns
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

    /// What a sample of the series is made of; see `model/series/`.
    pub(crate) fn tally_sources(&mut self) -> (&Table, &mut ProcessTable) {
        (&self.table, &mut self.processes)
    }

    /// What the records of this run report.
    pub fn reported(&self) -> ReportedFacts {
        self.reported
    }

    /// Processes whose /proc was not read yet, at most `count`; each is returned once.
    pub fn take_unread_processes(&mut self, count: usize) -> Vec<TaskRecord> {
        self.processes.take_unread(count)
    }

    /// Number of those that were not returned yet.
    pub fn unread_processes(&self) -> usize {
        self.processes.unread()
    }

    /// See [`ProcessTable::next_held`].
    pub fn next_held_processes(&mut self, count: usize) -> Vec<TaskRecord> {
        self.processes.next_held(count)
    }

    /// What /proc says of a process.
    pub fn describe_process(&mut self, identity: &Identity, details: &ProcDetails) {
        self.processes.describe(identity, details);
    }

    /// The interface with this index; `None` for 0.
    pub fn interface(&self, netns: u32, index: u32) -> Option<Interface> {
        self.interfaces.get(netns, index)
    }

    /// Whether these names are known already.
    pub fn knows_interfaces(&self, read: &InterfaceNames) -> bool {
        self.interfaces.knows(read)
    }

    pub fn name_interfaces(&mut self, read: &InterfaceNames) {
        self.interfaces.learn(read);
    }

    /// Puts the interface into a record whose socket is bound to one: as the record before it reports, or as known.
    /// To be called before [`Tracker::apply`].
    pub fn complete(&self, record: &mut Record) {
        let socket = match record {
            Record::Socket(record) | Record::Retransmit(record, _) => &mut record.socket,
            Record::Reset(record) => &mut record.socket,
            Record::Interface(_) | Record::Idle(_) | Record::Traffic(_) | Record::Task(_) => return,
        };
        if socket.is_bound() {
            let known = || self.table.find(socket.cookie).map(|key| self.table.get(key).interface);
            socket.interface =
                self.interfaces.announced(socket.cookie).or_else(known).unwrap_or(socket.interface);
        }
    }

    /// `record`: complete.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Task(task) => {
                self.processes.learn(task);
            }
            Record::Socket(record) => self.apply_socket(record),
            Record::Reset(record) => self.apply_reset(record),
            Record::Idle(record) => self.apply_idle(record),
            Record::Traffic(record) => self.apply_traffic(record),
            Record::Interface(record) => self.interfaces.announce(*record),
            Record::Retransmit(record, reported) => {
                if let What::Retransmit { state, total } = record.what {
                    self.retransmitted(record, state, total, reported);
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
            What::TimeWait => self.restart_time_wait(record.socket.ends(), record.time_ns),
            What::Accept { state, pid } => {
                if let Some(key) = self.find_or_insert(&record.socket, state, record.time_ns) {
                    self.own(key, pid.and_then(|pid| self.processes.by_pid(pid)), record.time_ns);
                    self.accepted(key, record.time_ns);
                    self.group(key, record.time_ns);
                }
            }
            What::ConnectFailed { pid, error } => self.fail_at_once(record, pid, error),
            What::Close { state, pid, unread_bytes } => {
                if let Some(key) = self.find_or_insert(&record.socket, state, record.time_ns) {
                    self.table.get_mut(key).unread_bytes = unread_bytes;
                    self.closed_by(key, pid.and_then(|pid| self.processes.by_pid(pid)), record.time_ns);
                }
            }
        }
    }

    /// Arrives just before the change of state; ignored where the connection is not known.
    fn apply_idle(&mut self, record: &IdleRecord) {
        let Some(key) = self.table.find(record.cookie) else { return };
        let conn = self.table.get_mut(key);
        // Without a time of its own: since the connection was established.
        let established_ns = record.time_ns.saturating_sub(conn.since_ns());
        let nanos = |ticks| if ticks == u32::MAX { established_ns } else { self.tick_rate.nanos(ticks) };
        conn.end.get_or_insert_default().idle =
            Some(Idle { sending_ns: nanos(record.sent_ticks), receiving_ns: nanos(record.received_ticks) });
    }

    /// Counts how long an ESTABLISHED connection had been idle that one side closes first.
    fn count_idle(&mut self, key: ConnKey, to: TcpState, now_ns: u64) {
        let Some(closer) = Closer::of(to) else { return };
        if let Some(idle) = self.table.get(key).idle()
            && let Some(group) = self.group(key, now_ns)
        {
            self.groups.counts(group).observe_idle(closer, idle);
            self.sample_close(key);
        }
    }

    fn change(&mut self, record: &SocketRecord, from: TcpState, to: TcpState, value: u32) {
        let now_ns = record.time_ns;
        if from == to {
            self.closed_again(record, to, value);
            return;
        }
        let cause = cause(from, to, 0);
        // The two transitions with which a life begins.
        let born = from == TcpState::Close || (from == TcpState::SynRecv && record.socket.is_passive());
        if from == TcpState::Close {
            self.forget_unconnected(record.socket.cookie);
        }
        let known = self.table.find(record.socket.cookie);
        let known = known.filter(|key| {
            // Another life of the same socket: the end of the life before was lost, or is a minisock.
            let over = from == TcpState::Close
                || self.table.get(*key).is(ConnFlags::MINISOCK)
                || self.is_another(*key, &record.socket);
            if over {
                self.supersede(*key, now_ns);
            }
            !over
        });
        // A record of its own came with the same time.
        let traffic_known = record.traffic.is_some()
            || known
                .is_some_and(|key| from == TcpState::Established && self.table.get(key).seen_ns == now_ns);
        if let Some(key) = known {
            if (from, to) == (TcpState::SynSent, TcpState::Established) {
                self.note_deferred_connect(key, value, now_ns);
            }
            self.leave(key, from, to, now_ns);
            self.table.enter(key, to, cause, now_ns);
        }
        let flags =
            if born { ConnFlags::default() } else { self.older(&record.socket, from.follows_established()) };
        let Some(key) =
            known.or_else(|| self.insert(&record.socket, Life::new(to, cause, now_ns), now_ns, flags))
        else {
            return;
        };
        self.describe(key, &record.socket);
        if let Some(traffic) = record.traffic {
            self.carry(key, traffic, now_ns);
        }
        if (from, to) == (TcpState::Established, TcpState::FinWait1) {
            self.note_broken(key, now_ns);
        }
        let conn = self.table.get_mut(key);
        if traffic_known && FirstClose::of_state(to).is_some() {
            conn.flags.insert(ConnFlags::AFTER_CLOSE_KNOWN);
        }
        let waited = conn.is(ConnFlags::COUNTS_WAIT);
        match to {
            TcpState::SynSent | TcpState::Listen => {
                let process = self.processes.by_pid(value);
                self.own(key, process, now_ns);
                self.refer(key, process, |conn| &mut conn.opener);
                if to == TcpState::SynSent {
                    self.count_attempt(key, now_ns);
                }
            }
            TcpState::FinWait1 | TcpState::LastAck => {
                // Had it closed with unread bytes, it would have been reset. After shutdown() the next sweep knows.
                conn.unread_bytes = 0;
                self.closed_by(key, self.processes.by_pid(value), now_ns);
            }
            TcpState::CloseWait => conn.unread_bytes = value,
            TcpState::Established => {
                if from == TcpState::SynRecv && record.socket.is_passive() && conn.retransmits.is_none() {
                    // Retransmits of the SYN-ACK, counted with the listener's; except with TCP Fast Open.
                    conn.set_total_retrans(value);
                }
                let first = !conn.flags.replace(ConnFlags::ESTABLISHED, true);
                if known.is_some() {
                    self.replace_minisock(&record.socket, now_ns);
                }
                if first {
                    self.count_opened(key, now_ns);
                    self.count_connect(key, Outcome::Established, now_ns);
                }
            }
            _ => {}
        }
        // After the owner is known.
        if from.follows_established() {
            self.note_established(key, now_ns);
        }
        self.doubt_listener(key, now_ns);
        // Its owner is known in a moment, if it is a server's.
        if to != TcpState::Established || !self.table.get(key).is(ConnFlags::COUNTS_WAIT) {
            self.group(key, now_ns);
        }
        if from == TcpState::Established && !waited {
            self.count_idle(key, to, now_ns);
        }
    }

    /// A close() after shutdown() sets the state that is set already (tcp_close_state, net/ipv4/tcp.c).
    fn closed_again(&mut self, record: &SocketRecord, state: TcpState, value: u32) {
        let closes = matches!(state, TcpState::FinWait1 | TcpState::LastAck);
        if let Some(key) = self.find_or_insert(&record.socket, state, record.time_ns)
            && closes
        {
            self.closed_by(key, self.processes.by_pid(value), record.time_ns);
        }
    }

    /// The socket reached CLOSE: its life is over, or goes on as a minisock, of which no state change is reported.
    fn end(&mut self, record: &SocketRecord, from: TcpState, error: u8, total_retrans: u32) {
        let now_ns = record.time_ns;
        let cause = cause(from, TcpState::Close, error);
        self.sweep.ended(record.socket.cookie, now_ns);
        self.end_unlisted(record.socket.cookie);
        self.end_trouble(record.socket.cookie);
        self.end_suspect(record.socket.cookie);
        if from == TcpState::LastAck && error == 0 {
            self.notice_acknowledged_fin(&record.socket, now_ns);
        }
        let mut known = self.table.find(record.socket.cookie);
        let over = |key: ConnKey| {
            self.table.get(key).is(ConnFlags::MINISOCK) || self.is_another(key, &record.socket)
        };
        if let Some(key) = known.filter(|key| over(*key)) {
            self.supersede(key, now_ns);
            known = None;
        } else if known.is_none() && self.table.is_full() && minisock(&record.socket, from, error).is_none() {
            return;
        }
        let Some(key) = known.or_else(|| self.insert_older(&record.socket, from, now_ns)) else { return };
        // Again: a connection inserted now is none that begins now.
        self.sweep.ended(record.socket.cookie, now_ns);
        self.hear_of(key, &record.socket, now_ns);
        if record.socket.is_unaccepted() {
            self.table.get_mut(key).flags.insert(ConnFlags::FOUND_UNACCEPTED);
        }
        if from.follows_established() {
            self.note_established(key, now_ns);
        }
        self.count_retransmits(key, total_retrans, now_ns);
        if let Some(traffic) = record.traffic {
            self.carry(key, traffic, now_ns);
        }
        if from == TcpState::Established {
            self.note_broken(key, now_ns);
        }
        let errno = (!self.reported.errnos_missing).then_some(error);
        if from.follows_established() && record.socket.is_in_repair() {
            self.table.get_mut(key).flags.insert(ConnFlags::ENDED_IN_REPAIR);
        }
        self.count_closed(key, from, errno, now_ns);
        let conn = self.table.get_mut(key);
        conn.error = error;
        if error != 0 {
            // The application may still read them.
            conn.unread_bytes = 0;
        }
        if matches!(from, TcpState::SynSent | TcpState::SynRecv) {
            let failure = Failure { from, error: errno };
            self.fail_connect(key, &record.socket, failure, now_ns);
        }
        if let Some(state) = minisock(&record.socket, from, error) {
            self.sweep.ended_minisock(record.socket.ends(), now_ns);
            if state == self.table.get(key).state() {
                self.table.get_mut(key).seen_ns = now_ns;
            } else {
                self.leave(key, from, state, now_ns);
                self.table.enter(key, state, cause, now_ns);
                self.table.get_mut(key).flags.set(ConnFlags::STATE_OLDER, state == from);
            }
            self.shrink(key, self.minisock_expires(now_ns), now_ns);
            self.doubt_listener(key, now_ns);
        } else {
            self.leave(key, from, TcpState::Close, now_ns);
            self.remove(key, cause, now_ns);
        }
    }

    /// Whether the connection is that of another socket, which had this one's address before.
    pub(crate) fn is_another(&self, key: ConnKey, socket: &Socket) -> bool {
        if !self.reported.identity_is_address {
            return false;
        }
        let remote = self.table.get(key).remote;
        remote.port != 0 && socket.remote.port != 0 && remote != socket.remote
    }

    /// Ends a connection whose end was not reported.
    pub(crate) fn supersede(&mut self, key: ConnKey, now_ns: u64) {
        let conn = self.table.get(key);
        if conn.is_full() {
            self.count_closed(key, conn.state(), None, now_ns);
        }
        self.remove(key, Cause::Unknown, now_ns);
    }

    /// The socket in CLOSE begins a life.
    fn forget_unconnected(&mut self, cookie: u64) {
        if let Some(id) = self.unconnected.remove(&cookie).and_then(|socket| socket.process) {
            self.processes.drop_user(id);
        }
    }

    /// Counts an establishment whose record was lost, known by the state that followed it. Of a connection that was
    /// established before this run, `older` has set the flag.
    pub(crate) fn note_established(&mut self, key: ConnKey, now_ns: u64) {
        let first = !self.table.get_mut(key).flags.replace(ConnFlags::ESTABLISHED, true);
        if first {
            self.count_opened(key, now_ns);
            self.count_connect(key, Outcome::Established, now_ns);
        }
    }

    /// A minisock is gone: by its timer, unless that was not due.
    pub(crate) fn end_minisock(&mut self, socket: &Socket, now_ns: u64) {
        self.sweep.ended_minisock(socket.ends(), now_ns);
        if let Some(key) = self.table.find_minisock(socket.ends()) {
            let early = now_ns.saturating_add(TIMER_SLACK_NS) < self.table.get(key).expires_ns();
            self.remove(key, if early { Cause::Peer } else { Cause::Timer }, now_ns);
        }
    }

    /// Removes minisocks whose timers have fired by `now_ns`. Where records report ends, they are given time to arrive.
    pub fn expire(&mut self, now_ns: u64) {
        self.settle_pending_resets(now_ns);
        self.expire_kept_ends(now_ns);
        self.forget_troubles(now_ns);
        let now_ns = if self.reported.minisock_ends { now_ns.saturating_sub(TIMER_SLACK_NS) } else { now_ns };
        for state in [TcpState::TimeWait, TcpState::FinWait2] {
            while let Some((key, conn)) = self.table.oldest_minisock(state) {
                let (expires_ns, ends) = (conn.expires_ns(), conn.ends());
                if expires_ns > now_ns {
                    break;
                }
                self.sweep.ended_minisock(ends, now_ns);
                self.remove(key, Cause::Timer, expires_ns);
            }
        }
    }

    /// The connection, inserted now if the record implies an earlier life that was not seen.
    pub(crate) fn find_or_insert(
        &mut self,
        socket: &Socket,
        state: TcpState,
        now_ns: u64,
    ) -> Option<ConnKey> {
        let known = self.table.find(socket.cookie);
        if let Some(key) = known.filter(|key| self.is_another(*key, socket)) {
            self.supersede(key, now_ns);
        } else if let Some(key) = known {
            self.hear_of(key, socket, now_ns);
            return known;
        }
        self.insert_older(socket, state, now_ns)
    }

    fn insert_older(&mut self, socket: &Socket, state: TcpState, now_ns: u64) -> Option<ConnKey> {
        let flags = self.older(socket, state.follows_established()) | ConnFlags::STATE_OLDER;
        self.insert(socket, Life::new(state, Cause::Unknown, now_ns), now_ns, flags)
    }

    /// The flags of a connection whose beginning was not seen. `established`: it has been ESTABLISHED. Unless that may
    /// have been before this run, it is still to be counted.
    pub(crate) fn older(&self, socket: &Socket, established: bool) -> ConnFlags {
        let not_counted = established && !self.began_unseen(socket.netns);
        ConnFlags::OLDER.with(ConnFlags::ESTABLISHED, not_counted)
    }

    fn hear_of(&mut self, key: ConnKey, socket: &Socket, now_ns: u64) {
        self.describe(key, socket);
        let conn = self.table.get_mut(key);
        conn.seen_ns = conn.seen_ns.max(now_ns);
    }

    pub(crate) fn insert(
        &mut self,
        socket: &Socket,
        life: Life,
        now_ns: u64,
        flags: ConnFlags,
    ) -> Option<ConnKey> {
        // A connecting socket has no local port yet where the kernel chooses it.
        if socket.local.port != 0 {
            self.replace_minisock(socket, now_ns);
        }
        if self.table.is_full() && !self.make_room(now_ns) {
            self.untracked += 1;
            return None;
        }
        let role = match life.state() {
            TcpState::Listen => Role::Listener,
            // Restored, as by CRIU: of which side it was is not known.
            TcpState::SynSent if socket.is_in_repair() && !flags.contains(ConnFlags::OLDER) => Role::Unknown,
            // Also of a socket that listened before.
            TcpState::SynSent => Role::Client,
            _ if socket.is_passive() => Role::Server,
            // The socket does not say who opened it; a listener on its port does.
            _ if flags.contains(ConnFlags::OLDER)
                && self.listeners.contains_key(&(socket.netns, socket.local.port)) =>
            {
                Role::Server
            }
            _ if socket.is_minisock() => Role::Unknown,
            _ => Role::Client,
        };
        let unaccepted = socket.is_unaccepted();
        let flags = flags
            .with(ConnFlags::UNACCEPTED, unaccepted)
            .with(ConnFlags::REQUEST, socket.is_request())
            .with(ConnFlags::BY_ADDRESS, self.reported.identity_is_address);
        let key = self.table.insert(socket, life, role, now_ns, flags);
        self.sweep.began(socket.cookie);
        if role == Role::Listener {
            self.listeners.entry((socket.netns, socket.local.port)).or_default().push(key);
        }
        Some(key)
    }

    /// Takes over what every record repeats. A connecting socket gets its port, and sometimes its address, only after
    /// SYN_SENT was reported.
    #[inline]
    pub(crate) fn describe(&mut self, key: ConnKey, socket: &Socket) {
        let conn = self.table.get(key);
        let same =
            (conn.interface, conn.local, conn.remote) == (socket.interface, socket.local, socket.remote);
        let accepted = conn.is(ConnFlags::UNACCEPTED) && self.shows_accepted(socket);
        if !conn.is(ConnFlags::MINISOCK) && (!same || conn.is(ConnFlags::REQUEST) || accepted) {
            self.describe_anew(key, socket);
        }
    }

    /// Whether the socket's flags show that somebody has accepted it. Records without errnos do not know the flags either.
    fn shows_accepted(&self, socket: &Socket) -> bool {
        !socket.is_unaccepted() && !self.reported.errnos_missing
    }

    #[cold]
    fn describe_anew(&mut self, key: ConnKey, socket: &Socket) {
        let accepted = self.shows_accepted(socket);
        let conn = self.table.get_mut(key);
        if conn.is(ConnFlags::REQUEST) && !socket.is_request() {
            conn.flags.remove(ConnFlags::REQUEST);
            conn.flags.remove(ConnFlags::FOUND_UNACCEPTED);
            conn.flags.insert(ConnFlags::UNACCEPTED);
        }
        let seen_ns = conn.seen_ns;
        if conn.is(ConnFlags::UNACCEPTED) && accepted {
            self.accepted(key, seen_ns);
        }
        let conn = self.table.get_mut(key);
        conn.interface = socket.interface;
        if (conn.local, conn.remote) != (socket.local, socket.remote) {
            let (role, netns, port) = (conn.role, conn.netns, conn.local.port);
            self.table.change_ends(key, |conn| (conn.local, conn.remote) = (socket.local, socket.remote));
            if role == Role::Listener && port != socket.local.port {
                self.unlist(key, (netns, port));
                self.listeners.entry((netns, socket.local.port)).or_default().push(key);
            }
        }
    }

    /// Removes a TIME_WAIT, which no process holds, to make room in a full table.
    fn make_room(&mut self, now_ns: u64) -> bool {
        let oldest = self.table.oldest_minisock(TcpState::TimeWait).map(|(key, _)| key);
        if let Some(key) = oldest {
            self.untracked += 1;
            self.remove(key, Cause::Unknown, now_ns);
        }
        oldest.is_some()
    }

    /// The socket replaces the minisock that had its ends.
    fn replace_minisock(&mut self, socket: &Socket, now_ns: u64) {
        if !socket.is_minisock() {
            self.sweep.ended_minisock(socket.ends(), now_ns);
        }
        if let Some(old) = self.table.find_minisock(socket.ends()) {
            self.remove(old, Cause::Unknown, now_ns);
        }
    }

    /// Turns the connection into a minisock that expires at `expires_ns`.
    pub(crate) fn shrink(&mut self, key: ConnKey, expires_ns: u64, now_ns: u64) {
        if let Some(old) = self.table.shrink(key, expires_ns) {
            self.remove(old, Cause::Unknown, now_ns);
        }
    }

    /// Counts what the connection did for its process, as its group does.
    pub(crate) fn count_activity(&mut self, key: ConnKey, activity: Activity) {
        self.processes.count(self.table.get(key).process, activity);
    }

    /// The group in which the connection is counted, chosen when there is first something to count, so that an owner who
    /// becomes known late leaves no empty group behind. Listeners are not counted.
    #[inline]
    pub(crate) fn group(&mut self, key: ConnKey, now_ns: u64) -> Option<GroupId> {
        let conn = self.table.get(key);
        if conn.group.is_some() || conn.role == Role::Listener {
            return conn.group;
        }
        self.join_group(key, now_ns)
    }

    fn join_group(&mut self, key: ConnKey, now_ns: u64) -> Option<GroupId> {
        let conn = self.table.get_mut(key);
        let process = conn.process.map(|id| &self.processes.get(id).comm);
        conn.group = Some(self.groups.hold(process, conn.role, conn.peer(), now_ns));
        conn.group
    }

    /// Counts how long the state lasted that ends now, where that is known exactly.
    fn leave(&mut self, key: ConnKey, from: TcpState, to: TcpState, now_ns: u64) {
        let conn = self.table.get(key);
        let (since_ns, exact) = (conn.since_ns(), conn.state() == from && !conn.is(ConnFlags::STATE_OLDER));
        if exact
            && !conn.is(ConnFlags::COUNTS_WAIT)
            && let Some(group) = self.group(key, now_ns)
        {
            let deferred_ns = if from == TcpState::SynSent { self.table.get(key).deferred_ns() } else { 0 };
            let nanos = now_ns.saturating_sub(since_ns).saturating_sub(deferred_ns);
            self.groups.observe(group, from, to, nanos);
        }
    }

    /// `error`: the socket's errno; `None` where its end or errno was not reported.
    pub(crate) fn count_closed(&mut self, key: ConnKey, from: TcpState, error: Option<u8>, now_ns: u64) {
        self.count_waiting(key, now_ns);
        if from.follows_established() {
            self.note_established(key, now_ns);
        }
        let was_established = self.table.get(key).is(ConnFlags::ESTABLISHED);
        if was_established && let Some(group) = self.group(key, now_ns) {
            let in_repair = self.table.get(key).is(ConnFlags::ENDED_IN_REPAIR);
            self.groups.counts(group).closed[FirstClose::of(from, error, in_repair) as usize] += 1;
        }
    }

    /// Ends a connection; it is kept among the ended ones while there is room.
    pub(crate) fn remove(&mut self, key: ConnKey, cause: Cause, now_ns: u64) {
        if self.table.get(key).is(ConnFlags::CONNECTING) {
            self.count_connect(key, Outcome::Unknown, now_ns);
        }
        self.count_waiting(key, now_ns);
        self.settle_reset(key, now_ns);
        let mut conn = self.table.remove(key);
        if let Some(group) = conn.group.take() {
            self.groups.release(group, now_ns);
        }
        if conn.role == Role::Listener {
            self.forget_listener(key, &conn);
        }
        self.sample_dwell(&conn, now_ns);
        self.keep_end(&conn, now_ns);
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

/// The state of the minisock that the kernel keeps of a socket that went from `from` to CLOSE (tcp_time_wait and its callers
/// in net/ipv4/tcp_input.c and tcp.c). After an error, such as a reset, it keeps none.
fn minisock(socket: &Socket, from: TcpState, error: u8) -> Option<TcpState> {
    match from {
        TcpState::FinWait2 | TcpState::Closing if error != 0 || socket.is_in_repair() => None,
        TcpState::FinWait2 | TcpState::Closing if socket.fin_received() => Some(TcpState::TimeWait),
        TcpState::FinWait2 if socket.is_orphan() => Some(TcpState::FinWait2),
        _ => None,
    }
}
