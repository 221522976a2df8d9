//! A process that has taken all ephemeral ports toward one destination.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Program, Stage, listening, printed, sockets};
use crate::namespace::Namespace;

/// Size of the namespaces' port range.
const PORTS: usize = 20;
const TRIES: usize = 26;

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (sick, sound) = (stage.namespace("sick")?, stage.namespace("sound")?);
    let (shipper, _server) = client(stage, &sick, TRIES)?;
    let (twin, _twin_server) = client(stage, &sound, PORTS / 2)?;
    for program in [&shipper, &twin] {
        program.says("done", Duration::from_secs(60))?;
    }
    let failed = shipper.said("try")?.iter().filter(|outcome| *outcome == "EADDRNOTAVAIL").count();
    ensure!(failed == TRIES - PORTS, "{failed} of {TRIES} connects fail: {}", shipper.log()?);
    ensure!(twin.said("try")?.iter().all(|outcome| outcome == "ok"), "the twin: {}", twin.log()?);
    stage.say(format_args!("{failed} connects of shipper: EADDRNOTAVAIL, Cannot assign requested address"));

    let used = sockets(&sick, &["-tan", "dport", "=", ":9092"])?.len();
    ensure!(used == PORTS, "ss counts {used}");
    stage
        .say(format_args!("ss: {used} connections to 127.0.0.1:9092; ip_local_port_range has {PORTS} ports"));

    let Some(watch) = stage.watch else { return Ok(()) };
    let found =
        watch.finding(stage, "port_exhaustion", &[shipper.pid()], Duration::from_secs(15), |_| true)?;
    ensure!(found.severity == "critical", "it is {}", found.severity);
    ensure!(found.peer() == "127.0.0.1:9092", "it names {}", found.peer());
    let (told, of) = (found.counted("ports_in_use")?, found.counted("ports_available")?);
    ensure!(told == used as u64 && of == PORTS as u64, "it says {told} of {of}");
    watch.silent(stage, "the same client with free ports", &[twin.pid()])
}

fn client(stage: &Stage, inside: &Namespace, tries: usize) -> Result<(Program, Program)> {
    printed(inside, &["sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40019"])?;
    let server = stage.python(inside, "server.py", ["broker", "9092"])?;
    listening(inside, 9092)?;
    let tries = tries.to_string();
    let options = ["shipper", "127.0.0.1", "9092", "--tries", &tries, "--keep", &tries, "--every", "0.2"];
    Ok((stage.python(inside, "client.py", options)?, server))
}
