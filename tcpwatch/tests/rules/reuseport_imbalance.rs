use tcpwatch::{
    events::frame::{ListenQueues, NamespaceQueues, QueueRead},
    findings::Severity,
};

use crate::{THEN, Watched, evidence, scenario::*};

const RULE: &str = "reuseport_imbalance";

/// Two listeners on one port, of these processes, the second from `second_ns` on.
fn pair(pids: [u32; 2], second_ns: u64) -> World {
    let mut world = World::new();
    for (cookie, pid, since_ns) in [(8, pids[0], THEN - MINUTE), (9, pids[1], second_ns)] {
        world.report(since_ns, listener(cookie, "0.0.0.0"), to(Close, Listen, pid));
    }
    world
}

/// Looks each two seconds; `waiting` says what is in the queue of each.
fn watch(world: &mut World, seconds: u64, waiting: impl Fn(u64) -> [u32; 2]) -> Watched {
    let mut watched = Watched::from(THEN);
    for second in 0..seconds {
        let time_ns = THEN + second * SECOND;
        if second % 2 == 0 {
            let listeners = [8, 9].into_iter().zip(waiting(second)).map(|(cookie, waiting)| QueueRead {
                cookie,
                addr: [0; 4].into(),
                port: 80,
                waiting,
                limit: 128,
                drops: 0,
            });
            let listeners = listeners.filter(|one| one.waiting > 0).collect();
            let namespaces = vec![NamespaceQueues { netns: NETNS, overflows: Some(0), listeners }];
            world.tracker.apply_queues(&ListenQueues { time_ns, namespaces });
        }
        watched.until(world, time_ns);
    }
    watched
}

fn severity(watched: &Watched) -> Option<Severity> {
    watched.open().into_iter().find(|one| one.id.rule.name() == RULE).map(|one| one.severity)
}

#[test]
fn a_member_that_does_not_accept_costs_its_share() {
    let mut world = pair([NGINX, NGINX], THEN - MINUTE);
    let watched = watch(&mut world, 9, |second| [second as u32 / 2 + 1, 0]);
    assert_eq!(severity(&watched), Some(Severity::Warning));
    let mut world = pair([NGINX, NGINX], THEN - MINUTE);
    let watched = watch(&mut world, 20, |second| [second as u32 / 2 + 1, 0]);
    let open = watched.open();
    let finding = open.iter().find(|one| one.id.rule.name() == RULE).unwrap();
    assert_eq!(finding.severity, Severity::Critical);
    assert_eq!(["members", "share_lost"].map(|name| evidence(finding, name) as u64), [2, 50]);
    assert_eq!(finding.latest.members[0].pid, NGINX);
}

#[test]
fn members_that_all_wait_or_all_accept_are_silent() {
    let mut world = pair([NGINX, NGINX], THEN - MINUTE);
    assert_eq!(severity(&watch(&mut world, 60, |_| [3, 2])), None);
    let mut world = pair([NGINX, NGINX], THEN - MINUTE);
    assert_eq!(severity(&watch(&mut world, 60, |second| [u32::from(second % 4 == 0), 0])), None);
}

#[test]
fn different_programs_on_one_port_are_a_warning_after_a_minute() {
    let mut world = pair([NGINX, CURL], THEN);
    assert_eq!(severity(&watch(&mut world, 55, |_| [0, 0])), None);
    let watched = watch(&mut world, 70, |_| [0, 0]);
    let finding = watched.of(RULE);
    assert_eq!((finding.severity, evidence(finding, "programs") as u64), (Severity::Warning, 2));
    assert!(finding.latest.summary.contains("curl, nginx"), "{}", finding.latest.summary);
}
