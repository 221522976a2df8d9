//! Random input in random order: no panic, and the tables stay consistent.

use std::time::SystemTime;

use tcpwatch::{
    events::decode::Ends,
    findings::leaks::{LeakHistory, leaks, lingering::LingerLimits},
    model::processes::Activity,
    tcp::time::Clock,
};

use crate::scenario::*;

const SMALL: Limits = Limits { connections: 12, ended: 5, label_sets: 4 };

/// Random input. Few addresses, cookies and processes, so that they collide.
struct Chaos {
    random: Random,
    now_ns: u64,
}

impl Chaos {
    fn new(seed: u64) -> Self {
        Self { random: Random(seed), now_ns: 0 }
    }

    fn time(&mut self) -> u64 {
        self.now_ns += self.random.below(5 * SECOND);
        match self.random.below(200) {
            0 => self.now_ns.saturating_sub(20 * SECOND),
            1 => u64::MAX - self.random.below(3),
            _ => self.now_ns,
        }
    }

    fn socket(&mut self) -> Socket {
        let random = &mut self.random;
        let mut endpoint = || {
            let addr = random.pick(&["10.0.0.1", "10.0.0.2", "0.0.0.0", "::", "fd00::1"]);
            end(addr, random.pick(&[0, 80, 81, 40_000]))
        };
        let (local, remote) = (endpoint(), endpoint());
        let flags = random.next() as u8;
        let cookie = random.below(16);
        // A socket stays in its namespace.
        Socket::new(cookie, NETNS + (cookie % 2) as u32, local, remote, flags).on(random.pick(&[0, 0, 3, 4]))
    }

    fn record(&mut self) -> Record {
        let pid = self.random.pick(&[0, 1, 2, 3, 4]);
        if self.random.one_in(10) {
            return Record::Task(TaskRecord { start_ns: self.random.below(3), ..process(pid, "p") });
        }
        let (from, state) = (self.random.pick(TcpState::ALL), self.random.pick(TcpState::ALL));
        let total = self.random.below(5) as u32;
        let what = match self.random.below(10) {
            0 => What::Retransmit { state, total: Some(total) },
            1 => What::Close { state, pid: (pid != 0).then_some(pid), unread_bytes: 0 },
            2 if total == 0 => What::ConnectFailed { pid: (pid != 0).then_some(pid), error: ENETUNREACH },
            2 if total == 1 => What::TimeWait,
            2 => What::MinisockEnd,
            3 | 4 => What::End {
                from: self.random.pick(&[FinWait2, Closing, from]),
                error: 0,
                total_retrans: total,
            },
            5 => What::End { from, error: ECONNRESET, total_retrans: total },
            // A transition to CLOSE is an end.
            _ if state == Close => ended(from, 0),
            _ => to(from, state, pid),
        };
        Record::Socket(SocketRecord { socket: self.socket(), time_ns: self.time(), what, traffic: None })
    }

    fn reset(&mut self) -> ResetRecord {
        let (time_ns, socket) = (self.time(), self.socket());
        let reset = reset(time_ns, socket, self.random.pick(TcpState::ALL));
        let pid = self.random.pick(&[None, Some(1), Some(2)]);
        ResetRecord { pid, received: self.random.one_in(2), answers: self.random.one_in(2), ..reset }
    }

    fn sighting(&mut self) -> Seen {
        let (time_ns, socket) = (self.time(), self.socket());
        let mut seen = sighting(time_ns, socket, self.random.pick(TcpState::ALL));
        if socket.is_minisock() {
            seen.state = self.random.pick(&[TimeWait, FinWait2]);
        } else if self.random.one_in(2) {
            let pid = self.random.pick(&[1, 2, 3]);
            seen.holder = Some((TaskRecord { start_ns: self.random.below(3), ..process(pid, "p") }, 3));
        }
        seen.jiffies = jiffies(self.now_ns);
        seen.expires_jiffies = jiffies(self.now_ns + self.random.below(MINUTE));
        seen.received_jiffies = self.random.next() as u32;
        seen.total_retrans = self.random.below(5) as u32;
        seen
    }

    /// Gives the tracker one piece of input.
    fn happen(&mut self, world: &mut World) {
        match self.random.below(40) {
            0 => world.tracker.begin_sweep(self.now_ns),
            1 => {
                let seen: Vec<_> = (0..self.random.below(12)).map(|_| self.sighting()).collect();
                let namespaces = self.random.pick(&[&[][..], &[NETNS], &[NETNS, NETNS + 1]]);
                let identity = self.random.below(2) as u32;
                let existing =
                    [(NETNS, identity), (NETNS + 1, 1)].into_iter().skip(self.random.below(2) as usize);
                let existing = self.random.one_in(2).then(|| existing.collect());
                let coverage = Coverage { all: self.random.one_in(2), existing, ..covering(namespaces) };
                world.finish_sweep_of(&seen, &coverage);
            }
            2 => world.tracker.expire(self.now_ns),
            3 => world.tracker.apply(&Record::Reset(Box::new(self.reset()))),
            _ => world.tracker.apply(&self.record()),
        }
    }
}

#[test]
fn random_records_and_sweeps_keep_the_tables_consistent() {
    for seed in 0..300 {
        let mut chaos = Chaos::new(seed);
        let mut world = World::with_limits(SMALL);
        for _ in 0..300 {
            chaos.happen(&mut world);
            world.assert_consistent();
            assert!(world.tracker.table().len() <= SMALL.connections);
            assert!(world.tracker.ended().len() <= SMALL.ended);
        }
    }
}

#[test]
fn what_workloads_did_is_what_groups_counted() {
    for seed in 0..100 {
        let mut chaos = Chaos::new(seed);
        let mut world = World::with_limits(SMALL);
        let mut sums = [0; 4];
        for round in 0..300 {
            chaos.happen(&mut world);
            if round % 50 == 49 {
                let tally = world.tracker.tally();
                let Activity { opened, failed_connects, resets, retransmits } = tally.total.activity;
                for (sum, count) in sums.iter_mut().zip([opened, failed_connects, resets, retransmits]) {
                    *sum += u64::from(count);
                }
                let states: u32 = tally.workloads.values().flat_map(|row| row.states).sum();
                assert_eq!(states as usize, world.tracker.table().len());
            }
        }
        // An evicted group takes its counts along.
        if world.tracker.groups().evicted == 0 {
            let of = |count: fn(&Counts) -> u64| -> u64 {
                world.tracker.groups().iter().map(|group| count(&group.counts)).sum()
            };
            let counted = [
                of(|counts| counts.opened),
                of(Counts::failed_connects),
                of(|counts| counts.resets.iter().sum()),
                of(|counts| counts.retransmitted.total()),
            ];
            assert_eq!(sums, counted, "seed {seed}");
        }
    }
}

#[test]
fn after_expiry_no_minisock_is_overdue() {
    for seed in 0..100 {
        let mut chaos = Chaos::new(seed);
        let mut world = World::with_limits(SMALL);
        for _ in 0..200 {
            chaos.happen(&mut world);
            world.tracker.expire(chaos.now_ns);
            let minisocks = world.tracker.table().iter().filter(|conn| conn.is(ConnFlags::MINISOCK));
            for conn in minisocks {
                assert!(conn.expires_ns() > chaos.now_ns, "seed {seed} at {}: {conn:?}", chaos.now_ns);
            }
        }
    }
}

#[test]
fn findings_are_made_of_any_tables() {
    let limits = LingerLimits::default();
    for seed in 0..100 {
        let mut chaos = Chaos::new(seed);
        let mut world = World::with_limits(SMALL);
        let mut history = LeakHistory::default();
        for round in 0..300 {
            chaos.happen(&mut world);
            if round % 20 == 0 {
                history.sample(&world.tracker, &limits, chaos.now_ns);
                let clock = Clock { now_ns: chaos.now_ns, wall: SystemTime::UNIX_EPOCH };
                let lingering: usize =
                    leaks(&world.tracker, &limits, &history, clock).iter().map(|leak| leak.count).sum();
                assert!(lingering <= world.tracker.table().len() + world.tracker.unconnected().len());
            }
        }
    }
}

#[test]
fn once_everything_is_gone_no_process_and_no_group_is_held() {
    for seed in 0..10 {
        let mut chaos = Chaos::new(seed);
        let mut world = World::with_limits(Limits { ended: 0, ..SMALL });
        for _ in 0..1000 {
            chaos.happen(&mut world);
        }
        let rows: Vec<_> = world.tracker.table().iter().map(|conn| (conn.cookie, conn.ends())).collect();
        for (cookie, Ends { netns, interface, local, remote }) in rows {
            let socket = Socket::new(cookie, netns, local, remote, 0).on(interface);
            world.report(chaos.now_ns, socket, ended(Established, ECONNRESET));
            world.report(chaos.now_ns, socket, What::MinisockEnd);
        }
        world.sweep(chaos.now_ns, &[]);
        // Resets that waited for an answer.
        world.tracker.expire(u64::MAX);
        assert!(world.tracker.table().is_empty() && world.tracker.unconnected().is_empty(), "seed {seed}");

        let held = world.tracker.groups().iter().filter(|group| group.held() > 0).count();
        assert_eq!(held, 0, "seed {seed}: groups are held by no connection");
        assert_eq!(world.tracker.processes().named(), 0, "seed {seed}: processes are named by no connection");
    }
}
