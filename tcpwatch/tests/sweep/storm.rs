//! Against a kernel in miniature: with nothing lost the table equals the kernel's; with records lost it does so again
//! after the next sweep.

use crate::{
    kernel::{Kernel, Row},
    scenario::*,
};

struct Storm {
    kernel: Kernel,
    world: World,
    /// One record in this many is lost; 0: none.
    loss: u64,
}

impl Storm {
    fn new(seed: u64, loss: u64) -> Self {
        let mut world = World::reported_by(ReportedFacts { minisock_ends: true, ..ReportedFacts::default() });
        world.report(1, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
        Self { kernel: Kernel::new(seed), world, loss }
    }

    fn drain(&mut self) {
        for (time_ns, socket, what) in self.kernel.take_records() {
            if self.loss == 0 || !self.kernel.random.one_in(self.loss) {
                self.world.report(time_ns, socket, what);
            }
        }
        self.world.assert_consistent();
    }

    fn rage(&mut self, steps: u32) {
        for _ in 0..steps {
            self.kernel.step();
            if self.kernel.random.one_in(8) {
                let time_ns = self.kernel.random.below(20 * SECOND);
                self.kernel.sleep(time_ns);
            }
        }
        self.drain();
        // With nothing lost every end is reported, and the timer is not needed.
        if self.loss > 0 {
            self.world.tracker.expire(self.kernel.now_ns);
        }
    }

    fn sweep(&mut self, meanwhile: impl Fn(&mut Kernel)) {
        self.drain();
        self.kernel.now_ns += 1;
        self.world.tracker.begin_sweep(self.kernel.now_ns);
        let seen = self.kernel.sightings(meanwhile);
        self.drain();
        let waiting = seen.iter().filter(|seen| seen.socket.is_unaccepted() && seen.state != Listen);
        let cookies: Vec<u64> = waiting.map(|seen| seen.socket.cookie).collect();
        self.world.tracker.apply_list(&accept_queue(self.kernel.now_ns, 9, &cookies));
        self.world.finish_sweep(&seen);
        self.world.assert_consistent();
    }

    /// A sweep a second after the last record, during which nothing happens.
    fn quiet_sweep(&mut self) {
        self.kernel.sleep(SECOND);
        self.sweep(|_| ());
    }

    fn rows(&self) -> Vec<Row> {
        let conns = self.world.tracker.table().iter().filter(|conn| conn.state() != Listen);
        let mut rows: Vec<Row> = conns
            .map(|conn| {
                let pid = conn.process.map(|id| self.world.tracker.processes().get(id).pid);
                let full = (!conn.is(ConnFlags::MINISOCK)).then_some((conn.cookie, pid));
                (conn.local, conn.remote, conn.state(), full)
            })
            .collect();
        rows.sort_unstable();
        rows
    }
}

/// Something happens between every second pair of sightings.
fn busy(kernel: &mut Kernel) {
    if kernel.random.one_in(2) {
        kernel.step();
    }
    if kernel.random.one_in(10) {
        kernel.sleep(15 * SECOND);
    }
}

#[test]
fn with_nothing_lost_the_counts_are_exact_and_sweeps_change_none() {
    for seed in 0..200 {
        let mut storm = Storm::new(seed, 0);
        for _ in 0..8 {
            storm.rage(30);
            storm.sweep(busy);
            let [opened, closed, _] = storm.world.counts();
            // Those whose owner is not known yet.
            let waiting = storm.world.tracker.table().iter().filter(|conn| conn.is(ConnFlags::COUNTS_WAIT));
            let opened = opened + waiting.count() as u64;
            assert_eq!([opened, closed], [storm.kernel.opened, storm.kernel.closed], "seed {seed}");
        }
    }
}

#[test]
fn with_nothing_lost_a_sweep_under_load_adds_and_removes_nothing() {
    // Only sweeps report a minisock's change of state and the holders.
    let known_by_records = |rows: Vec<Row>| -> Vec<_> {
        let rows = rows.into_iter();
        rows.map(|(local, remote, state, full)| (local, remote, full.map(|(cookie, _)| (cookie, state))))
            .collect()
    };
    for seed in 0..200 {
        let mut storm = Storm::new(seed, 0);
        for round in 0..8 {
            storm.rage(30);
            storm.sweep(busy);
            assert_eq!(
                known_by_records(storm.rows()),
                known_by_records(storm.kernel.rows()),
                "seed {seed}, round {round}"
            );
            let repairs = storm.world.tracker.repairs();
            assert_eq!((repairs.appeared, repairs.changed, repairs.vanished), (0, 0, 0), "seed {seed}");
        }
    }
}

#[test]
fn after_a_calm_sweep_the_table_is_the_kernels_whatever_was_lost() {
    for loss in [0, 10, 3, 2, 1] {
        for seed in 0..100 {
            let mut storm = Storm::new(seed, loss);
            for round in 0..5 {
                storm.rage(30);
                storm.sweep(busy);
                storm.quiet_sweep();
                assert_eq!(storm.rows(), storm.kernel.rows(), "1 of {loss} lost, seed {seed}, round {round}");
            }
        }
    }
}

#[test]
fn after_a_loss_no_count_is_too_high_and_nothing_is_closed_that_was_not_opened() {
    for loss in [10, 3, 2, 1] {
        for seed in 0..100 {
            let mut storm = Storm::new(seed, loss);
            storm.quiet_sweep();
            for round in 0..5 {
                storm.rage(30);
                storm.sweep(busy);
                storm.quiet_sweep();
                let ([opened, closed, _], kernel) = (storm.world.counts(), &storm.kernel);
                let context = format!(
                    "1 of {loss} lost, seed {seed}, round {round}: {opened} opened of {}, {closed} closed of {}",
                    kernel.opened, kernel.closed
                );
                assert!(opened <= kernel.opened && closed <= kernel.closed, "{context}");
                assert!(closed <= opened, "{context}");
            }
        }
    }
}

#[test]
fn after_a_calm_sweep_another_one_changes_nothing() {
    for seed in 0..50 {
        let mut storm = Storm::new(seed, 3);
        storm.rage(100);
        storm.quiet_sweep();
        let (rows, counts, repairs) = (storm.rows(), storm.world.counts(), storm.world.tracker.repairs());
        storm.sweep(|_| ());
        assert_eq!((storm.rows(), storm.world.counts()), (rows, counts), "seed {seed}");
        assert_eq!(storm.world.tracker.repairs(), repairs, "seed {seed}");
    }
}
