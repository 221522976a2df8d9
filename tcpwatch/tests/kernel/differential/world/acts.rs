//! The acts of the world: what its processes do with sockets, each chosen at random and entered into the ledger.

use std::{net::IpAddr, time::Instant};

use serde_json::{Value, json};

use super::{
    super::{random::Random, ss::End},
    Actor, DEVICES, Listens, Sleeper, Socket, VETH, World, kill, wait_for_end,
};

impl World {
    pub(super) fn listen(&mut self) {
        let actor = self.some_actor();
        let home = self.actors[actor].home;
        let mut addrs = vec!["127.0.0.1", "0.0.0.0", "::1", "::", "::"];
        addrs.extend(VETH.get(home).into_iter().flatten());
        let addr = *self.random.pick(&addrs);
        let only_v6 = addr == "::" && self.random.percent(30);
        // A few ports are used repeatedly; the others are new.
        let port = if self.random.percent(50) { 7000 + self.random.below(6) } else { 0 };
        let devices: &[&str] =
            if VETH.get(home).is_some() { &["", "", "", "lo", "veth0", "veth1"] } else { &["", "", "lo"] };
        let device = if addr.contains('%') { "" } else { *self.random.pick(devices) };
        let backlog = *self.random.pick(&[128, 128, 128, 3, 0]);
        let defer = if self.random.percent(15) { 60 } else { 0 };
        let reuse_port = self.random.percent(10);
        let handle = self.new_handles(1);
        let words = [
            json!(handle),
            json!(addr),
            json!(port),
            json!(backlog),
            json!(only_v6),
            json!(reuse_port),
            json!(defer),
            json!(device),
        ];
        let (issued, Some(answer)) = self.order(actor, "listen", &words) else { return };
        let socket = self.enter(actor, handle, None, issued);
        self.sockets[socket].listens = Some(Listens {
            home,
            addr: addr.to_owned(),
            only_v6,
            port: answer["port"].as_u64().unwrap() as u16,
            plain: backlog == 128 && defer == 0 && device.is_empty(),
        });
    }

    /// A random listener, and the addresses by which an actor in its namespace or the joined one reaches it.
    fn some_target(&mut self, plain: bool) -> Option<(Listens, usize, Vec<String>)> {
        let fits = |socket: &Socket| {
            socket.listens.as_ref().is_some_and(|listens| !plain || (listens.plain && !socket.deaf))
        };
        let (actor, handle) = self.some_handle(fits)?;
        let listens = self.sockets[self.actors[actor].handles[&handle]].listens.clone().unwrap();
        let across = listens.home < VETH.len() && self.random.percent(40);
        let home = if across { 1 - listens.home } else { listens.home };
        let targets = targets(&listens, home);
        (!targets.is_empty()).then_some((listens, home, targets))
    }

    fn some_actor_in(&mut self, home: usize) -> Option<usize> {
        let there: Vec<usize> =
            (0..self.actors.len()).filter(|actor| self.actors[*actor].home == home).collect();
        (!there.is_empty()).then(|| *self.random.pick(&there))
    }

    pub(super) fn connect_to_some_listener(&mut self) {
        for _ in 0..=self.random.below(4) {
            let Some((listens, home, targets)) = self.some_target(false) else { return };
            let Some(actor) = self.some_actor_in(home) else { return };
            let target = self.random.pick(&targets).clone();
            // The same local port again: the previous connection is in TIME_WAIT on one of the sides.
            let source = if self.random.percent(30) {
                let any = if target.contains(':') { "::" } else { "0.0.0.0" };
                json!([any, 20_000 + self.random.below(8)])
            } else {
                Value::Null
            };
            self.connect(actor, &target, listens.port, source);
        }
    }

    fn connect(&mut self, actor: usize, addr: &str, port: u16, source: Value) {
        let handle = self.new_handles(1);
        let keep = self.random.percent(20);
        let words = [json!(handle), json!(addr), json!(port), source, json!(keep)];
        let issued = self.send_order(actor, "connect", &words, false);
        let answer = self.hear_answer(actor);
        if answer["err"].is_null() {
            self.connections += 1;
            self.enter(actor, handle, Some(ends(&answer["local"], &answer["remote"])), issued);
        } else if answer["kept"] == true {
            self.enter(actor, handle, None, issued);
        }
    }

    pub(super) fn connect_to_itself(&mut self) {
        let actor = self.some_actor();
        let addr = *self.random.pick(&["127.0.0.1", "::1"]);
        self.connect(actor, addr, 0, json!([addr, 0]));
    }

    pub(super) fn refused(&mut self) {
        let actor = self.some_actor();
        let addr = *self.random.pick(&["127.0.0.1", "::1", "::ffff:127.0.0.1"]);
        self.connect(actor, addr, 1, Value::Null);
    }

    pub(super) fn accept(&mut self) {
        let Some((actor, listener)) = self.some_handle(|socket| socket.listens.is_some()) else { return };
        for _ in 0..=self.random.below(4) {
            let handle = self.new_handles(1);
            let (issued, answer) = self.order(actor, "accept", &[json!(listener), json!(handle)]);
            let Some(answer) = answer else { return };
            let socket = self.enter(actor, handle, None, issued);
            // The connection is in the listener's namespace, wherever the actor is.
            let listens = &self.sockets[self.actors[actor].handles[&listener]].listens;
            let netns = self.namespaces[listens.as_ref().unwrap().home].inode;
            let (interface, local, remote) = ends(&answer["local"], &answer["remote"]);
            self.by_ends.insert((netns, interface, local, remote), socket);
        }
    }

    pub(super) fn order_on_some(
        &mut self,
        listener: bool,
        name: &str,
        words: impl Fn(&mut Random) -> Vec<Value>,
    ) {
        let fits = |socket: &Socket| socket.listens.is_some() == listener;
        let Some((actor, handle)) = self.some_handle(fits) else { return };
        let words = [vec![json!(handle)], words(&mut self.random)].concat();
        let (_, answer) = self.order(actor, name, &words);
        let socket = &mut self.sockets[self.actors[actor].handles[&handle]];
        if name == "shutdown" && words[1] != "r" && answer.is_some() {
            socket.shut = true;
        }
        if name == "deaf" {
            socket.deaf = true;
        }
    }

    pub(super) fn let_hear(&mut self) {
        let Some((actor, handle)) = self.some_handle(|socket| socket.deaf) else { return };
        self.order(actor, "deaf", &[json!(handle), json!(false)]);
        let socket = self.actors[actor].handles[&handle];
        self.sockets[socket].deaf = false;
    }

    pub(super) fn close(&mut self, listener: bool) {
        for _ in 0..=self.random.below(3) {
            let fits = |socket: &Socket| socket.listens.is_some() == listener;
            let Some((actor, handle)) = self.some_handle(fits) else { return };
            let reset = self.random.percent(20);
            let (issued, _) = self.order(actor, "close", &[json!(handle), json!(reset)]);
            let socket = self.actors[actor].handles.remove(&handle).unwrap();
            self.release(self.actors[actor].pid, socket, issued);
        }
    }

    pub(super) fn fork(&mut self) {
        if self.actors.len() >= 12 {
            return;
        }
        let parent = self.some_actor();
        let (_, answer) = self.order(parent, "fork", &[]);
        let pid = answer.expect("fork")["pid"].as_u64().unwrap() as u32;
        let control = self.hear_of_new(pid);
        self.pids.insert(pid);
        let (home, handles) = (self.actors[parent].home, self.actors[parent].handles.clone());
        for socket in handles.values() {
            self.also_held_by(pid, *socket);
        }
        let mail = Vec::new();
        self.actors.push(Actor { pid, home, control, process: None, handles, mail });
        // The child's answer to the order that made it.
        self.hear_answer(self.actors.len() - 1);
    }

    pub(super) fn give(&mut self) {
        let Some((actor, handle)) = self.some_handle(|_| true) else { return };
        let to = self.some_actor();
        if self.actors[to].mail.len() >= 5 {
            return;
        }
        let pid = self.actors[to].pid;
        let (_, answer) = self.order(actor, "give", &[json!(handle), json!(pid)]);
        if answer.is_some() {
            let socket = self.actors[actor].handles[&handle];
            self.actors[to].mail.push(socket);
            // The receiver releases it even if it never takes it.
            self.also_held_by(pid, socket);
        }
        if self.random.percent(50) {
            self.take_by(to);
        }
    }

    pub(super) fn take(&mut self) {
        let actor = self.some_actor();
        self.take_by(actor);
    }

    fn take_by(&mut self, actor: usize) {
        if self.actors[actor].mail.is_empty() {
            return;
        }
        let handle = self.new_handles(1);
        let (_, answer) = self.order(actor, "take", &[json!(handle)]);
        assert!(answer.is_some(), "mail for {}", self.actors[actor].pid);
        let socket = self.actors[actor].mail.remove(0);
        self.actors[actor].handles.insert(handle, socket);
    }

    pub(super) fn sleeper(&mut self) {
        if self.sleepers.len() >= 4 {
            return;
        }
        let actor = self.some_actor();
        let handles: Vec<u64> = self.actors[actor].handles.keys().copied().collect();
        let handles: Vec<u64> = handles.into_iter().filter(|_| self.random.percent(30)).collect();
        let (_, answer) = self.order(actor, "sleeper", &[json!(handles)]);
        let pid = answer.expect("a process")["pid"].as_u64().unwrap() as u32;
        let sockets: Vec<usize> = handles.iter().map(|handle| self.actors[actor].handles[handle]).collect();
        for socket in &sockets {
            self.also_held_by(pid, *socket);
        }
        self.pids.insert(pid);
        self.sleepers.push(Sleeper { pid, sockets });
    }

    pub(super) fn wake_sleeper(&mut self) {
        if self.sleepers.is_empty() {
            return;
        }
        let index = self.random.below(self.sleepers.len());
        let sleeper = self.sleepers.swap_remove(index);
        let issued = Instant::now();
        self.log.push(format!("{} is killed (sleeper)", sleeper.pid));
        kill(sleeper.pid);
        for socket in sleeper.sockets {
            self.release(sleeper.pid, socket, issued);
        }
    }

    /// Ends an actor, by an order or by a signal.
    pub(super) fn kill(&mut self) {
        let index = self.some_actor();
        let issued = if self.random.percent(50) {
            let issued = self.send_order(index, "exit", &[], false);
            wait_for_end(self.actors[index].pid);
            issued
        } else {
            let issued = Instant::now();
            self.log.push(format!("{} is killed", self.actors[index].pid));
            kill(self.actors[index].pid);
            issued
        };
        let actor = self.actors.swap_remove(index);
        drop(actor.process);
        for socket in actor.handles.into_values().chain(actor.mail) {
            self.release(actor.pid, socket, issued);
        }
    }

    /// Makes many short connections, whose sides end at random.
    pub(super) fn burst(&mut self) {
        let Some((listens, home, targets)) = self.some_target(true) else { return };
        let Some(client) = self.some_actor_in(home) else { return };
        let listener = |actor: &Actor, sockets: &[Socket]| {
            actor.handles.iter().find_map(|(handle, socket)| {
                let found = sockets[*socket].listens.as_ref();
                found
                    .is_some_and(|found| found.port == listens.port && found.home == listens.home)
                    .then_some(*handle)
            })
        };
        let servers: Vec<(usize, u64)> = (0..self.actors.len())
            .filter(|actor| *actor != client)
            .filter_map(|actor| Some((actor, listener(&self.actors[actor], &self.sockets)?)))
            .collect();
        if servers.is_empty() {
            return;
        }
        let count = 10 + self.random.below(90);
        let targets: Vec<Value> = targets.iter().map(|target| json!([target, listens.port])).collect();
        let mut asked = Vec::new();
        for (actor, listener) in servers {
            let (first, seed) = (self.new_handles(count), self.random.next());
            let words = [json!(first), json!(count), json!(listener), json!(seed)];
            let issued = self.send_order(actor, "accepts", &words, false);
            asked.push((actor, listens.home, issued));
        }
        let (first, seed) = (self.new_handles(count), self.random.next());
        let words = [json!(first), json!(count), json!(targets), json!(seed)];
        let issued = self.send_order(client, "connects", &words, false);
        asked.push((client, home, issued));
        self.connections += count;
        for (actor, home, issued) in asked {
            self.log.push(format!("{} has made", self.actors[actor].pid));
            let answer = self.hear_answer(actor);
            for made in answer["made"].as_array().unwrap_or_else(|| panic!("burst: {answer}")) {
                let socket = self.enter(actor, made[0].as_u64().unwrap(), None, issued);
                self.sockets[socket].shut = made[3] == true && made[0] != 0;
                let (interface, local, remote) = ends(&made[1], &made[2]);
                self.by_ends.insert((self.namespaces[home].inode, interface, local, remote), socket);
            }
        }
    }
}

/// The addresses by which an actor in the namespace `from` reaches a listener.
fn targets(listens: &Listens, from: usize) -> Vec<String> {
    let here = from == listens.home;
    let [v4, v6, first_link, second_link] = match VETH.get(listens.home) {
        // From the other side the scope is the other side's interface, which has the same name.
        Some(addrs) => addrs.map(Some),
        None => [None; 4],
    };
    let local = |addr| here.then_some(addr);
    let all_v4 = [local("127.0.0.1"), local("127.0.0.5"), v4];
    let all_v6 = [local("::1"), v6, first_link, second_link];
    let reached: Vec<&str> = match &listens.addr[..] {
        "0.0.0.0" => all_v4.into_iter().flatten().collect(),
        "::" if listens.only_v6 => all_v6.into_iter().flatten().collect(),
        "::" => all_v4.into_iter().chain(all_v6).flatten().collect(),
        loopback @ ("127.0.0.1" | "::1") => local(loopback).into_iter().collect(),
        own => vec![own],
    };
    let mapped = reached.iter().filter(|addr| !addr.contains(':')).map(|addr| format!("::ffff:{addr}"));
    reached.iter().map(|addr| (*addr).to_owned()).chain(mapped.collect::<Vec<_>>()).collect()
}

/// The interface of a link-local address, and both ends.
fn ends(local: &Value, remote: &Value) -> (String, End, End) {
    let end = |end: &Value| {
        let addr: IpAddr = end[0].as_str().unwrap().parse().unwrap();
        (addr.to_canonical(), end[1].as_u64().unwrap() as u16)
    };
    let scope = local[2].as_u64().unwrap_or(0).to_string();
    let device = DEVICES.iter().find(|(_, index)| *index == scope).map_or("", |(device, _)| device);
    (device.to_owned(), end(local), end(remote))
}
