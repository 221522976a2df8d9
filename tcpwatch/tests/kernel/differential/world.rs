//! A small world of processes that use TCP sockets at random, and the ledger of who holds or held each socket, which
//! the kernel itself does not report once a socket has no descriptor.
//!
//! Each step is acknowledged before the next is chosen, so between steps nothing moves but the kernel's timers.

mod acts;

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
    ss::{self, End, Key, SsRow},
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
    by_ends: HashMap<Ends, usize>,
    random: Random,
    last_handle: u64,
    /// Connections made so far.
    pub(crate) connections: usize,
    pids: BTreeSet<u32>,
    log: Vec<String>,
}

/// Network namespace, interface of a link-local address (empty for none), local and remote end.
type Ends = (u64, String, End, End);

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
const VETH: [[&str; 4]; 2] = [
    ["10.99.0.1", "fd99::1", "fe80::99:1%veth0", "fe80::99:1%veth1"],
    ["10.99.0.2", "fd99::2", "fe80::99:2%veth0", "fe80::99:2%veth1"],
];
/// The devices of the two pairs, with the index that both ends have.
const DEVICES: [(&str, &str); 2] = [("veth0", "10"), ("veth1", "11")];

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let namespaces: Vec<Namespace> = (0..HOMES).map(|_| Namespace::new()).collect();
        let paths: Vec<String> = namespaces.iter().map(Namespace::path).collect();
        let names: Vec<&str> = paths.iter().map(|path| path.rsplit('/').next().unwrap()).collect();
        for (device, index) in DEVICES {
            ip(&[
                &["-n", names[0], "link", "add", device, "index", index, "type", "veth"],
                &["peer", "name", device, "index", index, "netns", names[1]][..],
            ]
            .concat());
        }
        for (name, addrs) in names.iter().zip(VETH) {
            for (device, _) in DEVICES {
                // An automatic link-local address would first have to pass duplicate detection.
                ip(&["-n", name, "link", "set", device, "addrgenmode", "none", "up"]);
            }
            for addr in addrs {
                let (addr, device) = addr.split_once('%').unwrap_or((addr, "veth0"));
                let length = if addr.contains(':') { 64 } else { 24 };
                let nodad: &[&str] = if addr.contains(':') { &["nodad"] } else { &[] };
                ip(&[&["-n", name, "addr", "add", &format!("{addr}/{length}"), "dev", device], nodad]
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
        let socket = &self.sockets[*self.by_ends.get(&ends_of(row))?];
        Some(match socket.released {
            Some((pid, released)) if !socket.shut => {
                Owner { among: BTreeSet::from([pid]), may_be_unknown: released < since }
            }
            _ => Owner { among: socket.ever.clone(), may_be_unknown: socket.opened < since },
        })
    }

    pub(crate) fn ever_held(&self, row: &SsRow) -> Option<BTreeSet<u32>> {
        self.by_ends.get(&ends_of(row)).map(|index| self.sockets[*index].ever.clone())
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
    fn enter(
        &mut self,
        actor: usize,
        handle: u64,
        ends: Option<(String, End, End)>,
        issued: Instant,
    ) -> usize {
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
        if let Some((interface, local, remote)) = ends {
            let netns = self.namespaces[self.actors[actor].home].inode;
            self.by_ends.insert((netns, interface, local, remote), index);
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

/// The ledger knows the interface of link-local addresses only: else the ends are unique without it.
fn ends_of(row: &SsRow) -> Ends {
    let Key { netns, interface, local, remote, .. } = &row.key;
    let link_local = matches!(local.0, IpAddr::V6(addr) if addr.is_unicast_link_local());
    (*netns, if link_local { interface.clone() } else { String::new() }, *local, *remote)
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
