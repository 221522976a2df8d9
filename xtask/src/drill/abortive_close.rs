//! A server that closes with unread data: its clients see "connection reset by peer".

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Program, Stage, counter, listening};
use crate::namespace::Namespace;

const TRIES: usize = 12;

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (sick, sound) = (stage.namespace("sick")?, stage.namespace("sound")?);
    let (server, clients) = uploads(stage, &sick, "hasty")?;
    let (twin, twin_clients) = uploads(stage, &sound, "polite")?;
    // A health check that closes with a reset throws nothing away.
    let tries = TRIES.to_string();
    let _checked = stage.python(&sound, "server.py", ["web", "8081"])?;
    listening(&sound, 8081)?;
    let options =
        ["check", "127.0.0.1", "8081", "--connect-only", "--linger0", "--tries", &tries, "--every", "0.5"];
    let check = stage.python(&sound, "client.py", options)?;
    for program in [&clients, &twin_clients, &check] {
        program.says("done", Duration::from_secs(60))?;
    }
    let reset = clients.said("try")?.iter().filter(|outcome| *outcome == "ECONNRESET").count();
    ensure!(reset == TRIES, "{reset} of {TRIES} uploads are reset: {}", clients.log()?);
    let polite = twin_clients.said("try")?;
    ensure!(polite.iter().all(|outcome| outcome == "stored"), "the twin: {polite:?}");
    let sent = counter(&sick, "TcpExtTCPAbortOnClose")?;
    ensure!(sent == TRIES as u64, "nstat counts {sent}");
    stage.say(format_args!("{reset} of {TRIES} uploads: ECONNRESET; nstat: TcpExtTCPAbortOnClose {sent}"));

    let Some(watch) = stage.watch else { return Ok(()) };
    let found =
        watch.finding(stage, "abortive_close", &[server.pid()], Duration::from_secs(15), |found| {
            found.count == sent
        })?;
    ensure!(found.who.process.as_deref() == Some("intake"), "it names {:?}", found.who.process);
    ensure!(found.peer() == ":8080", "it names {}", found.peer());
    watch.silent(stage, "the server that reads first, and a health check", &[twin.pid(), check.pid()])
}

fn uploads(stage: &Stage, inside: &Namespace, how: &str) -> Result<(Program, Program)> {
    let server = stage.python(inside, "uploads.py", ["intake", "8080", how])?;
    listening(inside, 8080)?;
    let clients =
        stage.python(inside, "uploader.py", ["uploader", "127.0.0.1", "8080", &TRIES.to_string()])?;
    Ok((server, clients))
}
