//! A kernel in miniature: connections between one client and one server, the records it would write of them,
//! and what its iterators would find.

use std::collections::BTreeMap;

use crate::scenario::*;

#[derive(Clone, Copy)]
struct Full {
    local: Endpoint,
    remote: Endpoint,
    passive: bool,
    state: TcpState,
    fin_received: bool,
    orphan: bool,
    holder: Option<u32>,
}

#[derive(Clone, Copy)]
struct Minisock {
    cookie: u64,
    state: TcpState,
    expires_ns: u64,
}

/// A row that the table must have: ends and state; of a full socket its cookie and owner.
pub(crate) type Row = (Endpoint, Endpoint, TcpState, Option<(u64, Option<u32>)>);

pub(crate) struct Kernel {
    pub(crate) random: Random,
    pub(crate) now_ns: u64,
    pub(crate) opened: u64,
    pub(crate) closed: u64,
    sockets: BTreeMap<u64, Full>,
    minisocks: BTreeMap<(Endpoint, Endpoint), Minisock>,
    last_cookie: u64,
    /// Not read from the ring yet.
    records: Vec<(u64, Socket, What)>,
}

const LISTENER: u64 = 9;

impl Kernel {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            now_ns: 1000 * SECOND,
            opened: 0,
            closed: 0,
            sockets: BTreeMap::new(),
            minisocks: BTreeMap::new(),
            last_cookie: 100,
            records: Vec::new(),
        }
    }

    /// What came into the ring, in order.
    pub(crate) fn take_records(&mut self) -> Vec<(u64, Socket, What)> {
        std::mem::take(&mut self.records)
    }

    fn tick(&mut self) -> u64 {
        self.now_ns += 1 + self.random.below(1_000_000);
        self.now_ns
    }

    fn socket(&self, cookie: u64) -> Socket {
        let full = self.sockets[&cookie];
        let flag = |is, flag| if is { flag } else { 0 };
        let flags = flag(full.passive, PASSIVE)
            | flag(full.fin_received, FIN)
            | flag(full.orphan, ORPHAN)
            | flag(full.holder.is_some(), HELD);
        Socket::new(cookie, NETNS, full.local, full.remote, flags)
    }

    fn report(&mut self, cookie: u64, what: What) {
        let time_ns = self.tick();
        self.records.push((time_ns, self.socket(cookie), what));
    }

    fn enter(&mut self, cookie: u64, state: TcpState, value: u32) {
        let from = self.sockets[&cookie].state;
        self.report(cookie, to(from, state, value));
        self.sockets.get_mut(&cookie).unwrap().state = state;
    }

    fn open(&mut self, local: Endpoint, remote: Endpoint, passive: bool, holder: Option<u32>) -> u64 {
        self.last_cookie += 1;
        let (state, fin_received, orphan) = (if passive { SynRecv } else { Close }, false, false);
        let full = Full { local, remote, passive, state, fin_received, orphan, holder };
        self.sockets.insert(self.last_cookie, full);
        self.last_cookie
    }

    fn end(&mut self, cookie: u64, error: u8) {
        let state = self.sockets[&cookie].state;
        self.report(cookie, ended(state, error));
        self.closed += u64::from(state.follows_established());
        let full = self.sockets.remove(&cookie).unwrap();
        let kept = match state {
            FinWait2 if error == 0 && full.fin_received => TimeWait,
            FinWait2 if error == 0 && full.orphan => FinWait2,
            _ => return,
        };
        let minisock = Minisock { cookie, state: kept, expires_ns: self.now_ns + MINUTE };
        self.minisocks.insert((full.local, full.remote), minisock);
    }

    fn end_minisock(&mut self, ends: (Endpoint, Endpoint)) {
        if self.minisocks.remove(&ends).is_some() {
            let time_ns = self.tick();
            let socket = Socket::new(0, NETNS, ends.0, ends.1, MINISOCK);
            self.records.push((time_ns, socket, What::MinisockEnd));
        }
    }

    /// The full socket at the other end.
    fn peer(&self, cookie: u64) -> Option<u64> {
        let Full { local, remote, .. } = self.sockets[&cookie];
        let peer = self.sockets.iter().find(|(_, full)| (full.local, full.remote) == (remote, local));
        peer.map(|(cookie, _)| *cookie)
    }

    /// One random action of a process or a timer.
    pub(crate) fn step(&mut self) {
        let cookies: Vec<_> = self.sockets.keys().copied().collect();
        if cookies.is_empty() || self.random.one_in(3) {
            return self.connect();
        }
        let cookie = self.random.pick(&cookies);
        let Full { state, holder, passive, orphan, .. } = self.sockets[&cookie];
        match (state, holder) {
            (_, None) if passive && !orphan => {
                self.sockets.get_mut(&cookie).unwrap().holder = Some(self.random.pick(&[NGINX, WORKER]));
            }
            (SynSent, _) => self.end(cookie, ETIMEDOUT),
            (Established, Some(pid)) => match self.random.below(4) {
                0 => self.abort(cookie, pid),
                1 => self.shut_down(cookie, pid),
                2 => {
                    self.shut_down(cookie, pid);
                    self.orphan(cookie);
                }
                // The descriptor goes to another process.
                _ if passive => self.sockets.get_mut(&cookie).unwrap().holder = Some(WORKER),
                _ => {}
            },
            (CloseWait, Some(pid)) => self.answer_close(cookie, pid),
            (FinWait2, Some(pid)) => {
                self.report(cookie, What::Close { state, pid: Some(pid), unread_bytes: 0 });
                self.orphan(cookie);
            }
            _ => {}
        }
    }

    fn connect(&mut self) {
        let ends = (end("10.0.0.1", 40_000 + self.random.below(8) as u16), end("10.0.0.2", 80));
        let taken = |full: &Full| (full.local, full.remote) == ends || (full.remote, full.local) == ends;
        if self.sockets.values().any(taken) || self.minisocks.contains_key(&ends) {
            return;
        }
        let client = self.open(ends.0, ends.1, false, Some(CURL));
        self.enter(client, SynSent, CURL);
        if self.random.one_in(6) {
            return;
        }
        // A SYN replaces the server's TIME_WAIT.
        self.end_minisock((ends.1, ends.0));
        let server = self.open(ends.1, ends.0, true, None);
        self.enter(server, Established, 0);
        self.enter(client, Established, 0);
        self.opened += 2;
    }

    fn shut_down(&mut self, cookie: u64, pid: u32) {
        self.enter(cookie, FinWait1, pid);
        self.enter(cookie, FinWait2, 0);
        if let Some(peer) = self.peer(cookie) {
            self.sockets.get_mut(&peer).unwrap().fin_received = true;
            self.enter(peer, CloseWait, 0);
        }
    }

    /// The last descriptor of a socket in FIN_WAIT2 is gone.
    fn orphan(&mut self, cookie: u64) {
        let full = self.sockets.get_mut(&cookie).unwrap();
        (full.orphan, full.holder) = (true, None);
        self.end(cookie, 0);
    }

    fn answer_close(&mut self, cookie: u64, pid: u32) {
        let Full { local, remote, .. } = self.sockets[&cookie];
        self.enter(cookie, LastAck, pid);
        let peer = self.peer(cookie);
        self.end(cookie, 0);
        if let Some(peer) = peer {
            self.sockets.get_mut(&peer).unwrap().fin_received = true;
            self.end(peer, 0);
        } else if let Some(minisock) = self.minisocks.get_mut(&(remote, local)) {
            // No record reports it.
            (minisock.state, minisock.expires_ns) = (TimeWait, self.now_ns + MINUTE);
        }
    }

    fn abort(&mut self, cookie: u64, pid: u32) {
        self.report(cookie, What::Close { state: Established, pid: Some(pid), unread_bytes: 0 });
        let peer = self.peer(cookie);
        self.end(cookie, 0);
        if let Some(peer) = peer {
            self.end(peer, ECONNRESET);
        }
    }

    pub(crate) fn sleep(&mut self, time_ns: u64) {
        self.now_ns += time_ns;
        let now_ns = self.now_ns;
        let over = self.minisocks.iter().filter(|(_, minisock)| minisock.expires_ns <= now_ns);
        for ends in over.map(|(ends, _)| *ends).collect::<Vec<_>>() {
            self.end_minisock(ends);
        }
    }

    /// What the iterators find, with `meanwhile` happening between any two sightings.
    pub(crate) fn sightings(&mut self, meanwhile: impl Fn(&mut Self)) -> Vec<Seen> {
        let mut seen = vec![held_sighting(self.tick(), listener(LISTENER, "0.0.0.0"), Listen, NGINX)];
        for cookie in self.sockets.keys().copied().collect::<Vec<_>>() {
            meanwhile(self);
            if self.sockets.contains_key(&cookie) {
                let time_ns = self.tick();
                seen.push(sighting(time_ns, self.socket(cookie), self.sockets[&cookie].state));
            }
        }
        for ends in self.minisocks.keys().copied().collect::<Vec<_>>() {
            meanwhile(self);
            if let Some(minisock) = self.minisocks.get(&ends).copied() {
                let socket = Socket::new(minisock.cookie, NETNS, ends.0, ends.1, MINISOCK);
                seen.push(minisock_sighting(self.tick(), socket, minisock.state, minisock.expires_ns));
            }
        }
        for cookie in self.sockets.keys().copied().collect::<Vec<_>>() {
            meanwhile(self);
            if let Some(Full { state, holder: Some(pid), .. }) = self.sockets.get(&cookie).copied() {
                seen.push(held_sighting(self.tick(), self.socket(cookie), state, pid));
            }
        }
        seen
    }

    /// The rows that the table must have; owners are known of full sockets only.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let full = self.sockets.iter().map(|(cookie, full)| {
            // Not accepted yet: it belongs to the listener.
            let owner = full.holder.or(Some(NGINX));
            (full.local, full.remote, full.state, Some((*cookie, owner)))
        });
        let minisocks = self.minisocks.iter();
        let minisocks = minisocks.map(|((local, remote), minisock)| (*local, *remote, minisock.state, None));
        let mut rows: Vec<Row> = full.chain(minisocks).collect();
        rows.sort_unstable();
        rows
    }
}
