//! Connects that are refused, that nobody answers, and a service of which one of four backends is dead.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Program, Stage, listening, printed};
use crate::namespace::Namespace;

const TRIES: usize = 24;

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (client, server) = (stage.namespace("client")?, stage.namespace("server")?);
    client.join(&server, "veth0", "10.98.0.1", "10.98.0.2")?;
    let _server = stage.python(&server, "server.py", ["backend", "9000"])?;
    listening(&server, 9000)?;
    service(&client)?;
    printed(&server, &["iptables", "-A", "INPUT", "-p", "tcp", "--dport", "9002", "-j", "DROP"])?;

    let refused = calls(stage, &client, "checkout", "10.98.0.2", "9001")?;
    let unanswered = calls(stage, &client, "ledger", "10.98.0.2", "9002")?;
    let flapping = calls(stage, &client, "gateway", "10.98.1.1", "80")?;
    let twin = calls(stage, &client, "catalog", "10.98.0.2", "9000")?;
    for (program, outcome, times) in [
        (&refused, "ECONNREFUSED", TRIES),
        (&unanswered, "timeout", TRIES),
        (&flapping, "ECONNREFUSED", TRIES / 4),
        (&twin, "ok", TRIES),
    ] {
        program.says("done", Duration::from_secs(90))?;
        let seen = program.said("try")?.iter().filter(|seen| *seen == outcome).count();
        ensure!(seen == times, "{seen} of {TRIES} are {outcome}, not {times}: {}", program.log()?);
    }
    stage.say(format_args!(
        "of {TRIES} connects each: checkout {TRIES} refused, ledger {TRIES} time out, gateway {} refused",
        TRIES / 4
    ));

    let Some(watch) = stage.watch else { return Ok(()) };
    for (program, name, failed) in
        [(&refused, "checkout", TRIES), (&unanswered, "ledger", TRIES), (&flapping, "gateway", TRIES / 4)]
    {
        let found =
            watch.finding(stage, "connect_failures", &[program.pid()], Duration::from_secs(30), |found| {
                found.number("attempts").is_ok_and(|attempts| attempts as usize == TRIES)
            })?;
        ensure!(found.who.process.as_deref() == Some(name), "it names {:?}", found.who.process);
        let told = found.number("failed_percent")?;
        let truth = 100.0 * failed as f64 / TRIES as f64;
        ensure!((told - truth).abs() < 1.0, "{name}: it says {told} %, the client's log {truth} %");
    }
    watch.silent(stage, "catalog, whose server is there", &[twin.pid()])
}

/// 10.98.1.1:80 is, in turn, one of four backends of which one is not there, as kube-proxy does it.
fn service(client: &Namespace) -> Result<()> {
    for (number, port) in [(4, 9001), (3, 9000), (2, 9000), (1, 9000)] {
        let to = format!("10.98.0.2:{port}");
        let every = number.to_string();
        let mut rule =
            vec!["iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", "10.98.1.1", "--dport", "80"];
        if number > 1 {
            rule.extend(["-m", "statistic", "--mode", "nth", "--every", &every, "--packet", "0"]);
        }
        rule.extend(["-j", "DNAT", "--to-destination", &to]);
        printed(client, &rule)?;
    }
    client.ip(&["route", "add", "10.98.1.1/32", "via", "10.98.0.2"])?;
    Ok(())
}

fn calls(stage: &Stage, inside: &Namespace, name: &str, host: &str, port: &str) -> Result<Program> {
    let tries = TRIES.to_string();
    stage.python(
        inside,
        "client.py",
        [name, host, port, "--tries", &tries, "--every", "1.5", "--timeout", "1.2"],
    )
}
