//! A forgotten REDIRECT sends calls to another program than the one that listens where they go.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Program, Stage, listening, printed};
use crate::namespace::Namespace;

const CALLS: usize = 5;
/// Of the sidecar's own connections.
const MARK: &str = "77";

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (sick, sound) = (stage.namespace("sick")?, stage.namespace("sound")?);
    let _ledgers = [ledger(stage, &sick)?, ledger(stage, &sound)?];
    let legacy = stage.python(&sick, "server.py", ["legacy", "7001", "--says", "legacy"])?;
    listening(&sick, 7001)?;
    redirect(&sick, &["--to-ports", "7001"])?;
    let sidecar = stage.python(&sound, "relay.py", ["sidecar", "15001", "127.0.0.1", "7000", MARK])?;
    listening(&sound, 15001)?;
    redirect(&sound, &["--to-ports", "15001"])?;

    let (checkout, twin) = (calls(stage, &sick)?, calls(stage, &sound)?);
    for (program, answer) in [(&checkout, "legacy"), (&twin, "ledger")] {
        program.says("done", Duration::from_secs(30))?;
        let answers = program.said("try")?;
        ensure!(
            answers.len() == CALLS && answers.iter().all(|seen| seen == answer),
            "the answers: {answers:?}"
        );
    }
    stage.say(format_args!("{CALLS} of {CALLS} calls of checkout to ledger:7000 are answered by legacy"));

    let rule = printed(&sick, &["iptables", "-t", "nat", "-nvxL", "OUTPUT"])?;
    let packets = rule.lines().find(|line| line.contains("REDIRECT")).unwrap_or_default();
    ensure!(packets.split_whitespace().next() == Some(&CALLS.to_string()), "iptables: {rule}");
    stage.say(format_args!("iptables: {CALLS} connections matched the rule REDIRECT"));

    let Some(watch) = stage.watch else { return Ok(()) };
    let found = watch.finding(
        stage,
        "redirected_connection",
        &[checkout.pid()],
        Duration::from_secs(30),
        |found| found.count == CALLS as u64,
    )?;
    ensure!(found.peer() == "127.0.0.1:7000", "it names {}", found.peer());
    ensure!(found.summary.contains("7001") && found.summary.contains("legacy"), "it says {}", found.summary);
    ensure!(legacy.pid() > 0, "legacy has no pid");
    watch.silent(stage, "calls that pass a sidecar", &[twin.pid(), sidecar.pid()])
}

fn ledger(stage: &Stage, inside: &Namespace) -> Result<Program> {
    let ledger = stage.python(inside, "server.py", ["ledger", "7000", "--says", "ledger"])?;
    listening(inside, 7000)?;
    Ok(ledger)
}

fn redirect(inside: &Namespace, to: &[&str]) -> Result<()> {
    let rule = ["iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "7000"];
    let others = ["-m", "mark", "!", "--mark", MARK, "-j", "REDIRECT"];
    printed(inside, &[&rule[..], &others, to].concat())?;
    Ok(())
}

fn calls(stage: &Stage, inside: &Namespace) -> Result<Program> {
    let calls = CALLS.to_string();
    let options = ["checkout", "127.0.0.1", "7000", "--tries", &calls, "--keep", &calls, "--every", "0.5"];
    stage.python(inside, "client.py", options)
}
