//! A small world of processes that use TCP sockets at random, and the ledger of who holds or held each socket, which
//! the kernel itself does not report once a socket has no descriptor.
//!
//! Each step is acknowledged before the next is chosen, so between steps nothing moves but the kernel's timers.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::IpAddr,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process::Command,
    time::Instant,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{
    random::Random,
    ss::{self, End, SsRow},
};
use crate::{
    eventually::{DEADLINE, eventually},
    netns::Namespace,
    workload::Workload,
};

const ACTOR: &str = include_str!("actor.py");

pub(crate) struct World {
    // Fields are dropped in this order.
    actors: Vec<Actor>,
    sleepers: Vec<Sleeper>,
    namespaces: Vec<Namespace>,
    control: UnixListener,
    control_path: PathBuf,
    sockets: Vec<Socket>,
    by_ends: HashMap<(u64, End, End), usize>,
    random: Random,
    last_handle: u64,
    /// Connections made so far.
    pub(crate) connections: usize,
    pids: BTreeSet<u32>,
    log: Vec<String>,
}

struct Actor {
    pid: u32,
    home: usize,
    control: BufReader<UnixStream>,
    /// Of an actor that the test started; the others are descendants.
    process: Option<Workload>,
    handles: BTreeMap<u64, usize>,
    /// Sockets sent to it and not taken yet, in order.
    mail: Vec<usize>,
}

/// A process of another program that inherited sockets.
struct Sleeper {
    pid: u32,
    sockets: Vec<usize>,
}

/// A socket in the ledger.
struct Socket {
    listens: Option<Listens>,
    deaf: bool,
    /// The pids that hold it, one entry for each descriptor.
    holders: Vec<u32>,
    /// The pids that held it at some time.
    ever: BTreeSet<u32>,
    /// Its sending side was shut down: it may have become a minisock while held.
    shut: bool,
    /// When the order to open it was given.
    opened: Instant,
    /// The last holder, and when the order was given that closed its last descriptor.
    released: Option<(u32, Instant)>,
}

#[derive(Clone)]
struct Listens {
    home: usize,
    addr: String,
    only_v6: bool,
    port: u16,
    /// Each connection to it succeeds at once.
    plain: bool,
}

/// The processes that `/connections` may name as the owner of a socket.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) among: BTreeSet<u32>,
    pub(crate) may_be_unknown: bool,
}

/// The two namespaces at the ends of the veth pair; a third has only its loopback.
const HOMES: usize = 3;
const VETH: [[&str; 3]; 2] =
    [["10.99.0.1", "fd99::1", "fe80::99:1%veth0"], ["10.99.0.2", "fd99::2", "fe80::99:2%veth0"]];

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let namespaces: Vec<Namespace> = (0..HOMES).map(|_| Namespace::new()).collect();
        let paths: Vec<String> = namespaces.iter().map(Namespace::path).collect();
        let names: Vec<&str> = paths.iter().map(|path| path.rsplit('/').next().unwrap()).collect();
        ip(&["-n", names[0], "link", "add", "veth0", "type", "veth", "peer", "veth0", "netns", names[1]]);
        for (name, addrs) in names.iter().zip(VETH) {
            // An automatic link-local address would first have to pass duplicate detection.
            ip(&["-n", name, "link", "set", "veth0", "addrgenmode", "none", "up"]);
            for addr in addrs {
                let (addr, length) =
                    if addr.contains(':') { (addr.split('%').next().unwrap(), 64) } else { (addr, 24) };
                let nodad: &[&str] = if addr.contains(':') { &["nodad"] } else { &[] };
                ip(&[&["-n", name, "addr", "add", &format!("{addr}/{length}"), "dev", "veth0"], nodad]
                    .concat());
            }
        }
        let directory = std::env::temp_dir().join(format!("twtest-{}-{seed:x}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let control_path = directory.join("control");
        let control = UnixListener::bind(&control_path).unwrap();
        control.set_nonblocking(true).unwrap();
        let mut world = Self {
            actors: Vec::new(),
            sleepers: Vec::new(),
            namespaces,
            control,
            control_path,
            sockets: Vec::new(),
            by_ends: HashMap::new(),
            random: Random::new(seed),
            last_handle: 0,
            connections: 0,
            pids: BTreeSet::new(),
            log: Vec::new(),
        };
        for home in [0, 1, 2, 0, 1] {
            world.spawn(home);
        }
        world
    }

    pub(crate) fn ss(&self) -> Vec<SsRow> {
        self.namespaces.iter().flat_map(ss::sockets).collect()
    }

    /// All processes that ever existed.
    pub(crate) fn pids(&self) -> &BTreeSet<u32> {
        &self.pids
    }

    pub(crate) fn is_home(&self, netns: u64) -> bool {
        self.namespaces.iter().any(|namespace| namespace.inode == netns)
    }

    /// The log of the orders to sockets with these ports.
    pub(crate) fn story_of(&self, ports: [u16; 2]) -> String {
        let ports = ports.map(|port| port.to_string());
        let about = |line: &&String| {
            let mut words = line.split(|c: char| !c.is_ascii_digit());
            ports.iter().all(|port| words.by_ref().any(|word| word == port) || port == "0")
        };
        self.log.iter().filter(about).fold(String::new(), |log, line| log + "    " + line + "\n")
    }

    pub(crate) fn log(&self) -> &[String] {
        &self.log
    }

    /// The possible owners of a connection without holders that was accepted or connected. What happened after `since`
    /// is known for sure. `None` when the ledger does not have the connection.
    pub(crate) fn last_owner(&self, row: &SsRow, since: Instant) -> Option<Owner> {
        let key = (row.key.netns, row.key.local, row.key.remote);
        let socket = &self.sockets[*self.by_ends.get(&key)?];
        Some(match socket.released {
            Some((pid, released)) if !socket.shut => {
                Owner { among: BTreeSet::from([pid]), may_be_unknown: released < since }
            }
            _ => Owner { among: socket.ever.clone(), may_be_unknown: socket.opened < since },
        })
    }

    pub(crate) fn ever_held(&self, row: &SsRow) -> Option<BTreeSet<u32>> {
        let key = (row.key.netns, row.key.local, row.key.remote);
        self.by_ends.get(&key).map(|index| self.sockets[*index].ever.clone())
    }

    pub(crate) fn steps(&mut self) {
        for _ in 0..2 + self.random.below(25) {
            self.step();
        }
    }

    /// Takes one random step.
    pub(crate) fn step(&mut self) {
        match self.random.below(100) {
            _ if self.actors.len() < 5 => {
                let home = self.random.below(HOMES);
                self.spawn(home);
            }
            0..7 => self.listen(),
            7..27 => self.connect_to_some_listener(),
            27..45 => self.accept(),
            45..52 => {
                self.order_on_some(false, "send", |random| vec![json!(*random.pick(&[1, 2000, 500_000]))]);
            }
            52..56 => self.order_on_some(false, "receive", |_| vec![]),
            56..62 => {
                self.order_on_some(false, "shutdown", |random| {
                    vec![json!(*random.pick(&["w", "w", "rw", "r"]))]
                });
            }
            62..72 => self.close(false),
            72..75 => self.close(true),
            75..78 => self.order_on_some(false, "deaf", |_| vec![json!(true)]),
            78 => self.order_on_some(true, "deaf", |_| vec![json!(true)]),
            79..82 => self.let_hear(),
            82..84 => self.fork(),
            84..86 => self.give(),
            86..89 => self.take(),
            89 => self.sleeper(),
            90 => self.wake_sleeper(),
            91..93 => self.kill(),
            93 => self.refused(),
            94 => self.connect_to_itself(),
            _ => self.burst(),
        }
    }

    fn spawn(&mut self, home: usize) {
        let control = self.control_path.to_str().unwrap().to_owned();
        let process = Workload::start(&self.namespaces[home], &format!("actor-{home}"), ACTOR, &[&control]);
        let pid = process.pid();
        let control = self.hear_of_new(pid);
        self.log.push(format!("{pid} starts in {}", self.namespaces[home].inode));
        self.pids.insert(pid);
        let process = Some(process);
        self.actors.push(Actor { pid, home, control, process, handles: BTreeMap::new(), mail: Vec::new() });
    }

    fn hear_of_new(&self, pid: u32) -> BufReader<UnixStream> {
        let (stream, _) = eventually("the actor reports", || self.control.accept());
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert_eq!(line.trim().parse(), Ok(pid));
        stream
    }

    fn send_order(&mut self, actor: usize, name: &str, words: &[Value], in_thread: bool) -> Instant {
        let issued = Instant::now();
        let order = Value::Array([&[json!(name), json!(in_thread)], words].concat()).to_string();
        let actor = &mut self.actors[actor];
        self.log.push(format!("{} {order}", actor.pid));
        actor.control.get_mut().write_all((order + "\n").as_bytes()).expect("a living actor");
        issued
    }

    fn hear_answer(&mut self, actor: usize) -> Value {
        let actor = &mut self.actors[actor];
        let mut line = String::new();
        actor.control.read_line(&mut line).unwrap_or_else(|error| panic!("actor {}: {error}", actor.pid));
        let answer: Value = serde_json::from_str(&line).expect("an answer: the actor failed");
        let order = self.log.last_mut().unwrap();
        *order += &format!(" -> {}", line.trim());
        answer
    }

    /// Gives an order and waits for the answer; `None` when the kernel refused.
    fn order(&mut self, actor: usize, name: &str, words: &[Value]) -> (Instant, Option<Value>) {
        let in_thread = name != "fork" && self.random.percent(10);
        let issued = self.send_order(actor, name, words, in_thread);
        let answer = self.hear_answer(actor);
        (issued, answer["err"].is_null().then_some(answer))
    }

    fn some_actor(&mut self) -> usize {
        self.random.below(self.actors.len())
    }

    /// A random descriptor of a random actor.
    fn some_handle(&mut self, fits: impl Fn(&Socket) -> bool) -> Option<(usize, u64)> {
        let all: Vec<(usize, u64)> = self
            .actors
            .iter()
            .enumerate()
            .flat_map(|(index, actor)| {
                actor.handles.iter().map(move |(handle, socket)| (index, *handle, *socket))
            })
            .filter(|(_, _, socket)| fits(&self.sockets[*socket]))
            .map(|(index, handle, _)| (index, handle))
            .collect();
        (!all.is_empty()).then(|| *self.random.pick(&all))
    }

    fn new_handles(&mut self, count: usize) -> u64 {
        self.last_handle += count as u64;
        self.last_handle - count as u64 + 1
    }

    /// Enters a socket into the ledger, held by the actor that opened it if it has a handle.
    fn enter(&mut self, actor: usize, handle: u64, ends: Option<(End, End)>, issued: Instant) -> usize {
        let index = self.sockets.len();
        let pid = self.actors[actor].pid;
        let kept = handle != 0;
        self.sockets.push(Socket {
            listens: None,
            deaf: false,
            holders: if kept { vec![pid] } else { vec![] },
            ever: BTreeSet::from([pid]),
            shut: false,
            opened: issued,
            released: (!kept).then_some((pid, issued)),
        });
        if kept {
            self.actors[actor].handles.insert(handle, index);
        }
        if let Some((local, remote)) = ends {
            let netns = self.namespaces[self.actors[actor].home].inode;
            self.by_ends.insert((netns, local, remote), index);
        }
        index
    }

    fn release(&mut self, pid: u32, socket: usize, issued: Instant) {
        let socket = &mut self.sockets[socket];
        let at = socket.holders.iter().position(|holder| *holder == pid).expect("a holder");
        socket.holders.swap_remove(at);
        if socket.holders.is_empty() {
            socket.released = Some((pid, issued));
        }
    }

    fn also_held_by(&mut self, pid: u32, socket: usize) {
        self.sockets[socket].holders.push(pid);
        self.sockets[socket].ever.insert(pid);
    }

    fn listen(&mut self) {
        let actor = self.some_actor();
        let home = self.actors[actor].home;
        let mut addrs = vec!["127.0.0.1", "0.0.0.0", "::1", "::", "::"];
        addrs.extend(VETH.get(home).into_iter().flatten());
        let addr = *self.random.pick(&addrs);
        let only_v6 = addr == "::" && self.random.percent(30);
        // A few ports are used repeatedly; the others are new.
        let port = if self.random.percent(50) { 7000 + self.random.below(6) } else { 0 };
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
        ];
        let (issued, Some(answer)) = self.order(actor, "listen", &words) else { return };
        let socket = self.enter(actor, handle, None, issued);
        self.sockets[socket].listens = Some(Listens {
            home,
            addr: addr.to_owned(),
            only_v6,
            port: answer["port"].as_u64().unwrap() as u16,
            plain: backlog == 128 && defer == 0,
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

    fn connect_to_some_listener(&mut self) {
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

    fn connect_to_itself(&mut self) {
        let actor = self.some_actor();
        let addr = *self.random.pick(&["127.0.0.1", "::1"]);
        self.connect(actor, addr, 0, json!([addr, 0]));
    }

    fn refused(&mut self) {
        let actor = self.some_actor();
        let addr = *self.random.pick(&["127.0.0.1", "::1", "::ffff:127.0.0.1"]);
        self.connect(actor, addr, 1, Value::Null);
    }

    fn accept(&mut self) {
        let Some((actor, listener)) = self.some_handle(|socket| socket.listens.is_some()) else { return };
        for _ in 0..=self.random.below(4) {
            let handle = self.new_handles(1);
            let (issued, answer) = self.order(actor, "accept", &[json!(listener), json!(handle)]);
            let Some(answer) = answer else { return };
            let socket = self.enter(actor, handle, None, issued);
            // The connection is in the listener's namespace, wherever the actor is.
            let listens = &self.sockets[self.actors[actor].handles[&listener]].listens;
            let netns = self.namespaces[listens.as_ref().unwrap().home].inode;
            let (local, remote) = ends(&answer["local"], &answer["remote"]);
            self.by_ends.insert((netns, local, remote), socket);
        }
    }

    fn order_on_some(&mut self, listener: bool, name: &str, words: impl Fn(&mut Random) -> Vec<Value>) {
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

    fn let_hear(&mut self) {
        let Some((actor, handle)) = self.some_handle(|socket| socket.deaf) else { return };
        self.order(actor, "deaf", &[json!(handle), json!(false)]);
        let socket = self.actors[actor].handles[&handle];
        self.sockets[socket].deaf = false;
    }

    fn close(&mut self, listener: bool) {
        for _ in 0..=self.random.below(3) {
            let fits = |socket: &Socket| socket.listens.is_some() == listener;
            let Some((actor, handle)) = self.some_handle(fits) else { return };
            let reset = self.random.percent(20);
            let (issued, _) = self.order(actor, "close", &[json!(handle), json!(reset)]);
            let socket = self.actors[actor].handles.remove(&handle).unwrap();
            self.release(self.actors[actor].pid, socket, issued);
        }
    }

    fn fork(&mut self) {
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

    fn give(&mut self) {
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

    fn take(&mut self) {
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

    fn sleeper(&mut self) {
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

    fn wake_sleeper(&mut self) {
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
    fn kill(&mut self) {
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
    fn burst(&mut self) {
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
                let (local, remote) = ends(&made[1], &made[2]);
                self.by_ends.insert((self.namespaces[home].inode, local, remote), socket);
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for sleeper in &self.sleepers {
            kill(sleeper.pid);
        }
        // Actors that the test did not start end when their control connection closes.
        self.actors.clear();
        let _ = fs::remove_dir_all(self.control_path.parent().unwrap());
    }
}

/// The addresses by which an actor in the namespace `from` reaches a listener.
fn targets(listens: &Listens, from: usize) -> Vec<String> {
    let here = from == listens.home;
    let [v4, v6, link_local] = match VETH.get(listens.home) {
        // From the other side the scope is the other side's interface, which has the same name.
        Some(addrs) => addrs.map(Some),
        None => [None; 3],
    };
    let local = |addr| here.then_some(addr);
    let all_v4 = [local("127.0.0.1"), local("127.0.0.5"), v4];
    let all_v6 = [local("::1"), v6, link_local];
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

fn ends(local: &Value, remote: &Value) -> (End, End) {
    let end = |end: &Value| {
        let addr: IpAddr = end[0].as_str().unwrap().parse().unwrap();
        (addr.to_canonical(), end[1].as_u64().unwrap() as u16)
    };
    (end(local), end(remote))
}

fn kill(pid: u32) {
    let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
    wait_for_end(pid);
}

/// Waits until a process holds nothing any more: a zombie has released everything.
fn wait_for_end(pid: u32) {
    eventually("the process ends", || match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(_) => Ok(()),
        Ok(stat) => {
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            if matches!(state, Some('Z' | 'X')) { Ok(()) } else { Err(stat) }
        }
    });
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().expect("`ip` (iproute2)");
    assert!(status.success(), "ip {}: {status}", args.join(" "));
}
