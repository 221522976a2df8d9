//! A Go server behind a connection limiter: one idle client holds the only place, so requests hang while TCP health
//! probes succeed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::stage::{Program, Stage, listening, sockets};
use crate::namespace::Namespace;

/// Health probes, each of which connects and closes.
const PROBES: usize = 5;

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (sick, sound) = (stage.namespace("sick")?, stage.namespace("sound")?);
    let (limited, _held, probes) = server(stage, &sick, "1")?;
    let (twin, _twin_held, _twin_probes) = server(stage, &sound, "100")?;
    probes.says("done", Duration::from_secs(60))?;
    ensure!(probes.said("try")?.iter().all(|outcome| outcome == "ok"), "the probes: {}", probes.log()?);
    let hangs = ask(stage, &sick)?;
    ensure!(hangs == Some(28), "curl ends with {hangs:?}, not with a time-out");
    ensure!(ask(stage, &sound)? == Some(0), "the twin does not answer");
    stage.say(format_args!("{PROBES} of {PROBES} TCP probes succeed; a request hangs"));

    let listener = sockets(&sick, &["-tln", "sport", "=", ":8080"])?.join("\n");
    let queue: usize = listener
        .split_whitespace()
        .nth(1)
        .and_then(|queue| queue.parse().ok())
        .context("ss without Recv-Q")?;
    let gone = sockets(&sick, &["-tnp", "state", "close-wait", "sport", "=", ":8080"])?;
    ensure!(gone.iter().all(|line| !line.contains("pid=")), "ss knows who holds them: {gone:?}");
    ensure!(
        queue == PROBES + 1 && gone.len() == queue,
        "ss: {queue} in the queue, {} CLOSE_WAIT",
        gone.len()
    );
    stage.say(format_args!("ss: {queue} in the accept queue, all CLOSE_WAIT and without a pid"));

    let Some(watch) = stage.watch else { return Ok(()) };
    let wanted = |found: &super::watch::Finding| found.count == queue as u64;
    let found =
        watch.finding(stage, "unaccepted_connections", &[limited.pid()], Duration::from_secs(45), wanted)?;
    ensure!(found.peer() == ":8080", "it names {}", found.peer());
    watch.silent(stage, "the same server with room", &[twin.pid()])
}

/// The server, a client that keeps a connection, and probes.
fn server(stage: &Stage, inside: &Namespace, limit: &str) -> Result<(Program, Program, Program)> {
    let server = stage.start(inside, stage.software.program("limited"), [":8080", limit])?;
    listening(inside, 8080)?;
    let held = stage.python(
        inside,
        "client.py",
        ["browser", "127.0.0.1", "8080", "--keep", "1", "--connect-only"],
    )?;
    held.says("done", Duration::from_secs(10))?;
    let probes =
        ["prober", "127.0.0.1", "8080", "--connect-only", "--every", "1", "--tries", &PROBES.to_string()];
    Ok((server, held, stage.python(inside, "client.py", probes)?))
}

/// The exit code of curl.
fn ask(stage: &Stage, inside: &Namespace) -> Result<Option<i32>> {
    stage
        .start(inside, "curl", ["-sS", "-m", "2", "http://127.0.0.1:8080/"])?
        .exit_code(Duration::from_secs(10))
}
