use tcpwatch::{events::frame::DescriptorCount, findings::Severity};

use crate::{THEN, Watched, evidence, scenario::*};

const RULE: &str = "socket_fd_leak";

fn bare(cookie: u64, port: u16) -> Socket {
    Socket::new(cookie, NETNS, end("0.0.0.0", port), end("0.0.0.0", 0), HELD)
}

/// Sweeps each 10 s for so long; `count` says how many sockets there are at each time.
fn watched(world: &mut World, seconds: u64, count: impl Fn(u64) -> u64) -> Watched {
    let mut watched = Watched::from(THEN);
    for second in 0..seconds {
        let now_ns = THEN + second * SECOND;
        if second % 10 == 0 {
            let seen: Vec<_> = (0..count(second))
                .map(|one| held_sighting(now_ns, bare(100 + one, 0), Close, WORKER))
                .collect();
            world.sweep(now_ns, &seen);
            let start_ns = u64::from(WORKER) * 10;
            let open = 20 + count(second);
            world.tracker.count_descriptors(&DescriptorCount {
                pid: WORKER,
                start_ns,
                at_ns: now_ns,
                open,
                limit: 1024,
            });
        }
        watched.until(world, now_ns);
    }
    watched
}

#[test]
fn sockets_that_grow_are_a_warning_critical_at_a_hundred_and_the_limit_is_foreseen() {
    let mut world = World::new();
    let watched = watched(&mut world, 110, |second| second);
    let finding = watched.of(RULE);
    assert_eq!((finding.id.rule.name(), finding.severity), (RULE, Severity::Warning));
    assert_eq!(finding.latest.subject.name(), "worker");
    let mut world = World::new();
    let watched = self::watched(&mut world, 250, |second| second);
    let finding = watched.of(RULE);
    assert_eq!(finding.severity, Severity::Critical);
    let growth = evidence(finding, "growth");
    assert!((growth - 60.0).abs() < 6.0, "{growth}");
    let (open, left) = (evidence(finding, "descriptors"), evidence(finding, "seconds_to_limit"));
    assert!((left - (1024.0 - open)).abs() < 0.1 * left, "{left} s with {open} open");
}

#[test]
fn a_dozen_that_stays_is_an_info() {
    let mut world = World::new();
    assert_eq!(watched(&mut world, 400, |_| 12).of(RULE).severity, Severity::Info);
}

#[test]
fn sockets_that_are_used_soon_are_silent() {
    let mut world = World::new();
    for second in 0..60 {
        let now_ns = THEN + second * SECOND;
        world.sweep(now_ns, &[held_sighting(now_ns, bare(100 + second, 0), Close, WORKER)]);
    }
    assert_eq!(
        Watched::from(THEN + MINUTE)
            .until(&world, THEN + MINUTE + 5 * SECOND)
            .find(RULE)
            .map(|one| one.severity),
        None
    );
}

#[test]
fn what_they_were_is_told() {
    let mut world = World::new();
    let over = |cookie| Socket::new(cookie, NETNS, end("10.0.0.1", 40_000), end("10.0.0.2", 80), HELD);
    for now_ns in [THEN, THEN + MINUTE] {
        let seen = [bare(1, 0), bare(2, 0), bare(3, 8080), over(4)];
        world.sweep(now_ns, &seen.map(|socket| held_sighting(now_ns, socket, Close, WORKER)));
    }
    let mut watched = Watched::from(THEN + MINUTE);
    let finding = watched.until(&world, THEN + MINUTE + 5 * SECOND).of(RULE);
    assert_eq!(["never_used", "only_bound", "over"].map(|name| evidence(finding, name) as u64), [2, 1, 1]);
}
