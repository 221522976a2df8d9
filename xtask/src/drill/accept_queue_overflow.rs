//! A server with a backlog of one that does not accept: connects time out now and then.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Program, Stage, counter, listening, until};
use crate::namespace::Namespace;

const CLIENTS: usize = 10;

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (sick, sound) = (stage.namespace("sick")?, stage.namespace("sound")?);
    let server = stage.python(&sick, "server.py", ["uploads", "8080", "--backlog", "1", "--deaf"])?;
    let twin = stage.python(&sound, "server.py", ["uploads", "8080"])?;
    let clients = [clients(stage, &sick)?, clients(stage, &sound)?];
    for client in clients.iter().flatten() {
        client.says("done", Duration::from_secs(60))?;
    }
    let count = |clients: &[Program], wanted: &str| -> Result<usize> {
        let outcomes = clients.iter().map(|client| client.said("try")).collect::<Result<Vec<_>>>()?;
        Ok(outcomes.into_iter().flatten().filter(|outcome| outcome == wanted).count())
    };
    // The queue has room for one more than the backlog.
    let failed = count(&clients[0], "timeout")?;
    ensure!(failed == CLIENTS - 2, "{failed} of {CLIENTS} connects time out");
    ensure!(count(&clients[1], "ok")? == CLIENTS, "the twin does not answer");
    stage.say(format_args!("{failed} of {CLIENTS} connects time out"));

    // The last repeated SYNs were sent before their clients gave up.
    let overflows = counter(&sick, "TcpExtListenOverflows")?;
    ensure!(overflows >= failed as u64, "nstat counts {overflows}");
    stage.say(format_args!("nstat: TcpExtListenOverflows {overflows}"));

    let Some(watch) = stage.watch else { return Ok(()) };
    let found =
        watch.finding(stage, "accept_queue_overflow", &[server.pid()], Duration::from_secs(30), |_| true)?;
    until("it counts what the kernel counts", Duration::from_secs(15), || {
        let (now, told) = (counter(&sick, "TcpExtListenOverflows")?, watch.by_id(&found.id)?);
        let counted = told.counted("overflows")?;
        Ok(if counted == now { Ok(()) } else { Err(format!("{counted} and {now}")) })
    })?;
    watch.silent(stage, "the same server that accepts", &[twin.pid()])
}

fn clients(stage: &Stage, inside: &Namespace) -> Result<Vec<Program>> {
    listening(inside, 8080)?;
    let options = ["uploader", "127.0.0.1", "8080", "--timeout", "4", "--keep", "1", "--connect-only"];
    (0..CLIENTS).map(|_| stage.python(inside, "client.py", options)).collect()
}
