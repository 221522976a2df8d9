use tcpwatch::findings::Severity;

use crate::{THEN, Watched, evidence, scenario::*};

const RULE: &str = "connection_pool_leak";

/// One end of a connection, and when it last sent and received.
struct Used {
    socket: Socket,
    sent_ns: u64,
    received_ns: u64,
}

/// A process with a pool and clients, swept each 10 s.
struct Service {
    world: World,
    watched: Watched,
    now_ns: u64,
    pool: Vec<Used>,
    clients: Vec<Used>,
    next: u16,
}

impl Service {
    fn new() -> Self {
        let mut world = World::new();
        world.report(THEN - MINUTE, listener(9, "0.0.0.0"), to(Close, Listen, WORKER));
        let (pool, clients) = (Vec::new(), Vec::new());
        Self { world, watched: Watched::from(THEN), now_ns: THEN, pool, clients, next: 1000 }
    }

    /// Opens a connection of the pool and uses it.
    fn open(&mut self) {
        self.next += 1;
        let local = end("10.0.0.2", self.next);
        let socket = Socket::new(self.next.into(), NETNS, local, end("10.0.0.9", 3306), HELD);
        self.world.report(self.now_ns, socket, to(Close, SynSent, WORKER));
        self.world.report(self.now_ns, socket, to(SynSent, Established, 0));
        self.pool.push(Used { socket, sent_ns: self.now_ns, received_ns: self.now_ns + 1_000_000 });
    }

    /// A client sends a request, which is not answered.
    fn request(&mut self) {
        self.next += 1;
        let socket = Socket::new(
            self.next.into(),
            NETNS,
            end("10.0.0.2", 80),
            end("10.0.0.1", self.next),
            PASSIVE | HELD,
        );
        self.world.report(self.now_ns, socket, to(SynRecv, Established, 0));
        let accept = What::Accept { state: Established, pid: Some(WORKER) };
        self.world.report(self.now_ns, socket, accept);
        self.clients.push(Used { socket, sent_ns: 0, received_ns: self.now_ns });
    }

    fn use_all(&mut self) {
        for one in &mut self.pool {
            (one.sent_ns, one.received_ns) = (self.now_ns, self.now_ns + 1_000_000);
        }
    }

    fn second(&mut self) {
        self.now_ns += SECOND;
        if (self.now_ns / SECOND).is_multiple_of(10) {
            let now_ns = self.now_ns;
            let seen: Vec<Seen> =
                self.pool.iter().chain(&self.clients).map(|one| sighted(one, now_ns)).collect();
            let listening = held_sighting(now_ns, listener(9, "0.0.0.0"), Listen, WORKER);
            self.world.sweep(now_ns, &[&[listening], &seen[..]].concat());
        }
        self.watched.until(&self.world, self.now_ns);
    }

    fn seconds(&mut self, count: u64) -> &mut Self {
        for _ in 0..count {
            self.second();
        }
        self
    }

    fn severity(&self) -> Option<Severity> {
        self.watched.open().into_iter().find(|one| one.id.rule.name() == RULE).map(|one| one.severity)
    }
}

fn sighted(one: &Used, now_ns: u64) -> Seen {
    let ticks = |time_ns: u64| if time_ns == 0 { 0 } else { jiffies(time_ns) as u32 };
    Seen {
        jiffies: jiffies(now_ns),
        sent_jiffies: ticks(one.sent_ns),
        data_sent: one.sent_ns > 0,
        data_received_jiffies: ticks(one.received_ns),
        received_jiffies: ticks(one.received_ns.max(one.sent_ns)),
        traffic: Traffic { sent_bytes: 10, received_bytes: u64::from(one.received_ns > 0) * 10 },
        ..held_sighting(now_ns, one.socket, Established, WORKER)
    }
}

#[test]
fn a_pool_that_opens_beside_idle_connections_leaks_and_its_maximum_is_known_once_requests_wait() {
    let mut service = Service::new();
    service.seconds(20);
    for _ in 0..43 {
        service.open();
        service.second();
    }
    assert_eq!(service.severity(), Some(Severity::Warning));
    let found = service.watched.of(RULE);
    assert!(evidence(found, "opened_beside_idle") >= 10.0, "{found:#?}");
    assert_eq!(found.latest.subject.peer_text(), "10.0.0.9:3306");
    service.request();
    service.seconds(110);
    let found = service.watched.of(RULE);
    assert_eq!(
        ["maximum", "connections", "requests_waiting"].map(|name| evidence(found, name) as u64),
        [43, 43, 1]
    );
    assert!(found.latest.summary.contains("has used none"), "{}", found.latest.summary);
    service.seconds(300);
    assert_eq!(service.severity(), Some(Severity::Critical));
    // Given back at last.
    service.use_all();
    service.clients.clear();
    service.seconds(30);
    assert_eq!(service.severity(), None);
}

#[test]
fn a_pool_that_is_idle_while_nothing_waits_is_silent() {
    let mut service = Service::new();
    for _ in 0..10 {
        service.open();
    }
    service.seconds(20);
    service.use_all();
    for _ in 0..900 {
        service.second();
        assert_eq!(service.severity(), None);
    }
}

#[test]
fn a_burst_that_uses_all_connections_is_silent() {
    let mut service = Service::new();
    for _ in 0..60 {
        service.open();
        service.use_all();
        service.second();
        assert_eq!(service.severity(), None);
    }
}

#[test]
fn a_pool_whose_server_does_not_answer_is_no_leak() {
    let mut service = Service::new();
    for _ in 0..10 {
        service.open();
    }
    service.seconds(20);
    for one in &mut service.pool {
        one.sent_ns = THEN + 20 * SECOND;
    }
    service.request();
    for _ in 0..400 {
        service.second();
        assert_eq!(service.severity(), None);
    }
}

#[test]
fn one_connection_for_each_client_is_a_proxy() {
    let mut service = Service::new();
    service.seconds(20);
    for _ in 0..60 {
        service.open();
        service.request();
        // The client has its answer.
        let now_ns = service.now_ns + 2_000_000;
        service.clients.last_mut().unwrap().sent_ns = now_ns;
        service.second();
        assert_eq!(service.severity(), None);
    }
}
