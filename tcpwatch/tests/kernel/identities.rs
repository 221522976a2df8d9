//! Identities: who did something keeps the name and the executable that it had then, whatever it becomes later; and names
//! that are no text.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{daemon::Daemon, eventually::eventually, netns::Namespace, workload::Workload};

/// Accepts as many connections as it is asked to, and holds them.
const SERVER: &str = r#"
listener = listen("127.0.0.1")
say(port_of(listener))
conns = [listener.accept()[0] for _ in range(int(args[0]))]
order()
"#;

/// Opens a connection and closes it, opens another one, and becomes the program `args[1]`, which is python3 too.
const BECOMES: &str = r#"
connect("127.0.0.1", args[0]).close()
conn = connect("127.0.0.1", args[0])
os.set_inheritable(conn.fileno(), True)
say(port_of(conn))
order()
os.execv(args[1], [args[1], "-c", "import sys; sys.stdin.readline()"])
"#;

/// Executables under names of their own.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tcpwatch-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A copy of a program. Another process makes it: what this one has open for writing, nobody may run.
    fn copy(&self, program: &Path, name: &str) -> String {
        let path = self.0.join(name);
        assert!(Command::new("cp").arg(program).arg(&path).status().unwrap().success());
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn python3() -> PathBuf {
    fs::canonicalize("/usr/bin/python3").unwrap()
}

fn executable(pid: u32) -> String {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap().to_str().unwrap().to_owned()
}

/// Whether the connection has this local port.
fn is_at(row: &Value, port: &str) -> bool {
    row["local"]["port"].as_u64() == port.parse().ok()
}

/// The row of the connection with this local port.
fn row_of(daemon: &Daemon, namespace: &Namespace, port: &str) -> Result<Value, String> {
    let rows = daemon.connections_in(namespace);
    let found = rows.iter().find(|row| is_at(row, port) && row["role"] == "client");
    found.map(|row| daemon.detail(row)).ok_or(format!("{rows:?}"))
}

/// Details of the process's connections: those of now, with orphans and minisocks, and those that ended.
fn all_of(daemon: &Daemon, namespace: &Namespace, pid: u32) -> Vec<Value> {
    let now = daemon.connections_in(namespace).into_iter();
    let now = now.filter(|row| row["role"] == "client" && row["process"]["pid"] == pid);
    let ended = daemon.json(&format!("/history?pid={pid}&role=client"))["connections"].clone();
    now.map(|row| daemon.detail(&row)).chain(ended.as_array().unwrap().iter().cloned()).collect()
}

/// Name and executable of who opened, held and closed a connection.
fn named(connection: &Value) -> [[Value; 2]; 3] {
    ["opener", "process", "closer"].map(|who| ["comm", "exe"].map(|what| connection[who][what].clone()))
}

/// The same. Where the process called exec before the daemon had read its executable, that is `null`, never the later one.
fn named_in_time(connection: &Value, asked: Asked, executable: &str) -> [[Value; 2]; 3] {
    named(connection).map(|[comm, exe]| match (&comm, &exe) {
        (Value::String(_), Value::Null) if asked == Asked::AtTheEnd => [comm, json!(executable)],
        _ => [comm, exe],
    })
}

/// When the daemon is asked for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    BeforeExec,
    AtTheEnd,
    /// The daemon itself is started between connect and exec.
    StartedBetween,
}

#[test]
fn what_a_process_did_before_an_exec_is_not_renamed_by_it() {
    let folder = Folder::new("becomes");
    // The second keeps the name of what it was before.
    for (before, after) in [("dialer", "sleeper"), ("dialer", "dialer")] {
        let program = folder.copy(&python3(), after);
        for asked in [Asked::BeforeExec, Asked::AtTheEnd, Asked::StartedBetween] {
            let context = format!("{before} becomes {after}, {asked:?}");
            let between = asked == Asked::StartedBetween;
            let early = (!between).then(|| Daemon::start(&[]));
            let namespace = Namespace::new();
            let mut server = Workload::start(&namespace, "holds", SERVER, &["2"]);
            let server_port = server.hear();
            let mut client = Workload::start(&namespace, before, BECOMES, &[&server_port, &program]);
            let port = client.hear();
            let python = executable(client.pid());
            let daemon = early.unwrap_or_else(|| Daemon::start(&[]));

            let old = [json!(before), json!(python)];
            let new = [json!(after), json!(program)];
            let nobody = [Value::Null, Value::Null];
            let opener = if between { nobody.clone() } else { old.clone() };
            if asked == Asked::BeforeExec {
                let row = row_of(&daemon, &namespace, &port).unwrap();
                assert_eq!(named(&row), [old.clone(), old.clone(), nobody.clone()], "{context}: {row}");
            }
            client.order();
            eventually("the program runs", || {
                let now = executable(client.pid());
                if now == program { Ok(()) } else { Err(now) }
            });
            let row = eventually("the holder is what the process is now", || {
                let row = row_of(&daemon, &namespace, &port)?;
                if row["process"]["exe"] == program { Ok(row) } else { Err(row.to_string()) }
            });
            let found = named_in_time(&row, asked, &python);
            assert_eq!(found, [opener.clone(), new.clone(), nobody.clone()], "{context}: {row}");
            for process in [&row["opener"], &row["process"]].into_iter().filter(|who| who.is_object()) {
                assert_eq!(process["pid"], client.pid(), "{context}: {row}");
            }
            let pid = client.pid();
            drop(client);
            let closed = eventually("both connections are closed", || {
                let rows = all_of(&daemon, &namespace, pid);
                let all = if between { 1 } else { 2 };
                let closed = rows.iter().filter(|row| row["closer"].is_object()).cloned();
                let closed: Vec<Value> = closed.filter(|row| !between || is_at(row, &port)).collect();
                if closed.len() == all { Ok(closed) } else { Err(format!("{rows:?}")) }
            });
            for row in &closed {
                let expected = if is_at(row, &port) {
                    [opener.clone(), new.clone(), new.clone()]
                } else {
                    [old.clone(), old.clone(), old.clone()]
                };
                assert_eq!(named_in_time(row, asked, &python), expected, "{context}: {row}");
            }
        }
    }
}

/// Opens a connection under one name, takes another, and closes it.
const RENAMED: &str = r#"
def called(name):
    open("/proc/self/comm", "w").write(name)

for _ in range(3):
    called("ping")
    conn = connect("127.0.0.1", args[0])
    called("pong")
    conn.close()
called("ping")
conn = connect("127.0.0.1", args[0])
called("pong")
say(port_of(conn))
order()
"#;

#[test]
fn a_process_that_renames_itself_is_named_as_it_was_called_then() {
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut server = Workload::start(&namespace, "holds", SERVER, &["4"]);
    let server_port = server.hear();
    let mut client = Workload::start(&namespace, "ping", RENAMED, &[&server_port]);
    let port = client.hear();
    let row = eventually("the holder is called as it is now", || {
        let row = row_of(&daemon, &namespace, &port)?;
        if row["process"]["comm"] == "pong" { Ok(row) } else { Err(row.to_string()) }
    });
    assert_eq!(row["opener"]["comm"], "ping", "{row}");
    assert_eq!(row["process"]["exe"], executable(client.pid()));
    let all = all_of(&daemon, &namespace, client.pid());
    let closed: Vec<_> = all.iter().filter(|row| !is_at(row, &port)).collect();
    assert_eq!(closed.len(), 3, "{closed:?}");
    for row in closed {
        let names = ["opener", "process", "closer"].map(|who| row[who]["comm"].clone());
        assert_eq!(names, [json!("ping"), json!("pong"), json!("pong")], "{row}");
    }
}

const DIALS: &str = r#"
say("runs")
order()
conn = connect("127.0.0.1", args[0])
say(port_of(conn))
order()
"#;

/// The executable is deleted, or called as if it were.
#[test]
fn a_deleted_executable_is_not_one_that_is_called_so() {
    let folder = Folder::new("deleted");
    let python = python3();
    let start = |namespace: &Namespace, program: &str, port: &str| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", namespace.path())).arg(program);
        command.args(crate::workload::python_args("dials", DIALS, &[port]));
        Workload::spawn(&mut command).unwrap()
    };
    // Whether the daemon runs before they dial, or is started afterwards.
    for before in [false, true] {
        let early = before.then(|| Daemon::start(&[]));
        let namespace = Namespace::new();
        let mut server = Workload::start(&namespace, "holds", SERVER, &["2"]);
        let server_port = server.hear();
        let [deleted, called] = ["srv", "srv (deleted)"].map(|name| folder.copy(&python, name));
        let mut clients = [&deleted, &called].map(|program| start(&namespace, program, &server_port));
        assert_eq!(clients.each_mut().map(Workload::hear), ["runs", "runs"]);
        fs::remove_file(&deleted).unwrap();
        let ports = clients.each_mut().map(Workload::ask);
        let daemon = early.unwrap_or_else(|| Daemon::start(&[]));
        if before {
            // Like an upgrade under way: this one was there when it was first looked at.
            fs::remove_file(&called).unwrap();
            eventually("what is deleted later is seen to be", || {
                let row = row_of(&daemon, &namespace, &ports[1])?;
                if row["process"]["exe_deleted"] == true { Ok(()) } else { Err(row.to_string()) }
            });
        }
        for ((port, path), is_deleted) in ports.iter().zip([&deleted, &called]).zip([true, before]) {
            let row = row_of(&daemon, &namespace, port).unwrap();
            let process = &row["process"];
            assert_eq!(
                (&process["exe"], &process["exe_deleted"]),
                (&json!(path), &json!(is_deleted)),
                "{row}"
            );
            let (_, text) = daemon.get(&format!("/connections/{}", row["id"].as_str().unwrap()));
            let marker = if is_deleted { " deleted" } else { "" };
            let shown = format!("(pid {}){marker} {path}\n", process["pid"]);
            assert!(text.contains(&shown), "{shown}: {text}");
        }
    }
}

/// Names itself by the bytes of `args[1]`, which are in hexadecimal, and dials.
const CALLED: &str = r#"
import ctypes
ctypes.CDLL(None).prctl(15, bytes.fromhex(args[1]) + b"\0")
conn = connect("127.0.0.1", args[0])
say(port_of(conn))
order()
"#;

#[test]
fn names_that_are_no_text_are_the_same_in_all_answers_and_never_mixed() {
    let names: [&[u8]; 8] =
        [b"", b"\xff\xfe", b"\xff\xfd", br"\xff\xfe", b"two\nlines", b"~other", b"\x1b[31mred", b"~unknown"];
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut server = Workload::start(&namespace, "holds", SERVER, &["8"]);
    let server_port = server.hear();
    let mut clients = names.map(|name| {
        let hex: Vec<String> = name.iter().map(|byte| format!("{byte:02x}")).collect();
        let hex = hex.concat();
        Workload::start(&namespace, "called", CALLED, &[&server_port, &hex])
    });
    let ports = clients.each_mut().map(Workload::hear);
    // Reading them fails where a series is there twice.
    let metrics = daemon.metrics();
    let mut texts: Vec<String> = Vec::new();
    for (client, port) in clients.iter().zip(&ports) {
        let row = row_of(&daemon, &namespace, port).unwrap();
        assert_eq!(row["process"]["pid"], client.pid());
        let text = row["process"]["comm"].as_str().unwrap();
        assert_eq!(row["opener"]["comm"], text);
        let peer = format!("127.0.0.1:{server_port}");
        let opened = metrics.sum(
            "tcpwatch_connections_opened_total",
            &[("process", text), ("role", "client"), ("peer", &peer)],
        );
        assert_eq!(opened, Some(1), "{text:?}");
        let query = form_urlencoded::Serializer::new(String::new()).append_pair("comm", text).finish();
        let found = daemon.json(&format!("/processes?{query}"));
        assert_eq!(found["processes"][0]["instances"][0]["pid"], client.pid(), "{query}: {found}");
        let (_, table) = daemon.get(&format!("/connections?{query}&role=client"));
        assert!(table.contains(&format!("  {text}  ")), "{text:?}: {table}");
        assert!(!table.chars().any(|c| c.is_control() && !"\r\n".contains(c)), "{table:?}");
        texts.push(text.to_owned());
    }
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), names.len(), "{texts:?}");
}
