//! The table against the kernel's own view: while processes act at random, `/connections` has exactly the sockets that
//! `ss` and /proc show, each in the same state and of the right process.
//!
//! TCPWATCH_SEED=N repeats the workload of a failed run, TCPWATCH_ROUNDS=N sets its length, TCPWATCH_COMPARISONS=N the
//! number of comparisons.

mod random;
mod ss;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;

use self::{
    ss::{End, Key, SsRow},
    world::{Owner, World},
};
use crate::{daemon::Daemon, eventually::eventually, netns::Namespace, workload::Workload};

/// Number of daemons that see one world, one after the other.
const DAEMONS: usize = 2;
/// Number of comparisons of each daemon, unless TCPWATCH_COMPARISONS is set.
const COMPARISONS: u64 = 34;
/// How long sweeps may take to repair a loss, with room for a busy machine; `INTERVAL` in pipeline/sweeps.rs is 10 s.
const REPAIR: Duration = Duration::from_secs(12);
/// How long differences may last otherwise. `ss` takes no snapshot, and not every accept, passed descriptor or request is
/// reported: there an answer is as old as the last sweep, and sweeps have a pause between them.
const SETTLE: Duration = Duration::from_secs(6);
const POLL: Duration = Duration::from_millis(20);

struct Watched {
    daemon: Daemon,
    /// Its ids are the kernel's cookies, which `ss` shows too.
    knows_cookies: bool,
    /// It has seen everything that happened after this.
    ready: Instant,
    lossy: bool,
    settle: Duration,
}

#[derive(Default)]
struct Tally {
    comparisons: usize,
    sockets: usize,
    connections: usize,
    at_once: usize,
    /// Differences at the first attempt, by kind.
    passing: BTreeMap<String, usize>,
    waited: Duration,
    slowest: Duration,
    /// Sockets without an owner in the table because a record was lost.
    unknown: usize,
    /// Records lost because the kernel skipped a run.
    skipped: u64,
    /// States that were wrong until a sweep corrected them.
    corrected: u64,
    states: BTreeMap<String, usize>,
}

#[test]
fn at_every_quiet_moment_the_table_equals_ss() {
    let (seed, rounds) = (seed(), rounds().unwrap_or(3));
    let mut tally = Tally::default();
    for round in 0..rounds {
        let seed = seed.wrapping_add(round);
        eprintln!("differential: round {round}: TCPWATCH_SEED={seed} TCPWATCH_ROUNDS=1");
        let mut world = World::new(seed);
        for number in 0..DAEMONS {
            // No daemon watches these steps. The first daemon starts amid steps, the second while nothing happens.
            for _ in 0..4 {
                world.steps();
            }
            let mut watched = if number == 0 { start_amid(&mut world) } else { start(&[]) };
            for _ in 0..number_from("TCPWATCH_COMPARISONS").unwrap_or(COMPARISONS) {
                watched.compare(&world, &mut tally);
                world.steps();
            }
            // This workload does not fill the ring. The kernel skips a program that would interrupt itself.
            assert_eq!(watched.lost("ring_full"), 0);
            let skipped = watched.lost("run_skipped");
            tally.skipped += skipped;
            // An answer that needs no sweep would have been wrong.
            let corrected = watched.corrected();
            let all_reported = !watched.daemon.hook("time_wait").starts_with("inferred");
            assert!(corrected == 0 || skipped > 0 || !all_reported, "{corrected} states by sweeps");
            tally.corrected += corrected;
        }
        tally.connections += world.connections;
    }
    tally.print("exact");
    if self::rounds().is_none() {
        assert!(tally.comparisons >= 200, "{}", tally.comparisons);
    }
}

#[test]
fn with_a_fifth_of_the_records_lost_the_table_equals_ss_a_period_later() {
    let (seed, rounds) = (seed(), rounds().unwrap_or(2));
    let mut tally = Tally::default();
    for round in 0..rounds {
        let seed = seed.wrapping_add(round);
        eprintln!("differential, lossy: round {round}: TCPWATCH_SEED={seed} TCPWATCH_ROUNDS=1");
        let mut world = World::new(seed);
        world.steps();
        let mut watched = start(&["--drop-records", "0.2"]);
        (watched.lossy, watched.settle) = (true, REPAIR);
        for _ in 0..16 {
            world.steps();
            watched.compare(&world, &mut tally);
            eventually("the loss is repaired", || {
                let leaks = watched.daemon.json("/leaks");
                if leaks["complete"] == true { Ok(()) } else { Err(leaks.to_string()) }
            });
        }
        assert!(watched.daemon.metrics().sum("tcpwatch_records_lost_total", &[]) > Some(0));
        tally.connections += world.connections;
    }
    tally.print("lossy");
}

fn start(options: &[&str]) -> Watched {
    let daemon = Daemon::start(options);
    let knows_cookies = daemon.json("/status")["identity"] == "socket cookie";
    Watched { daemon, knows_cookies, ready: Instant::now(), lossy: false, settle: SETTLE }
}

fn start_amid(world: &mut World) -> Watched {
    thread::scope(|scope| {
        let starting = scope.spawn(|| start(&[]));
        while !starting.is_finished() {
            world.step();
        }
        starting.join().unwrap()
    })
}

fn seed() -> u64 {
    number_from("TCPWATCH_SEED")
        .unwrap_or_else(|| SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 % 1_000_000_000)
}

fn rounds() -> Option<u64> {
    number_from("TCPWATCH_ROUNDS")
}

fn number_from(variable: &str) -> Option<u64> {
    let given = std::env::var(variable).ok()?;
    Some(given.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {given:?}")))
}

/// A row of `/connections`.
#[derive(Debug)]
#[expect(dead_code, reason = "the role is printed with a difference")]
struct Row {
    role: String,
    accepted: Option<bool>,
    pid: Option<u32>,
}

impl Watched {
    fn lost(&self, cause: &str) -> u64 {
        self.daemon.metrics().sum("tcpwatch_records_lost_total", &[("cause", cause)]).unwrap_or(0)
    }

    /// States that records had not reported by the time of a sweep.
    fn corrected(&self) -> u64 {
        self.daemon.json("/status")["records"]["repairs"]["changed"].as_u64().unwrap()
    }

    fn compare(&mut self, world: &World, tally: &mut Tally) {
        let began = Instant::now();
        for attempt in 0.. {
            let truth = self.truth(world);
            let rows = self.rows(world);
            let (mut differences, unknown) = self.differences(world, &truth, &rows);
            // Timers go on: what began, ended or changed hands while it was asked differs from one of the two only.
            if !differences.is_empty() {
                let (later, _) = self.differences(world, &self.truth(world), &rows);
                differences.retain(|difference| later.contains(difference));
            }
            if differences.is_empty() {
                tally.comparisons += 1;
                tally.at_once += usize::from(attempt == 0);
                tally.sockets += truth.len();
                tally.waited += began.elapsed();
                tally.slowest = tally.slowest.max(began.elapsed());
                tally.unknown += unknown;
                for row in truth {
                    *tally.states.entry(row.key.state).or_default() += 1;
                }
                return;
            }
            if attempt == 0 {
                for (_, what) in &differences {
                    let kind = what.split(':').next().unwrap_or("");
                    *tally.passing.entry(kind.to_owned()).or_default() += 1;
                }
            }
            if !self.lossy && self.lost("run_skipped") > 0 {
                (self.lossy, self.settle) = (true, REPAIR);
            }
            if began.elapsed() > self.settle {
                self.fail(world, &differences, tally.comparisons);
            }
            thread::sleep(POLL);
        }
    }

    fn truth(&self, world: &World) -> Vec<SsRow> {
        let mut sockets = world.ss();
        for socket in &mut sockets {
            self.forget_cookie(&mut socket.key);
        }
        sockets
    }

    fn rows(&self, world: &World) -> Vec<(Key, Row)> {
        let answer = self.daemon.json("/connections?limit=10000");
        let rows = answer["connections"].as_array().unwrap().iter().map(row);
        let mut rows: Vec<_> = rows.filter(|(key, _)| world.is_home(key.netns)).collect();
        for (key, _) in &mut rows {
            self.forget_cookie(key);
        }
        rows
    }

    /// Where the daemon knows none, sockets are compared without.
    fn forget_cookie(&self, key: &mut Key) {
        if !self.knows_cookies {
            key.id.clear();
        }
    }

    /// The differences in words, and the number of owners that are unknown where that is allowed.
    fn differences(
        &self,
        world: &World,
        truth: &[SsRow],
        rows: &[(Key, Row)],
    ) -> (Vec<(Key, String)>, usize) {
        let mut left: BTreeMap<&Key, Vec<&Row>> = BTreeMap::new();
        for (key, row) in rows {
            left.entry(key).or_default().push(row);
        }
        let (mut found, mut unknown) = (Vec::new(), 0);
        for socket in truth {
            // Several rows with one key are listeners that share a port, where no cookie distinguishes them.
            let Some(row) = left.get_mut(&socket.key).and_then(|rows| {
                let held = |row: &&Row| row.pid.is_some_and(|pid| socket.holders.contains(&pid));
                let at = rows.iter().position(held).or(rows.len().checked_sub(1))?;
                Some(rows.swap_remove(at))
            }) else {
                found.push((socket.key.clone(), format!("only in ss: {socket:?}")));
                continue;
            };
            let unaccepted = is_unaccepted(socket);
            if row.accepted == Some(unaccepted) || (row.accepted.is_none() && unaccepted) {
                found.push((socket.key.clone(), format!("accepted: {} in ss, {row:?}", !unaccepted)));
            }
            let Some(owner) = self.owner(world, truth, socket) else {
                found.push((socket.key.clone(), "the ledger lacks it: a bug of this test".to_owned()));
                continue;
            };
            match row.pid {
                Some(pid) if owner.among.contains(&pid) => {}
                None if owner.may_be_unknown => unknown += usize::from(self.saw_end(world, socket)),
                _ => found.push((
                    socket.key.clone(),
                    format!("process: {row:?}, but {owner:?}, holders {:?}", socket.holders),
                )),
            }
        }
        for (key, rows) in left {
            found.extend(rows.iter().map(|row| (key.clone(), format!("only in the table: {row:?}"))));
        }
        (found, unknown)
    }

    /// Whether the daemon would know the last owner if it had lost no record.
    fn saw_end(&self, world: &World, socket: &SsRow) -> bool {
        world.last_owner(socket, self.ready).is_some_and(|owner| !owner.may_be_unknown)
    }

    fn owner(&self, world: &World, truth: &[SsRow], socket: &SsRow) -> Option<Owner> {
        if !socket.holders.is_empty() {
            let among = socket.holders.iter().copied().collect();
            return Some(Owner { among, may_be_unknown: false });
        }
        let anybody = || Owner { among: world.pids().clone(), may_be_unknown: true };
        if is_unaccepted(socket) {
            return Some(listener(truth, socket).unwrap_or_else(anybody));
        }
        if socket.key.state == "LISTEN" {
            // Its descriptor is on the way from one process to another.
            return Some(anybody());
        }
        let mut owner = world.last_owner(socket, self.ready)?;
        if self.lossy {
            owner = Owner { among: world.ever_held(socket)?, may_be_unknown: true };
        }
        Some(owner)
    }

    fn fail(&self, world: &World, differences: &[(Key, String)], comparisons: usize) -> ! {
        let mut report = String::new();
        for (key, what) in differences.iter().take(10) {
            let _ = writeln!(report, "{key:?}\n  {what}");
            let (_, detail) = self.daemon.get(&format!("/connections/{}?format=json", key.id));
            let _ = writeln!(report, "  detail: {detail}");
            let _ = writeln!(report, "  orders:\n{}", world.story_of([key.local.1, key.remote.1]));
        }
        let (_, status) = self.daemon.get("/status");
        let _ = writeln!(report, "{status}");
        let orders = world.log();
        let _ =
            writeln!(report, "last orders:\n  {}", orders[orders.len().saturating_sub(40)..].join("\n  "));
        panic!(
            "{} differences from ss, {:?} after the last order, comparison {comparisons}:\n{report}",
            differences.len(),
            self.settle
        );
    }
}

/// Whether no process has ever held the socket: requests, and connections in a listener's queue.
fn is_unaccepted(socket: &SsRow) -> bool {
    !socket.has_file && matches!(&socket.key.state[..], "SYN_RECV" | "ESTABLISHED" | "CLOSE_WAIT")
}

/// The owner of the listener to which a connection in a queue belongs; several listeners may match equally well.
fn listener(truth: &[SsRow], socket: &SsRow) -> Option<Owner> {
    let (netns, local) = (socket.key.netns, socket.key.local);
    let score = |listener: &SsRow| {
        let ((addr, port), interface) = (listener.key.local, &listener.key.interface);
        let same = listener.key.state == "LISTEN"
            && listener.key.netns == netns
            && port == local.1
            && (interface.is_empty() || *interface == socket.key.interface);
        let score = match addr {
            _ if !same => 0,
            addr if addr == local.0 => 3,
            addr if addr.is_unspecified() && addr.is_ipv4() == local.0.is_ipv4() => 2,
            IpAddr::V6(addr) if addr.is_unspecified() => 1,
            _ => 0,
        };
        (score > 0).then_some((score, !interface.is_empty()))
    };
    let best = truth.iter().filter_map(score).max();
    let listeners: Vec<&SsRow> = truth.iter().filter(|row| best.is_some() && score(row) == best).collect();
    let among: BTreeSet<u32> = listeners.iter().flat_map(|row| row.holders.iter().copied()).collect();
    // A listener on its way between processes still shows its last holder.
    (!among.is_empty()).then_some(Owner { among, may_be_unknown: listeners.len() != 1 })
}

fn row(row: &Value) -> (Key, Row) {
    let end = |end: &Value| -> End {
        (end["addr"].as_str().unwrap().parse().unwrap(), end["port"].as_u64().unwrap() as u16)
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let key = Key {
        netns: row["netns"].as_u64().unwrap(),
        interface: row["interface"]["name"].as_str().unwrap_or_default().to_owned(),
        local: end(&row["local"]),
        remote: end(&row["remote"]),
        state: text(&row["state"]),
        id: text(&row["id"]),
    };
    let pid = row["process"]["pid"].as_u64().map(|pid| pid as u32);
    (key, Row { role: text(&row["role"]), accepted: row["accepted"].as_bool(), pid })
}

impl Tally {
    fn print(&self, name: &str) {
        eprintln!(
            "differential, {name}: {} comparisons with zero differences, {} at once, the others after {:?} on \
             average and {:?} at most, differing at first in {:?}; {} sockets compared, {} connections made, {} owners unknown after a loss, {} records \
             skipped by the kernel, {} states corrected by sweeps; {:?}",
            self.comparisons,
            self.at_once,
            self.waited / u32::try_from((self.comparisons - self.at_once).max(1)).unwrap(),
            self.slowest,
            self.passing,
            self.sockets,
            self.connections,
            self.unknown,
            self.skipped,
            self.corrected,
            self.states
        );
    }
}

/// Accepts and waits for the client's end.
const SERVER: &str = r#"
listener = listen("127.0.0.1", args[0])
say("listens")
while True:
    conn = listener.accept()[0]
    read_to_end(conn)
    conn.close()
"#;

/// Opens many connections and closes first: half of them are held to the end, half become orphans in FIN_WAIT2.
const CLIENT: &str = r#"
for number in range(int(args[1])):
    conn = connect("127.0.0.1", args[0])
    if number % 2:
        conn.shutdown(socket.SHUT_WR)
        read_to_end(conn)
    conn.close()
say("done")
order()
"#;

#[test]
fn every_time_wait_is_counted_until_its_end_with_the_process_that_closed() {
    const COMM: &str = "closes-first";
    // Below the ports that the kernel chooses; no other test uses it.
    const PORT: u16 = 4999;
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    // On loopback the kernel would otherwise reuse the ports of TIME_WAITs older than a second.
    namespace.run(&["sh", "-c", "echo 0 > /proc/sys/net/ipv4/tcp_tw_reuse"]);
    let count = 1000 * rounds().unwrap_or(5) as usize;
    let mut server = Workload::start(&namespace, "waits-for-end", SERVER, &[&PORT.to_string()]);
    assert_eq!(server.hear(), "listens");
    let began = Instant::now();
    let args = [PORT.to_string(), count.to_string()];
    let client = Workload::start(&namespace, COMM, CLIENT, &[&args[0], &args[1]]);
    let pid = client.pid();
    let mut client = Some(client);
    let (mut samples, mut most, mut worst) = (0, 0, 0.0_f64);
    loop {
        let asked = Instant::now();
        // The client ends long before its TIME_WAITs do.
        client.take_if(|client| client.try_hear().is_some());
        let before = ss::time_waits(&namespace, PORT);
        let answer =
            daemon.json(&format!("/connections?state=TIME_WAIT&pid={pid}&remote_port={PORT}&limit=1"));
        let after = ss::time_waits(&namespace, PORT);
        // Filtered by the process that closed: a TIME_WAIT without its owner is missing in the count.
        let shown = answer["total"].as_u64().unwrap() as usize;
        let (least, greatest) = (before.min(after), before.max(after));
        let off = shown.saturating_sub(greatest).max(least.saturating_sub(shown));
        let share = off as f64 / greatest.max(1) as f64;
        eprintln!(
            "time_wait {:>5.1?}: ss {before}..{after}, tcpwatch {shown}",
            began.elapsed().as_secs_f64()
        );
        assert!(
            off * 100 <= greatest,
            "{shown} shown, {before} then {after} in ss, at {:?}",
            began.elapsed()
        );
        (samples, most, worst) = (samples + 1, most.max(shown), worst.max(share));
        let named =
            answer["connections"].as_array().unwrap().iter().all(|row| row["process"]["comm"] == COMM);
        assert!(named, "{answer}");
        if client.is_none() && greatest == 0 && shown == 0 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(100), "{before} still there");
        thread::sleep(Duration::from_millis(500).saturating_sub(asked.elapsed()));
    }
    assert!(most * 100 >= count * 99, "{most}");
    eprintln!("time_wait: {samples} samples, at most {most}, worst off by {:.2} %", worst * 100.0);
}
