//! The network's alibi: asked about clean traffic tcpwatch clears it, asked about a path with loss it does not.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{
    stage::{Program, Stage, counter, listening, printed},
    watch::Watch,
};
use crate::namespace::Namespace;

/// More than the 300 segments each way that an answer needs.
const CALLS: usize = 500;

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (clean, lossy, server) =
        (stage.namespace("clean")?, stage.namespace("lossy")?, stage.namespace("server")?);
    clean.join(&server, "veth0", "10.98.0.1", "10.98.0.2")?;
    lossy.join(&server, "veth1", "10.98.1.1", "10.98.1.2")?;
    let _server = stage.python(&server, "server.py", ["parser", "9000"])?;
    listening(&server, 9000)?;
    // Of the segments with data.
    let data = ["-p", "tcp", "-m", "length", "--length", "53:65535"];
    let one_of_40 = ["-m", "statistic", "--mode", "nth", "--every", "40", "--packet", "0", "-j", "DROP"];
    let rule = ["iptables", "-A", "INPUT", "-d", "10.98.1.2"];
    printed(&server, &[&rule[..], &data, &one_of_40].concat())?;
    let (reader, unlucky) =
        (calls(stage, &clean, "importer", "10.98.0.2")?, calls(stage, &lossy, "exporter", "10.98.1.2")?);
    for program in [&reader, &unlucky] {
        program.says("done", Duration::from_secs(100))?;
        ensure!(program.said("try")?.iter().all(|outcome| outcome == "ok"), "{}", program.log()?);
    }
    let repeated = (counter(&clean, "TcpRetransSegs")?, counter(&lossy, "TcpRetransSegs")?);
    ensure!(repeated.1 >= CALLS as u64 / 40, "nstat counts {repeated:?} retransmits");
    stage.say(format_args!(
        "nstat: TcpRetransSegs {} on the clean path, {} on the other",
        repeated.0, repeated.1
    ));

    let Some(watch) = stage.watch else { return Ok(()) };
    for (name, peer, repeated, wanted) in [
        ("importer", "10.98.0.2:9000", repeated.0, "cleared"),
        ("exporter", "10.98.1.2:9000", repeated.1, "not_cleared"),
    ] {
        let (verdict, told) = ask(watch, name, peer)?;
        // The kernel repeats a segment in vain now and then: the alibi says that, too.
        let excused = wanted == "cleared" && repeated > 0 && verdict != "cannot_tell";
        ensure!(verdict == wanted || excused, "{peer}: {verdict}, {repeated} retransmits");
        ensure!(told == repeated, "{peer}: it counts {told} retransmits, nstat {repeated}");
        stage.say(format_args!("tcpwatch: {peer} {verdict}, {told} retransmits"));
    }
    Ok(())
}

/// The verdict on the network between the processes of a name and a peer, and how many segments were sent again.
fn ask(watch: &Watch, name: &str, peer: &str) -> Result<(String, u64)> {
    let answer = watch.json(&format!("/network?comm={name}&peer={peer}"))?;
    let verdict = answer["verdict"].as_str().context("an answer without a verdict")?;
    Ok((verdict.to_owned(), answer["retransmitted"].as_u64().context("an answer without retransmits")?))
}

fn calls(stage: &Stage, inside: &Namespace, name: &str, host: &str) -> Result<Program> {
    let calls = CALLS.to_string();
    let options = [name, host, "9000", "--one", "--tries", &calls, "--every", "0.02", "--timeout", "30"];
    stage.python(inside, "client.py", options)
}
