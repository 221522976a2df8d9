//! `tcpwatch trace`: the transitions of a running tcpwatch, line by line.

use std::io::{self, Write};

use anyhow::{Context as _, bail};

use serde::Deserialize;

use crate::{
    cli::{client, options::TraceArgs},
    http::printable,
    model::{
        address::Address,
        interfaces::{Interface, local_text, remote_text},
    },
};

/// What a line of text shows of a transition (see `model/transition.rs`).
#[derive(Debug, Deserialize)]
struct Transition {
    at: String,
    process: Option<Process>,
    role: String,
    from: String,
    to: String,
    from_seconds: Option<f64>,
    cause: String,
    local: Address,
    remote: Address,
    interface: Option<Interface>,
}

#[derive(Debug, Deserialize)]
struct Process {
    pid: u32,
    comm: String,
}

/// Prints until the daemon or the reader of the output goes away.
///
/// # Errors
/// When no tcpwatch answers, or it refuses the filters.
pub fn run(args: &TraceArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let mut answer = client::get(&args.connect, &format!("/events?{}", query(args)))?;
    if !answer.status.is_success() {
        let reason = answer.line().transpose()?.unwrap_or_else(|| answer.status.to_string());
        bail!("{}", printable(reason.trim_end()));
    }
    if !args.json {
        writeln!(out, "{}", header())?;
    }
    let mut event = String::new();
    while let Some(line) = answer.line() {
        let line = line.context("the connection to tcpwatch broke")?;
        if let Some(kind) = line.strip_prefix("event: ") {
            kind.clone_into(&mut event);
        } else if let Some(data) = line.strip_prefix("data: ") {
            match show(&std::mem::take(&mut event), data, args.json, out) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                result => result?,
            }
        }
    }
    Ok(())
}

fn query(args: &TraceArgs) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    let mut add = |name, value: Option<String>| {
        if let Some(value) = value {
            query.append_pair(name, &value);
        }
    };
    add("state", args.state.map(|state| state.to_string()));
    add("pid", args.pid.map(|pid| pid.to_string()));
    add("comm", args.comm.clone());
    add("local_port", args.local_port.map(|port| port.to_string()));
    add("remote_port", args.remote_port.map(|port| port.to_string()));
    add("remote", args.remote.clone());
    add("interface", args.interface.clone());
    add("role", args.role.map(|role| role.to_string()));
    query.finish()
}

fn header() -> String {
    format!(
        "{:<27} {:>7} {:<15} {:<8} {:<27} {:>9} {:<11} {} -> {}",
        "TIME", "PID", "PROCESS", "ROLE", "FROM -> TO", "AFTER", "BY", "LOCAL", "REMOTE"
    )
}

fn show(event: &str, data: &str, json: bool, out: &mut impl Write) -> io::Result<()> {
    if event == "missed" {
        let count = printable(data);
        eprintln!("tcpwatch: {count} transitions missed: they came faster than they could be printed");
        return Ok(());
    }
    if json {
        writeln!(out, "{data}")?;
        return out.flush();
    }
    let transition: Transition = serde_json::from_str(data)?;
    let (process, dash) = (transition.process.as_ref(), || "-".to_owned());
    let interface = transition.interface.as_ref();
    writeln!(
        out,
        "{:<27} {:>7} {:<15} {:<8} {:<27} {:>9} {:<11} {} -> {}",
        transition.at,
        process.map_or_else(dash, |process| process.pid.to_string()),
        process.map_or_else(dash, |process| printable(&process.comm)),
        transition.role,
        format!("{} -> {}", transition.from, transition.to),
        transition.from_seconds.map_or_else(dash, |seconds| format!("{seconds:.6}")),
        transition.cause,
        printable(&local_text(transition.local, interface)),
        printable(&remote_text(transition.remote, interface)),
    )?;
    out.flush()
}
