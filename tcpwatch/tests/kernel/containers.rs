//! Connections between containers, which runc makes as for Docker and the kubelet: each side of a connection names its
//! own container, also where a published port is translated in between.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    daemon::Daemon,
    eventually::{DEADLINE, eventually},
    netns::{Namespace, needs},
    workload::{Workload, python_args},
};

const CONNECTIONS: usize = 3;
const NODE_TO_CLIENT: &str = "10.201.1.1";
const CLIENT: &str = "10.201.1.2";
const NODE_TO_SERVER: &str = "10.201.2.1";
const SERVER: &str = "10.201.2.2";
const SERVER_PORT: u16 = 8080;
const PUBLISHED_PORT: u16 = 18080;

/// Says its pid as seen inside; accepts, reads, and never closes.
const HOLDS: &str = r#"
listener = listen("0.0.0.0", args[0])
say(os.getpid())
conns = [listener.accept()[0] for _ in range(int(args[1]))]
say(*(conn.recv(5).decode() for conn in conns))
order()
"#;

/// Says its pid as seen inside and its local ports; closes on order.
const SENDS_THEN_CLOSES: &str = r#"
conns = [connect(args[0], args[1]) for _ in range(int(args[2]))]
for conn in conns:
    conn.send(b"12345")
say(os.getpid(), *map(port_of, conns))
order()
for conn in conns:
    conn.close()
say("closed")
order()
"#;

#[test]
fn each_side_of_a_connection_through_a_published_port_names_its_container() {
    needs("runc", "runc");
    needs("nft", "nftables");
    let daemon = Daemon::start(&["--linger", "close-wait=1s"]);
    let network = Network::new();
    let (server_id, client_id, pod_uid) = (container_id(), container_id(), uuid());
    let published = PUBLISHED_PORT.to_string();
    let count = CONNECTIONS.to_string();

    let args = [&SERVER_PORT.to_string()[..], &count];
    let args = python_args("in-docker", HOLDS, &args);
    let mut server = Container::start(&network.server, &format!("/docker/{server_id}"), &server_id, &args);
    assert_eq!(server.workload.hear(), "1", "the server's pid in its own pid namespace");
    let args = python_args("in-a-pod", SENDS_THEN_CLOSES, &[NODE_TO_CLIENT, &published, &count]);
    let cgroup = format!("/kubepods/burstable/pod{pod_uid}/{client_id}");
    let mut client = Container::start(&network.client, &cgroup, &client_id, &args);
    let [pid, ports @ ..] = client.workload.hear_numbers::<{ 1 + CONNECTIONS }>();
    assert_eq!(pid as u32, 1, "the client's pid in its own pid namespace");
    assert_eq!(server.workload.hear(), ["12345"; CONNECTIONS].join(" "));

    let mut ports = ports.map(|port| port as u16);
    ports.sort_unstable();
    let end = |addr: &str, port: u16| json!({"addr": addr, "port": port});
    let server_process = json!({
        "pid": server.pid,
        "comm": "in-docker",
        "exe": server.exe(),
        "exe_deleted": false,
        "cgroup": format!("/docker/{server_id}"),
        "container": {"id": server_id, "runtime": "docker", "pod_uid": null},
    });
    let client_process = json!({
        "pid": client.pid,
        "comm": "in-a-pod",
        "exe": client.exe(),
        "exe_deleted": false,
        "cgroup": cgroup,
        "container": {"id": client_id, "runtime": null, "pod_uid": pod_uid},
    });
    let mut server_side =
        vec![json!(["LISTEN", "listener", end("0.0.0.0", SERVER_PORT), end("0.0.0.0", 0), server_process])];
    // The address is translated on the way to the server, so each side sees another peer.
    server_side.extend(ports.map(|port| {
        json!(["ESTABLISHED", "server", end(SERVER, SERVER_PORT), end(CLIENT, port), server_process])
    }));
    let dialled = end(NODE_TO_CLIENT, PUBLISHED_PORT);
    let client_side =
        ports.map(|port| json!(["ESTABLISHED", "client", end(CLIENT, port), dialled, client_process]));
    // One daemon saw the connections open, the other found them.
    let late = Daemon::start(&[]);
    for daemon in [&daemon, &late] {
        side_is(daemon, &network.server, &server_side);
        side_is(daemon, &network.client, &client_side);
        assert_eq!(daemon.connections_in(&network.node), [] as [Value; 0], "the node only forwards");
    }
    drop(late);

    assert_eq!(client.workload.ask(), "closed");
    let leak = eventually("the leak is named", || match &daemon.leaks_of(server.pid)[..] {
        [leak] if leak["count"] == CONNECTIONS => Ok(leak.clone()),
        leaks => Err(format!("{leaks:?}")),
    });
    assert_eq!(leak["rule"], "close_wait_leak");
    assert_eq!(leak["process"], server_process);
    assert_eq!(leak["local"], end(SERVER, SERVER_PORT));
    assert_eq!(leak["remote"], json!({"addr": CLIENT, "port": null}));
    let (_, text) = daemon.get("/leaks");
    assert!(text.contains(&format!("docker {}", &server_id[..12])), "{text}");
    assert_eq!(daemon.leaks_of(client.pid), [] as [Value; 0], "the client");
}

/// Asserts the rows of the namespace, by state, role, both ends and process.
fn side_is(daemon: &Daemon, namespace: &Namespace, expected: &[Value]) {
    eventually("every row names the right process and container", || {
        let mut rows = daemon.connections_in(namespace);
        rows.sort_by_key(|row| (row["role"] != "listener", ports_of(row)));
        let seen: Vec<Value> = rows
            .iter()
            .map(|row| json!([row["state"], row["role"], row["local"], row["remote"], row["process"]]))
            .collect();
        if seen == expected { Ok(()) } else { Err(format!("{seen:#?}\nexpected: {expected:#?}")) }
    });
}

fn ports_of(row: &Value) -> [Option<u64>; 2] {
    [row["local"]["port"].as_u64(), row["remote"]["port"].as_u64()]
}

/// A node with the networks of two containers; a port of one is published.
struct Network {
    node: Namespace,
    client: Namespace,
    server: Namespace,
}

impl Network {
    fn new() -> Self {
        let (node, client, server) = (Namespace::new(), Namespace::new(), Namespace::new());
        for (device, of_node, of_container, container) in
            [("client", NODE_TO_CLIENT, CLIENT, &client), ("server", NODE_TO_SERVER, SERVER, &server)]
        {
            // Made inside, so that the machine's own namespace never has the devices.
            let peer = ["peer", "name", "eth0", "netns", &container.path()];
            node.run(&[&["ip", "link", "add", device, "type", "veth"], &peer[..]].concat());
            node.run(&["ip", "address", "add", &format!("{of_node}/24"), "dev", device]);
            node.run(&["ip", "link", "set", device, "up"]);
            container.run(&["ip", "address", "add", &format!("{of_container}/24"), "dev", "eth0"]);
            container.run(&["ip", "link", "set", "eth0", "up"]);
            container.run(&["ip", "route", "add", "default", "via", of_node]);
        }
        // /proc/sys/net shows each process the settings of its own network namespace.
        node.run(&["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]);
        node.run(&[
            "nft",
            &format!(
                "table ip published {{ chain in {{ type nat hook prerouting priority dstnat; \
                 ip daddr {NODE_TO_CLIENT} tcp dport {PUBLISHED_PORT} dnat to {SERVER}:{SERVER_PORT}; }}; }}"
            ),
        ]);
        Self { node, client, server }
    }
}

fn uuid() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().trim().to_owned()
}

fn container_id() -> String {
    (uuid() + &uuid()).replace('-', "")
}

/// A container that runs one Python program; removed when dropped.
struct Container {
    id: String,
    /// The pid outside the container, from runc.
    pid: u32,
    // Dropped in this order.
    workload: Workload,
    _cgroups: Cgroups,
    folder: Folder,
}

impl Container {
    fn start(network: &Namespace, cgroup: &str, id: &str, python_args: &[String]) -> Self {
        let folder = Folder(std::env::temp_dir().join(format!("tcpwatch-container-{id}")));
        fs::create_dir(&folder.0).unwrap();
        let root = folder.0.join("rootfs");
        fs::create_dir(&root).unwrap();
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]}),
        ];
        // Of the machine's files only the programs.
        for from in ["/usr", "/bin", "/lib", "/lib64"] {
            if let Ok(target) = fs::read_link(from) {
                std::os::unix::fs::symlink(target, root.join(&from[1..])).unwrap();
            } else if Path::new(from).exists() {
                mounts.push(json!({"destination": from, "source": from, "options": ["bind", "ro"]}));
            }
        }
        let args: Vec<&str> = ["python3"].into_iter().chain(python_args.iter().map(String::as_str)).collect();
        let config = json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs", "readonly": true},
            "mounts": mounts,
            "process": {
                "user": {"uid": 0, "gid": 0},
                "cwd": "/",
                "env": ["PATH=/usr/bin:/bin:/usr/local/bin"],
                "args": args,
            },
            "linux": {
                "cgroupsPath": cgroup,
                "namespaces": [
                    {"type": "pid"},
                    {"type": "mount"},
                    {"type": "ipc"},
                    {"type": "uts"},
                    {"type": "network", "path": network.path()},
                ],
            },
        });
        fs::write(folder.0.join("config.json"), config.to_string()).unwrap();
        let cgroups = Cgroups::of(cgroup);
        let workload = Workload::spawn(runc(&folder, "run").arg("--bundle").arg(&folder.0).arg(id)).unwrap();
        let mut container = Self { id: id.to_owned(), pid: 0, workload, _cgroups: cgroups, folder };
        container.pid = eventually("the container runs", || {
            let output = runc(&container.folder, "state").arg(id).output().unwrap();
            let state: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let pid = state["pid"].as_u64().filter(|_| state["status"] == "running");
            pid.map(|pid| pid as u32).ok_or_else(|| format!("{output:?}"))
        });
        container
    }

    fn exe(&self) -> PathBuf {
        fs::read_link(format!("/proc/{}/exe", self.pid)).unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // `runc run` ends with the container.
        let deleted = runc(&self.folder, "delete").args(["--force", &self.id]).status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("could not delete the container {}", self.id);
        }
    }
}

fn runc(folder: &Folder, command: &str) -> Command {
    let mut runc = Command::new("runc");
    runc.arg("--root").arg(folder.0.join("state")).arg(command);
    runc
}

/// A folder that is removed when dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_dir_all(&self.0) {
            eprintln!("could not remove {}: {err}", self.0.display());
        }
    }
}

/// The cgroups that a container creates: its own and the missing ones above it. Removed when dropped, after processes
/// in its own are killed: runc removes only the container's own, and nothing when it failed to start the container.
struct Cgroups {
    own: Vec<PathBuf>,
    above: Vec<PathBuf>,
}

impl Cgroups {
    fn of(path: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let hierarchies = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (folder, kind) = (fields.next()?, fields.next()?);
            kind.starts_with("cgroup").then_some(folder)
        });
        let own: Vec<PathBuf> = hierarchies.map(|hierarchy| Path::new(hierarchy).join(&path[1..])).collect();
        let above = |own: &PathBuf| {
            let new = own.ancestors().skip(1).take_while(|cgroup| !cgroup.exists());
            new.map(Path::to_owned).collect::<Vec<_>>()
        };
        let above = own.iter().flat_map(above).collect();
        Self { own, above }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for cgroup in &self.own {
            let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            for pid in processes.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        for cgroup in self.own.iter().chain(&self.above) {
            let deadline = Instant::now() + DEADLINE;
            // Busy until its last process is gone.
            while let Err(err) = fs::remove_dir(cgroup) {
                if err.kind() == ErrorKind::NotFound {
                    break;
                }
                if err.kind() != ErrorKind::ResourceBusy || Instant::now() > deadline {
                    eprintln!("could not remove the cgroup {}: {err}", cgroup.display());
                    break;
                }
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}
