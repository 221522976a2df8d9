//! A client that gives up after a second on a server that takes its time: the server never closes.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Stage, listening, sockets};

const CALLS: usize = 15;

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (client, server) = (stage.namespace("client")?, stage.namespace("server")?);
    client.join(&server, "veth0", "10.98.0.1", "10.98.0.2")?;
    let _slow = stage.python(&server, "server.py", ["reports", "9000", "--after", "600"])?;
    let _quick = stage.python(&server, "server.py", ["prices", "9001"])?;
    for port in [9000, 9001] {
        listening(&server, port)?;
    }
    let calls = CALLS.to_string();
    let calls = |name, port| {
        let options = [name, "10.98.0.2", port, "--tries", &calls, "--every", "1.2", "--timeout", "1"];
        stage.python(&client, "client.py", options)
    };
    let (billing, twin) = (calls("billing", "9000")?, calls("catalog", "9001")?);
    for program in [&billing, &twin] {
        program.says("done", Duration::from_secs(60))?;
    }
    ensure!(billing.said("try")?.iter().all(|outcome| outcome == "timeout"), "billing: {}", billing.log()?);
    ensure!(twin.said("try")?.iter().all(|outcome| outcome == "ok"), "catalog: {}", twin.log()?);
    stage.say(format_args!("{CALLS} of {CALLS} calls of billing time out"));

    let fin_wait2 = sockets(&client, &["-tanp", "state", "fin-wait-2", "dport", "=", ":9000"])?;
    ensure!(fin_wait2.len() == CALLS, "ss counts {} FIN_WAIT2", fin_wait2.len());
    ensure!(fin_wait2.iter().all(|line| !line.contains("pid=")), "ss knows who holds them: {fin_wait2:?}");
    stage.say(format_args!("ss: {CALLS} FIN_WAIT2 to 10.98.0.2:9000, without a pid"));

    let Some(watch) = stage.watch else { return Ok(()) };
    let found =
        watch.finding(stage, "fin_wait2_pileup", &[billing.pid()], Duration::from_secs(60), |found| {
            found.count == CALLS as u64
        })?;
    ensure!(found.who.process.as_deref() == Some("billing"), "it names {:?}", found.who.process);
    ensure!(found.peer() == "10.98.0.2:9000", "it names {}", found.peer());
    watch.silent(stage, "catalog, whose server answers", &[twin.pid()])
}
