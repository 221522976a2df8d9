//! A server whose accept queue is looked at each two seconds, and swept when that says that it should be.

use tcpwatch::{
    events::frame::{ListenQueues, NamespaceQueues, NamespaceSettings, QueueRead},
    findings::Severity,
};

use crate::{Watched, scenario::*};

pub(crate) const LISTENER: u64 = 9;

pub(crate) struct Server {
    pub(crate) world: World,
    pub(crate) watched: Watched,
    pub(crate) now_ns: u64,
    limit: u32,
    /// Ports of the clients in the queue, and of those that were accepted.
    queue: Vec<u16>,
    accepted: Vec<u16>,
    next: u16,
    drops: u32,
    /// What the namespace has refused.
    overflows: u64,
}

pub(crate) fn conn(port: u16, flags: u8) -> Socket {
    Socket::new(port.into(), NETNS, end("10.0.0.2", 80), end("10.0.0.1", port), PASSIVE | flags)
}

impl Server {
    /// It begins to listen at `now_ns`, and the first sweep ends.
    pub(crate) fn listens(now_ns: u64, limit: u32) -> Self {
        let mut world = World::new();
        world.tracker.begin_sweep(now_ns - SECOND);
        let overflows = [(NETNS, 0)].into_iter().collect();
        world.finish_sweep_of(&[], &Coverage { all: true, overflows, ..covering(&[NETNS]) });
        world.report(now_ns, listener(LISTENER, "0.0.0.0"), to(Close, Listen, NGINX));
        world.tracker.set_namespace(&NamespaceSettings {
            netns: NETNS,
            somaxconn: Some(4096),
            ..NamespaceSettings::default()
        });
        let watched = Watched::from(now_ns);
        let (queue, accepted) = (Vec::new(), Vec::new());
        Self { world, watched, now_ns, limit, queue, accepted, next: 1000, drops: 0, overflows: 0 }
    }

    /// A handshake is complete; refused where the queue is full.
    pub(crate) fn arrive(&mut self) {
        if self.queue.len() > self.limit as usize {
            (self.drops, self.overflows) = (self.drops + 1, self.overflows + 1);
            return;
        }
        self.next += 1;
        self.world.report(self.now_ns, conn(self.next, 0), to(SynRecv, Established, 0));
        self.queue.push(self.next);
    }

    /// The oldest client in the queue that has not given up closes.
    pub(crate) fn give_up(&mut self, index: usize) {
        self.world.report(self.now_ns, conn(self.queue[index], 0), to(Established, CloseWait, 7));
    }

    pub(crate) fn accept(&mut self) {
        if !self.queue.is_empty() {
            let port = self.queue.remove(0);
            let accept = What::Accept { state: Established, pid: Some(NGINX) };
            self.world.report(self.now_ns, conn(port, HELD), accept);
            self.accepted.push(port);
        }
    }

    /// Segments that the listener drops for another reason, as bare acknowledgements with TCP_DEFER_ACCEPT.
    pub(crate) fn drop_others(&mut self, count: u32) {
        self.drops += count;
    }

    pub(crate) fn second(&mut self) {
        self.now_ns += SECOND;
        if (self.now_ns / SECOND).is_multiple_of(2) {
            self.look();
            if self.world.tracker.queues_want_sweep() {
                self.sweep();
            }
        }
        self.watched.until(&self.world, self.now_ns);
    }

    pub(crate) fn seconds(&mut self, count: u64) -> &mut Self {
        for _ in 0..count {
            self.second();
        }
        self
    }

    fn look(&mut self) {
        let listeners = vec![QueueRead {
            cookie: LISTENER,
            addr: [0; 4].into(),
            port: 80,
            waiting: self.queue.len() as u32,
            limit: self.limit,
            drops: self.drops,
        }];
        let namespaces = vec![NamespaceQueues { netns: NETNS, overflows: Some(self.overflows), listeners }];
        self.world.tracker.apply_queues(&ListenQueues { time_ns: self.now_ns, namespaces });
    }

    fn sweep(&mut self) {
        let now_ns = self.now_ns;
        let queue = ListenQueue {
            waiting: self.queue.len() as u32,
            limit: self.limit,
            drops: self.drops,
            ..<_>::default()
        };
        let mut seen =
            vec![Seen { queue, ..held_sighting(now_ns, listener(LISTENER, "0.0.0.0"), Listen, NGINX) }];
        for port in &self.queue {
            let state = self.world.state(u64::from(*port)).unwrap();
            let unread_bytes = if state == CloseWait { 7 } else { 0 };
            seen.push(Seen { unread_bytes, ..sighting(now_ns, conn(*port, 0), state) });
        }
        for port in &self.accepted {
            seen.push(held_sighting(now_ns, conn(*port, HELD), Established, NGINX));
        }
        let cookies: Vec<u64> = self.queue.iter().map(|port| u64::from(*port)).collect();
        self.world.tracker.begin_sweep(now_ns);
        for seen in &seen {
            self.world.tracker.apply_seen(seen);
        }
        self.world.tracker.apply_list(&accept_queue(now_ns, LISTENER, &cookies));
        let overflows = [(NETNS, self.overflows)].into_iter().collect();
        self.world.finish_sweep_of(&[], &Coverage { overflows, ..covering(&[NETNS]) });
    }

    /// The severity of the open finding of this rule.
    pub(crate) fn severity(&self, rule: &str) -> Option<Severity> {
        self.watched.open().into_iter().find(|one| one.id.rule.name() == rule).map(|one| one.severity)
    }
}
