//! A tracker, and short ways to give it what a kernel would report: sockets, records, sightings and processes.
#![allow(dead_code, unused_imports, reason = "each test uses its part")]

use std::{collections::HashMap, num::NonZeroU16};

use bytemuck::Zeroable as _;
use tcpwatch::model::{
    groups::Role,
    processes::ProcessId,
    table::{PortUse, StateCounts},
};
pub(crate) use tcpwatch::{
    events::{
        decode::{Endpoint, Record, ResetRecord, Socket, SocketRecord, TaskRecord, Traffic, What},
        frame::{Coverage, ReportedFacts},
        seen::{ListOwner, ListenQueue, Seen, SeenList},
    },
    model::{
        groups::Counts,
        table::{Conn, ConnFlags, ProcessSeen},
        tracker::{Ended, Limits, Tracker},
    },
    tcp::{
        connect_outcome::Outcome,
        first_close::FirstClose,
        life::Cause,
        reset_reason::{Discarded, ResetReason},
        state::TcpState::{
            self, Close, CloseWait, Closing, Established, FinWait1, FinWait2, LastAck, Listen, SynRecv,
            SynSent, TimeWait,
        },
        ticks::TickRate,
    },
};
pub(crate) use tcpwatch_common::errno::{
    EACCES, ECONNREFUSED, ECONNRESET, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT,
};
pub(crate) use tcpwatch_common::{
    FLAG_FIN_RECEIVED as FIN, FLAG_HELD as HELD, FLAG_MINISOCK as MINISOCK, FLAG_ORPHAN as ORPHAN,
    FLAG_PASSIVE as PASSIVE, FLAG_REQUEST as REQUEST, FLAG_UNSENT as UNSENT, SocketOptions,
};

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const MINUTE: u64 = 60 * SECOND;
pub(crate) const NETNS: u32 = 1;

/// The processes that every world knows.
pub(crate) const CURL: u32 = 100;
pub(crate) const NGINX: u32 = 200;
pub(crate) const WORKER: u32 = 201;

pub(crate) const LIMITS: Limits = Limits { connections: 1000, ended: 1000, label_sets: 100 };

pub(crate) fn end(addr: &str, port: u16) -> Endpoint {
    Endpoint::new(addr.parse().unwrap(), port)
}

/// The client's side of the connection that most tests are about: cookie 1.
pub(crate) fn client(flags: u8) -> Socket {
    Socket::new(1, NETNS, end("10.0.0.1", 40_000), end("10.0.0.2", 80), flags)
}

/// The server's side of the same connection: cookie 2.
pub(crate) fn server(flags: u8) -> Socket {
    Socket::new(2, NETNS, end("10.0.0.2", 80), end("10.0.0.1", 40_000), PASSIVE | flags)
}

/// One of many connections of one client to one server; the cookie is also the port.
pub(crate) fn numbered(cookie: u16, flags: u8) -> Socket {
    Socket::new(cookie.into(), NETNS, end("10.0.0.1", cookie), end("10.0.0.2", 80), flags)
}

pub(crate) fn listener(cookie: u64, addr: &str) -> Socket {
    Socket::new(cookie, NETNS, end(addr, 80), end("::", 0), PASSIVE | HELD)
}

pub(crate) fn to(from: TcpState, to: TcpState, value: u32) -> What {
    What::Transition { from, to, value }
}

pub(crate) fn ended(from: TcpState, error: u8) -> What {
    What::End { from, error, total_retrans: 0 }
}

pub(crate) fn process(pid: u32, comm: &str) -> TaskRecord {
    TaskRecord { pid, start_ns: u64::from(pid) * 10, comm: comm.into(), exec_id: 1, stack: 0 }
}

/// A reset that was sent, not in answer to a segment. Other fields are set with `ResetRecord { .., ..reset() }`.
pub(crate) fn reset(time_ns: u64, socket: Socket, state: TcpState) -> ResetRecord {
    ResetRecord {
        socket,
        time_ns,
        state,
        received: false,
        answers: false,
        zero_linger: false,
        exiting: false,
        policy: false,
        pid: None,
        unread_bytes: 0,
        unsent: 0,
        unacknowledged: 0,
    }
}

pub(crate) fn received_reset(time_ns: u64, socket: Socket, state: TcpState) -> ResetRecord {
    ResetRecord { received: true, ..reset(time_ns, socket, state) }
}

/// A socket as an iterator finds it. Other fields are set with `Seen { .., ..sighting() }`.
pub(crate) fn sighting(time_ns: u64, socket: Socket, state: TcpState) -> Seen {
    Seen {
        socket,
        state,
        time_ns,
        jiffies: 0,
        holder: None,
        unread_bytes: 0,
        total_retrans: 0,
        queue: ListenQueue::default(),
        handshake_acknowledged: false,
        received_jiffies: 0,
        sent_jiffies: 0,
        data_received_jiffies: 0,
        data_sent: false,
        unacknowledged: 0,
        unsent: 0,
        rtt_ns: None,
        sending_jiffies: [0; 3],
        out_of_order: 0,
        expires_jiffies: 0,
        traffic: Traffic::default(),
        delivery_rate: 0,
        window_probes: 0,
        options: SocketOptions::zeroed(),
        send_buffer: 0,
        receive_buffer: 0,
        min_rtt_ns: None,
        rtt_variation_ns: 0,
        congestion: "cubic".into(),
        listener: 0,
    }
}

/// The same, through a descriptor of one of the processes that every world knows.
pub(crate) fn held_sighting(time_ns: u64, socket: Socket, state: TcpState, pid: u32) -> Seen {
    let comm = match pid {
        CURL => "curl",
        NGINX => "nginx",
        WORKER => "worker",
        _ => "another",
    };
    Seen { holder: Some((process(pid, comm), 3)), ..sighting(time_ns, socket, state) }
}

/// The accept queue of a listener, as an iterator lists it.
pub(crate) fn accept_queue(time_ns: u64, listener: u64, cookies: &[u64]) -> SeenList {
    let of = ListOwner::Listener { cookie: listener, truncated: false };
    SeenList { of, time_ns, cookies: cookies.to_vec() }
}

const TICK_RATE: TickRate = TickRate(NonZeroU16::new(1000).unwrap());

/// The tick at that time (INITIAL_JIFFIES is 300 s before 2^32).
pub(crate) fn jiffies(time_ns: u64) -> u64 {
    (1 << 32) - 300_000 + time_ns / 1_000_000
}

/// A sighting of a minisock, by a kernel whose ticks are known.
pub(crate) fn minisock_sighting(time_ns: u64, socket: Socket, state: TcpState, expires_ns: u64) -> Seen {
    Seen {
        jiffies: jiffies(time_ns),
        expires_jiffies: jiffies(expires_ns),
        ..sighting(
            time_ns,
            Socket::new(socket.cookie, socket.netns, socket.local, socket.remote, MINISOCK),
            state,
        )
    }
}

pub(crate) fn covering(namespaces: &[u32]) -> Coverage {
    Coverage { namespaces: namespaces.iter().copied().collect(), ..Coverage::default() }
}

/// Whether a time of the connection is a lower bound.
pub(crate) fn at_least(conn: &Conn) -> bool {
    conn.is(ConnFlags::OLDER) || conn.is(ConnFlags::STATE_OLDER)
}

pub(crate) struct World {
    pub(crate) tracker: Tracker,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(LIMITS, ReportedFacts::default())
    }

    pub(crate) fn with_limits(limits: Limits) -> Self {
        Self::with(limits, ReportedFacts::default())
    }

    /// With records that report more, or less, than usual.
    pub(crate) fn reported_by(reported: ReportedFacts) -> Self {
        Self::with(LIMITS, reported)
    }

    fn with(limits: Limits, reported: ReportedFacts) -> Self {
        let mut world = Self { tracker: Tracker::new(limits, TICK_RATE, reported) };
        for (pid, comm) in [(CURL, "curl"), (NGINX, "nginx"), (WORKER, "worker")] {
            world.learn(process(pid, comm));
        }
        world
    }

    pub(crate) fn learn(&mut self, task: TaskRecord) {
        self.tracker.apply(&Record::Task(task));
    }

    pub(crate) fn report(&mut self, time_ns: u64, socket: Socket, what: What) {
        self.tracker.apply(&Record::Socket(SocketRecord { socket, time_ns, what, traffic: None }));
    }

    pub(crate) fn report_all<const N: usize>(&mut self, socket: Socket, records: [(u64, What); N]) {
        for (time_ns, what) in records {
            self.report(time_ns, socket, what);
        }
    }

    /// The same for a transition that reports the traffic so far.
    pub(crate) fn report_with_traffic(
        &mut self,
        time_ns: u64,
        socket: Socket,
        what: What,
        traffic: (u64, u64),
    ) {
        let (sent_bytes, received_bytes) = traffic;
        let traffic = Some(Traffic { sent_bytes, received_bytes });
        self.tracker.apply(&Record::Socket(SocketRecord { socket, time_ns, what, traffic }));
    }

    pub(crate) fn report_reset(&mut self, reset: ResetRecord) {
        self.tracker.apply(&Record::Reset(Box::new(reset)));
    }

    /// The client connects at 1 and is established at 2.
    pub(crate) fn connect(&mut self) {
        self.report_all(client(HELD), [(1, to(Close, SynSent, CURL)), (2, to(SynSent, Established, 0))]);
    }

    /// Nginx listens on every address, and the server's side is established at 2.
    pub(crate) fn serve(&mut self) {
        self.report(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
        self.report(2, server(0), to(SynRecv, Established, 0));
    }

    /// The client's TIME_WAIT, entered at `time_ns`.
    pub(crate) fn time_wait(&mut self, time_ns: u64) {
        self.connect();
        self.report_all(client(HELD), [(3, to(Established, FinWait1, CURL)), (4, to(FinWait1, FinWait2, 0))]);
        self.report(time_ns, client(ORPHAN | FIN), ended(FinWait2, 0));
    }

    /// A sweep of the one namespace in which everything happens.
    pub(crate) fn sweep(&mut self, began_ns: u64, seen: &[Seen]) {
        self.tracker.begin_sweep(began_ns);
        self.finish_sweep(seen);
    }

    /// The same, with lists of sockets that belong to others.
    pub(crate) fn sweep_with_lists(&mut self, began_ns: u64, seen: &[Seen], lists: &[SeenList]) {
        self.tracker.begin_sweep(began_ns);
        for seen in seen {
            self.tracker.apply_seen(seen);
        }
        for list in lists {
            self.tracker.apply_list(list);
        }
        self.finish_sweep(&[]);
    }

    /// The name of the connection's owner, and how it is known.
    pub(crate) fn owner_seen(&self, cookie: u64) -> Option<(&str, ProcessSeen)> {
        Some((self.owner(cookie)?, self.row(cookie).process_seen()?))
    }

    pub(crate) fn finish_sweep(&mut self, seen: &[Seen]) {
        self.finish_sweep_of(seen, &covering(&[NETNS]));
    }

    pub(crate) fn finish_sweep_of(&mut self, seen: &[Seen], coverage: &Coverage) {
        for seen in seen {
            self.tracker.apply_seen(seen);
        }
        self.tracker.end_sweep(coverage);
    }

    pub(crate) fn find(&self, cookie: u64) -> Option<&Conn> {
        self.tracker.table().find(cookie).map(|slot| self.tracker.table().get(slot))
    }

    pub(crate) fn row(&self, cookie: u64) -> &Conn {
        self.find(cookie).expect("in the table")
    }

    pub(crate) fn state(&self, cookie: u64) -> Option<TcpState> {
        self.find(cookie).map(Conn::state)
    }

    /// The connection that ended last.
    pub(crate) fn last_ended(&self) -> &Ended {
        self.tracker.ended().back().expect("one has ended")
    }

    /// The name of the connection's owner.
    pub(crate) fn owner(&self, cookie: u64) -> Option<&str> {
        self.name(self.row(cookie).process)
    }

    pub(crate) fn name(&self, process: Option<ProcessId>) -> Option<&str> {
        process.map(|id| &*self.tracker.processes().get(id).comm)
    }

    /// The names of opener, owner and closer.
    pub(crate) fn names(&self, conn: &Conn) -> [Option<&str>; 3] {
        [conn.opener, conn.process, conn.closer].map(|process| self.name(process))
    }

    /// Connections opened, connections closed and segments retransmitted, over all groups.
    pub(crate) fn counts(&self) -> [u64; 3] {
        let mut sums = [0; 3];
        for group in self.tracker.groups().iter() {
            let counts = &group.counts;
            for (sum, count) in
                sums.iter_mut().zip([counts.opened, counts.closed(), counts.retransmitted.total()])
            {
                *sum += count;
            }
        }
        sums
    }

    /// The same for the groups with this process name.
    pub(crate) fn counts_of(&self, name: &str) -> [u64; 3] {
        let of = self.tracker.groups().iter().filter(|group| group.key.process.as_deref() == Some(name));
        of.fold([0; 3], |[opened, closed, retransmits], group| {
            let counts = &group.counts;
            [opened + counts.opened, closed + counts.closed(), retransmits + counts.retransmitted.total()]
        })
    }

    /// How many times the duration of the state was observed, and the sum of the durations in seconds.
    pub(crate) fn observed(&self, state: TcpState) -> (u64, f64) {
        let one = |counts: &Counts| match state {
            SynSent | SynRecv => {
                counts.handshake(state).map(|histogram| (histogram.count(), histogram.sum_seconds()))
            }
            _ => counts.durations[state.index()]
                .as_ref()
                .map(|histogram| (histogram.count(), histogram.sum_seconds())),
        };
        let all = self.tracker.groups().iter().filter_map(|group| one(&group.counts));
        all.fold((0, 0.0), |(counts, sums), (count, sum)| (counts + count, sums + sum))
    }

    /// Connects by outcome, over all groups; non-zero only.
    pub(crate) fn connects(&self) -> Vec<(Outcome, u64)> {
        let sum = |outcome: Outcome| {
            let counts = self.tracker.groups().iter().map(|group| group.counts.connects[outcome as usize]);
            counts.sum::<u64>()
        };
        let all = Outcome::ALL.into_iter().map(|outcome| (outcome, sum(outcome)));
        all.filter(|(_, count)| *count > 0).collect()
    }

    pub(crate) fn attempts(&self) -> u64 {
        self.tracker.groups().iter().map(|group| group.counts.attempts).sum()
    }

    /// Resets by reason, over all groups, as counted by the tick at `now_ns`; non-zero only.
    pub(crate) fn resets(&mut self, now_ns: u64) -> Vec<(ResetReason, u64)> {
        self.tracker.expire(now_ns);
        let sum = |reset: ResetReason| {
            self.tracker.groups().iter().map(|group| group.counts.resets[reset as usize]).sum::<u64>()
        };
        let all = ResetReason::ALL.into_iter().map(|reset| (reset, sum(reset)));
        all.filter(|(_, count)| *count > 0).collect()
    }

    /// Data that resets threw away, over all groups.
    pub(crate) fn discarded(&self) -> Discarded {
        let mut sum = Discarded::default();
        for group in self.tracker.groups().iter() {
            sum += group.counts.discarded;
        }
        sum
    }

    /// Closed connections by who closed first, over all groups; non-zero only.
    pub(crate) fn first_closes(&self) -> Vec<(FirstClose, u64)> {
        let sum = |first: FirstClose| {
            self.tracker.groups().iter().map(|group| group.counts.closed[first as usize]).sum::<u64>()
        };
        let all = FirstClose::ALL.into_iter().map(|first| (first, sum(first)));
        all.filter(|(_, count)| *count > 0).collect()
    }

    /// Asserts that the counts that are kept are those that a walk gives.
    fn assert_tallies(&self) {
        let table = self.tracker.table();
        let mut states: HashMap<Option<ProcessId>, StateCounts> = HashMap::new();
        let mut ports: HashMap<PortUse, u32> = HashMap::new();
        for conn in table.iter() {
            states.entry(conn.process).or_default()[conn.state().index()] += 1;
            if conn.role == Role::Client {
                let (source, destination) = (conn.local.addr, conn.remote);
                *ports.entry(PortUse { netns: conn.netns, source, destination }).or_default() += 1;
            }
        }
        for (process, states) in states {
            assert_eq!(table.states_of(process), states, "{process:?}");
        }
        assert_eq!(table.ports().map(|(toward, count)| (*toward, count)).collect::<HashMap<_, _>>(), ports);
    }

    /// Asserts what must hold after any input.
    pub(crate) fn assert_consistent(&self) {
        let waiting = self.tracker.table().iter().filter(|conn| conn.is(ConnFlags::CONNECTING)).count();
        let over: u64 = self.connects().iter().map(|(_, count)| count).sum();
        // An evicted group takes its counts along: those of an attempt, whose outcome may count in another group.
        if self.tracker.groups().evicted == 0 {
            assert_eq!(self.attempts(), over + waiting as u64, "{:?}", self.connects());
        }
        let table = &self.tracker.table();
        let mut sum = 0;
        for state in TcpState::ALL {
            let listed: Vec<_> = table.in_state(*state).collect();
            assert_eq!(listed.len(), table.count(*state), "{state}");
            assert!(listed.iter().all(|conn| conn.state() == *state), "{state}");
            sum += listed.len();
        }
        assert_eq!((table.iter().count(), table.len()), (sum, sum));
        self.assert_tallies();
        for (slot, conn) in table.keys() {
            assert_eq!(table.find(conn.cookie), Some(slot), "two rows of one socket: {conn:?}");
            if conn.is(ConnFlags::MINISOCK) {
                assert_eq!(table.find_minisock(conn.ends()), Some(slot), "{conn:?}");
            }
        }
    }
}

/// splitmix64: the same numbers each time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
