//! What holds for all findings: causes, order, names.

use tcpwatch::findings::Severity;

use crate::{THEN, Watched, scenario::*};

/// Twelve short-lived clients of one name, whose requests the server never answers: each closes, the server does not.
fn both_ends(world: &mut World) {
    world.report(0, listener(9, "0.0.0.0"), to(Close, Listen, NGINX));
    for cookie in 100..112 {
        let (here, there) = (end("10.0.0.1", cookie), end("10.0.0.2", 80));
        let server = Socket::new(cookie.into(), NETNS, there, here, PASSIVE | HELD);
        let client = Socket::new(u64::from(cookie) + 1000, NETNS, here, there, HELD);
        world.learn(process(2000 + u32::from(cookie), "curl"));
        world.report(THEN, client, to(Close, SynSent, 2000 + u32::from(cookie)));
        world.report(THEN, server, to(SynRecv, Established, 0));
        world.report(THEN, client, to(SynSent, Established, 0));
        world.report(THEN, server, What::Accept { state: Established, pid: Some(WORKER) });
        world.report(THEN + SECOND, client, to(Established, FinWait1, 2000 + u32::from(cookie)));
        world.report(THEN + SECOND, server, to(Established, CloseWait, 0));
        world.report(THEN + SECOND, client, to(FinWait1, FinWait2, 0));
    }
}

#[test]
fn the_side_that_does_not_close_is_the_cause_and_short_lived_clients_are_one_finding() {
    let mut world = World::new();
    both_ends(&mut world);
    let mut watched = Watched::from(THEN);
    watched.until(&world, THEN + MINUTE);
    let stories = watched.findings.stories();
    let told: Vec<_> = stories.iter().map(|(depth, finding)| (*depth, finding.id.to_string())).collect();
    assert_eq!(told, [(0, "close_wait_leak.1".to_owned()), (1, "fin_wait2_pileup.1".to_owned())]);
    let (leak, pileup) = (stories[0].1, stories[1].1);
    assert_eq!((leak.effects[..].to_vec(), pileup.caused_by[..].to_vec()), (vec![pileup.id], vec![leak.id]));
    assert_eq!((leak.severity, pileup.latest.count), (Severity::Warning, 12));
    assert_eq!((pileup.latest.members.len(), pileup.latest.subject.name()), (12, "curl"));
}
