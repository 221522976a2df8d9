//! The OpenAPI document against a live daemon: schemathesis asks whatever the document allows, and what it does not, and
//! finds no answer that the document does not describe.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::{daemon::Daemon, netns::Namespace, workload::Workload};

/// Connections in all roles: a listener, a client and a server that carried data, and some that ended.
const TRAFFIC: &str = r#"
listener = socket.create_server(("127.0.0.1", 0))
def connect():
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    client.sendall(b"question")
    server.recv(100)
    server.sendall(b"answer")
    client.recv(100)
    return client, server
kept = [connect() for _ in range(5)]
for _ in range(5):
    client, server = connect()
    client.close()
    server.close()
say("connected")
while True:
    order()
    client, server = connect()
    client.close()
    server.close()
    say("connected")
"#;

/// The hooks, which are a program too.
const HOOKS: &str = "tests/kernel/schemathesis.py";

/// The folder with the programs of schemathesis' virtual environment; none where it is not installed.
fn schemathesis() -> Option<PathBuf> {
    let bin = std::env::var_os("SCHEMATHESIS").map(PathBuf::from);
    if bin.is_none() {
        println!(
            "SKIPPED: SCHEMATHESIS does not name the programs of schemathesis; `cargo xtask test` installs them"
        );
    }
    bin
}

/// Lets no object have fields that the document does not name.
fn close_objects(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("properties").is_some_and(Value::is_object) {
                fields.entry("unevaluatedProperties").or_insert(json!(false));
            }
            fields.values_mut().for_each(close_objects);
        }
        Value::Array(elements) => elements.iter_mut().for_each(close_objects),
        _ => {}
    }
}

/// The daemon's document with all objects closed, in a file that goes when this is dropped.
struct Document(PathBuf);

impl Document {
    fn of(daemon: &Daemon) -> Self {
        let mut document = daemon.json("/openapi.json");
        close_objects(&mut document["components"]["schemas"]);
        let file = std::env::temp_dir().join(format!("tcpwatch-openapi-{}.json", daemon.pid()));
        std::fs::write(&file, document.to_string()).unwrap();
        Self(file)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Document {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Ids of connections that live, and of some that ended.
fn ids(daemon: &Daemon) -> String {
    let ids = ["/connections", "/history"].map(|path| {
        let answer = daemon.json(&format!("{path}?comm=traffic"));
        let rows = answer["connections"].as_array().unwrap().iter();
        rows.map(|row| row["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    });
    assert!(ids.iter().all(|ids| !ids.is_empty()), "{ids:?}");
    ids.concat().join(",")
}

fn run(bin: &Path, document: &Document, daemon: &Daemon, options: &[&str]) {
    let mut command = Command::new(bin.join("schemathesis"));
    command
        .args(["run", document.path(), "--url", &format!("http://{}", daemon.address)])
        .args(["--checks", "all", "--continue-on-failure", "--request-timeout", "10", "--seed", "18"])
        .args(["--generation-database", "none", "--no-color"])
        .args(options)
        .env("SCHEMATHESIS_HOOKS", HOOKS)
        .env("TCPWATCH_IDS", ids(daemon))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let output = command.output().expect("to start schemathesis");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    assert!(output.status.success(), "schemathesis found an answer that the document does not describe");
}

#[test]
fn no_answer_is_other_than_the_document_says() {
    let Some(bin) = schemathesis() else { return };
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let mut traffic = Workload::start(&namespace, "traffic", TRAFFIC, &[]);
    assert_eq!(traffic.hear(), "connected");
    let document = Document::of(&daemon);
    run(&bin, &document, &daemon, &["--exclude-path", "/events", "--max-examples", "40", "--max-time", "45"]);
    // A stream that lasts is no answer to wait for; wrong questions are answered at once.
    run(
        &bin,
        &document,
        &daemon,
        // No link leads to or from it, which the phase that follows links calls an error.
        &[
            "--include-path",
            "/events",
            "--mode",
            "negative",
            "--max-examples",
            "40",
            "--phases",
            "coverage,fuzzing",
        ],
    );
}

#[test]
fn each_event_is_what_the_document_says() {
    let Some(bin) = schemathesis() else { return };
    let daemon = Daemon::start(&[]);
    let namespace = Namespace::new();
    let document = Document::of(&daemon);
    let mut traffic = Workload::start(&namespace, "traffic", TRAFFIC, &[]);
    assert_eq!(traffic.hear(), "connected");
    let mut checking = Command::new(bin.join("python"))
        .args([HOOKS, document.path(), &format!("http://{}", daemon.address)])
        .stdout(Stdio::piped())
        .spawn()
        .expect("to start the program that checks");
    let mut lines = BufReader::new(checking.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert_eq!(lines.next().as_deref(), Some("listening"));
    let mut valid = 0;
    while valid < 20 {
        assert_eq!(traffic.ask(), "connected");
        match lines.next().as_deref() {
            Some("valid") => valid += 1,
            other => panic!("{other:?} after {valid} valid events"),
        }
    }
    checking.kill().unwrap();
    checking.wait().unwrap();
}
