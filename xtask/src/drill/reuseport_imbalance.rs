//! Two processes listen on one port by SO_REUSEPORT, and one of them hangs: half of the calls do.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::stage::{Program, Stage, sockets, until};
use crate::namespace::Namespace;

const CALLS: usize = 30;

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (sick, sound) = (stage.namespace("sick")?, stage.namespace("sound")?);
    let workers = pair(stage, &sick)?;
    let twins = pair(stage, &sound)?;
    workers[0].signal(Signal::SIGSTOP)?;
    let (calls, twin) = (calls(stage, &sick)?, calls(stage, &sound)?);
    for program in [&calls, &twin] {
        program.says("done", Duration::from_secs(60))?;
    }
    let hang = calls.said("try")?.iter().filter(|outcome| *outcome == "timeout").count();
    ensure!((1..CALLS).contains(&hang), "{hang} of {CALLS} calls hang");
    ensure!(twin.said("try")?.iter().all(|outcome| outcome == "ok"), "the twin: {}", twin.log()?);
    stage.say(format_args!("{hang} of {CALLS} calls hang"));

    let listeners = sockets(&sick, &["-tlnp", "sport", "=", ":8080"])?;
    let queue = |pid: u32| {
        let line = listeners.iter().find(|line| line.contains(&format!("pid={pid},")));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok())
    };
    ensure!(queue(workers[0].pid()) == Some(hang) && queue(workers[1].pid()) == Some(0), "ss: {listeners:?}");
    stage.say(format_args!("ss: {hang} in the accept queue of pid {}, none in the other", workers[0].pid()));

    let Some(watch) = stage.watch else { return Ok(()) };
    let found =
        watch
            .finding(stage, "reuseport_imbalance", &[workers[0].pid()], Duration::from_secs(30), |_| true)?;
    ensure!(found.peer() == ":8080", "it names {}", found.peer());
    watch.silent(stage, "two workers that accept", &[twins[0].pid(), twins[1].pid()])
}

fn pair(stage: &Stage, inside: &Namespace) -> Result<[Program; 2]> {
    let worker = || stage.python(inside, "server.py", ["worker", "8080", "--reuse-port"]);
    let pair = [worker()?, worker()?];
    until("both listen", Duration::from_secs(20), || {
        let listeners = sockets(inside, &["-tln", "sport", "=", ":8080"])?.len();
        Ok(if listeners == 2 { Ok(()) } else { Err(listeners.to_string()) })
    })?;
    Ok(pair)
}

fn calls(stage: &Stage, inside: &Namespace) -> Result<Program> {
    let calls = CALLS.to_string();
    let options = ["caller", "127.0.0.1", "8080", "--tries", &calls, "--timeout", "0.5"];
    // They stay in the queue: what gave up would be named for itself.
    stage.python(inside, "client.py", [&options[..], &["--keep", &calls]].concat())
}
