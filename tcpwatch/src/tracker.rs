//! The state of the node's TCP: applies records to processes, connections and counts.
//!
//! In: decoded records in the order of the ring, sweeps of held sockets. Out: the table, the counts and the
//! processes, for others to read. Reads no clock and does no I/O: times come with the records.

use rustc_hash::FxHashMap;

use crate::{
    aggregate::{GroupId, GroupKey, Groups, Role},
    decode::{Endpoint, Held, Record, Socket, SocketRecord, What},
    process::{ProcessId, ProcessTable},
    state::TcpState,
    table::{Conn, Marks, Slot, Table},
};

/// include/net/tcp.h: TCP_TIMEWAIT_LEN; also the longest that an orphan stays in FIN_WAIT2 as a minisock
/// (tcp_fin_timeout, 60 s unless set lower, is cut to it in tcp_time_wait).
const MINISOCK_NS: u64 = 60_000_000_000;

/// Bounds of the tables.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections: usize,
    /// Sets of process, role and peer.
    pub label_sets: usize,
}

pub struct Tracker {
    pub table: Table,
    pub processes: ProcessTable,
    pub groups: Groups,
    /// Connections that found no room in the table.
    pub untracked: u64,
    listeners: FxHashMap<(u32, u16), Vec<Slot>>,
    /// Sockets that ended while a sweep was under way: what it says of them is old.
    ended: Option<FxHashMap<u64, u64>>,
}

impl Tracker {
    pub fn new(limits: Limits) -> Self {
        Self {
            table: Table::new(limits.connections),
            processes: ProcessTable::default(),
            groups: Groups::new(limits.label_sets),
            untracked: 0,
            listeners: FxHashMap::default(),
            ended: None,
        }
    }

    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Task(task) => {
                self.processes.learn(task);
            }
            Record::Socket(record) => self.apply_socket(record),
        }
    }

    fn apply_socket(&mut self, record: &SocketRecord) {
        match record.what {
            What::Transition { from, to: TcpState::Close, value } => self.end(record, from, value),
            What::Transition { from, to, value } => self.change(record, from, to, value),
            What::Retransmit { state, total } => {
                if let Some(slot) = self.find_or_insert(record, state) {
                    // At least the one that this record tells of.
                    self.table.get_mut(slot).total_retrans.get_or_insert(total.saturating_sub(1));
                    self.count_retransmits(slot, total, record.time_ns);
                }
            }
            What::Close { state, pid } => {
                if let Some(slot) = self.find_or_insert(record, state) {
                    self.own(slot, pid.and_then(|pid| self.processes.by_pid(pid)), record.time_ns);
                }
            }
        }
    }

    fn change(&mut self, record: &SocketRecord, from: TcpState, to: TcpState, value: u32) {
        let now_ns = record.time_ns;
        // The two ways a life begins before our eyes.
        let born = from == TcpState::Close || (from == TcpState::SynRecv && record.socket.is_passive());
        let known = self.table.find(record.socket.cookie);
        let marks = Marks { older: !born, ..Marks::default() };
        let Some(slot) = known.or_else(|| self.insert(&record.socket, to, now_ns, marks)) else { return };
        if known.is_some() {
            self.leave(slot, from, now_ns);
            self.table.enter(slot, to, now_ns);
        }
        let conn = self.table.get_mut(slot);
        // A connecting socket gets its port, sometimes its address, only after SYN_SENT was announced.
        (conn.local, conn.remote) = (record.socket.local, record.socket.remote);
        match to {
            TcpState::SynSent | TcpState::Listen | TcpState::FinWait1 | TcpState::LastAck => {
                self.own(slot, self.processes.by_pid(value), now_ns);
            }
            TcpState::CloseWait => conn.unread_bytes = value,
            TcpState::Established => {
                let first = !std::mem::replace(&mut conn.marks.established, true);
                self.replace_minisock(&record.socket, Some(slot));
                if first && let Some(group) = self.group(slot, now_ns) {
                    self.groups.counts(group).opened += 1;
                }
            }
            _ => {}
        }
        self.group(slot, now_ns);
    }

    /// The socket reached CLOSE: its life is over, or goes on as a minisock that no state change tells of.
    fn end(&mut self, record: &SocketRecord, from: TcpState, total_retrans: u32) {
        let now_ns = record.time_ns;
        let Some(slot) = self.find_or_insert(record, from) else { return };
        self.count_retransmits(slot, total_retrans, now_ns);
        self.leave(slot, from, now_ns);
        let was_established = self.table.get(slot).marks.established || from.follows_established();
        if was_established && let Some(group) = self.group(slot, now_ns) {
            self.groups.counts(group).closed += 1;
        }
        match minisock(&record.socket, from) {
            Some(state) => {
                self.replace_minisock(&record.socket, Some(slot));
                self.table.shrink(slot, state, now_ns);
            }
            None => self.remove(slot, now_ns),
        }
        if let Some(ended) = &mut self.ended {
            ended.insert(record.socket.cookie, now_ns);
        }
    }

    /// Minisocks whose time is up at `now_ns` are gone.
    pub fn expire(&mut self, now_ns: u64) {
        for state in [TcpState::TimeWait, TcpState::FinWait2] {
            while let Some((slot, conn)) = self.table.oldest_minisock(state) {
                if conn.seen_ns.saturating_add(MINISOCK_NS) > now_ns {
                    break;
                }
                self.remove(slot, now_ns);
            }
        }
    }

    /// To be called before a sweep reads its first socket.
    pub fn begin_sweep(&mut self) {
        self.ended = Some(FxHashMap::default());
    }

    /// What the sweep found, after the ring was drained once more.
    pub fn apply_sweep(&mut self, held: &[Held]) {
        let ended = self.ended.take().unwrap_or_default();
        let mut by_socket: FxHashMap<u64, Vec<&Held>> = FxHashMap::default();
        for held in held {
            by_socket.entry(held.socket.cookie).or_default().push(held);
        }
        // In the order found, so that the same sweep always gives the same table.
        for held in held {
            if let Some(holders) = by_socket.remove(&held.socket.cookie)
                && ended.get(&held.socket.cookie).is_none_or(|ended_ns| *ended_ns < held.time_ns)
            {
                self.apply_held(held, &holders);
            }
        }
    }

    fn apply_held(&mut self, held: &Held, holders: &[&Held]) {
        // A socket that never was a connection, or is none any more.
        if held.state == TcpState::Close {
            return;
        }
        let marks = Marks {
            older: true,
            state_older: true,
            established: held.state.follows_established(),
            ..Marks::default()
        };
        let known = self.table.find(held.socket.cookie);
        let Some(slot) = known.or_else(|| self.insert(&held.socket, held.state, held.time_ns, marks)) else {
            return;
        };
        self.count_retransmits(slot, held.total_retrans, held.time_ns);
        let conn = self.table.get_mut(slot);
        // What the ring told since is newer than what the sweep saw.
        if conn.seen_ns <= held.time_ns {
            conn.unread_bytes = held.unread_bytes;
            (conn.local, conn.remote) = (held.socket.local, held.socket.remote);
            if conn.state != held.state {
                // The record of this change was lost.
                conn.marks.established |= held.state.follows_established();
                self.table.enter(slot, held.state, held.time_ns);
                self.table.get_mut(slot).marks.state_older = true;
            }
        }
        let owner = self.table.get(slot).process.map(|id| self.processes.get(id));
        let owner_holds = owner.is_some_and(|owner| {
            holders.iter().any(|held| (held.holder.pid, held.holder.start_ns) == (owner.pid, owner.start_ns))
        });
        if owner_holds {
            self.table.get_mut(slot).marks.owner_seen = true;
        } else {
            let holder = self.processes.learn(&held.holder);
            self.own(slot, holder, held.time_ns);
        }
        self.group(slot, held.time_ns);
    }

    /// The connection, or one entered now because the record presumes a life before it.
    fn find_or_insert(&mut self, record: &SocketRecord, state: TcpState) -> Option<Slot> {
        let marks = Marks { older: true, state_older: true, ..Marks::default() };
        self.table
            .find(record.socket.cookie)
            .or_else(|| self.insert(&record.socket, state, record.time_ns, marks))
    }

    fn insert(&mut self, socket: &Socket, state: TcpState, now_ns: u64, marks: Marks) -> Option<Slot> {
        self.replace_minisock(socket, None);
        if self.table.is_full() && !self.make_room(now_ns) {
            self.untracked += 1;
            return None;
        }
        let role = match state {
            TcpState::Listen => Role::Listener,
            _ if socket.is_passive() => Role::Server,
            _ => Role::Client,
        };
        let slot = self.table.insert(socket, state, role, now_ns, marks);
        match role {
            Role::Listener => {
                self.listeners.entry((socket.netns, socket.local.port)).or_default().push(slot);
            }
            Role::Server => {
                let owner = self.listener_of(socket);
                self.set_process(slot, owner, now_ns);
            }
            _ => {}
        }
        Some(slot)
    }

    /// At the limit a TIME_WAIT, which nobody holds any more, gives way.
    fn make_room(&mut self, now_ns: u64) -> bool {
        let oldest = self.table.oldest_minisock(TcpState::TimeWait).map(|(slot, _)| slot);
        if let Some(slot) = oldest {
            self.remove(slot, now_ns);
        }
        oldest.is_some()
    }

    /// Whoever has these ends now replaced the minisock that had them.
    fn replace_minisock(&mut self, socket: &Socket, by: Option<Slot>) {
        if let Some(old) = self.table.find_minisock(socket.netns, socket.local, socket.remote)
            && Some(old) != by
        {
            let seen_ns = self.table.get(old).seen_ns;
            self.remove(old, seen_ns);
        }
    }

    /// A connection that nobody accepted yet belongs to its listener's process; to nobody known when
    /// several processes listen and the kernel may have chosen any.
    fn listener_of(&self, socket: &Socket) -> Option<ProcessId> {
        let listeners = self.listeners.get(&(socket.netns, socket.local.port))?;
        let scored = || {
            listeners.iter().filter_map(|slot| {
                let listener = self.table.get(*slot);
                Some((match_score(listener.local, socket.local)?, listener.process))
            })
        };
        let best = scored().map(|(score, _)| score).max()?;
        let mut owners = scored().filter(|(score, _)| *score == best).map(|(_, owner)| owner);
        let first = owners.next()??;
        owners.all(|owner| owner == Some(first)).then_some(first)
    }

    /// The process was seen acting on the socket or holding it. An unknown one changes nothing.
    fn own(&mut self, slot: Slot, process: Option<ProcessId>, now_ns: u64) {
        if process.is_some() {
            self.set_process(slot, process, now_ns);
            self.table.get_mut(slot).marks.owner_seen = true;
        }
    }

    fn set_process(&mut self, slot: Slot, process: Option<ProcessId>, now_ns: u64) {
        let conn = self.table.get_mut(slot);
        if conn.process == process {
            return;
        }
        if let Some(id) = process {
            self.processes.add_user(id);
        }
        if let Some(id) = std::mem::replace(&mut conn.process, process) {
            self.processes.drop_user(id);
        }
        if let Some(group) = conn.group.take() {
            self.groups.release(group, now_ns);
        }
    }

    /// Where the connection is counted; chosen when there is first something to count, so that an owner
    /// learned late leaves no empty group behind. Listeners are not counted.
    fn group(&mut self, slot: Slot, now_ns: u64) -> Option<GroupId> {
        let conn = self.table.get_mut(slot);
        if conn.group.is_some() || conn.role == Role::Listener {
            return conn.group;
        }
        let key = GroupKey {
            process: conn.process.map(|id| self.processes.get(id).comm.clone()),
            role: conn.role,
            peer: conn.peer(),
        };
        conn.group = Some(self.groups.hold(key, now_ns));
        conn.group
    }

    /// Notes how long the state lasted that ends now, where that is exactly known.
    fn leave(&mut self, slot: Slot, from: TcpState, now_ns: u64) {
        let conn = self.table.get(slot);
        let (since_ns, exact) = (conn.since_ns, conn.state == from && !conn.marks.state_older);
        if exact && let Some(group) = self.group(slot, now_ns) {
            self.groups.observe(group, from, now_ns.saturating_sub(since_ns));
        }
    }

    /// The kernel counts for each socket; what is new since the last look is added. Of an older connection
    /// the first look only says where counting starts.
    fn count_retransmits(&mut self, slot: Slot, total: u32, now_ns: u64) {
        let conn = self.table.get_mut(slot);
        let new = conn.total_retrans.map_or(0, |last| total.saturating_sub(last));
        conn.total_retrans = conn.total_retrans.max(Some(total));
        if new > 0
            && let Some(group) = self.group(slot, now_ns)
        {
            self.groups.counts(group).retransmits += u64::from(new);
        }
    }

    fn remove(&mut self, slot: Slot, now_ns: u64) {
        let conn = self.table.remove(slot);
        if let Some(id) = conn.process {
            self.processes.drop_user(id);
        }
        if let Some(group) = conn.group {
            self.groups.release(group, now_ns);
        }
        if conn.role == Role::Listener {
            self.forget_listener(slot, &conn);
        }
    }

    fn forget_listener(&mut self, slot: Slot, conn: &Conn) {
        let key = (conn.netns, conn.local.port);
        if let Some(listeners) = self.listeners.get_mut(&key) {
            listeners.retain(|listener| *listener != slot);
            if listeners.is_empty() {
                self.listeners.remove(&key);
            }
        }
    }
}

/// How well a listener matches a connection's local end, as the kernel scores it (compute_score in
/// net/ipv4/inet_hashtables.c): its own address, then any of its family, then `::` for IPv4.
fn match_score(listening: Endpoint, local: Endpoint) -> Option<u8> {
    if listening.addr == local.addr {
        Some(2)
    } else if !listening.is_wildcard() {
        None
    } else if listening.addr.to_ipv4_mapped().is_some() == local.addr.to_ipv4_mapped().is_some() {
        Some(1)
    } else {
        listening.addr.is_unspecified().then_some(0)
    }
}

/// What the kernel keeps of a socket that went from `from` to CLOSE (tcp_time_wait and its callers in
/// net/ipv4/tcp_input.c and tcp.c). An error, such as a reset, keeps nothing.
fn minisock(socket: &Socket, from: TcpState) -> Option<TcpState> {
    match from {
        TcpState::FinWait2 | TcpState::Closing if socket.has_error() => None,
        TcpState::FinWait2 | TcpState::Closing if socket.fin_received() => Some(TcpState::TimeWait),
        TcpState::FinWait2 if socket.is_orphan() => Some(TcpState::FinWait2),
        _ => None,
    }
}

impl TcpState {
    /// Whether a socket in this state is or was ESTABLISHED.
    pub fn follows_established(self) -> bool {
        !matches!(self, Self::SynSent | Self::SynRecv | Self::Listen | Self::Close)
    }
}
