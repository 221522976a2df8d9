//! Some segments of a connection are lost: everything behind them waits.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Stage, counter, listening, median, printed};

const CALLS: usize = 400;

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (client, server) = (stage.namespace("client")?, stage.namespace("server")?);
    client.join(&server, "veth0", "10.98.0.1", "10.98.0.2")?;
    server.ip(&["addr", "add", "10.98.0.3/24", "dev", "veth0"])?;
    let _server = stage.python(&server, "server.py", ["queue", "9000"])?;
    listening(&server, 9000)?;
    let loss = [
        "-m",
        "length",
        "--length",
        "53:65535",
        "-m",
        "statistic",
        "--mode",
        "nth",
        "--every",
        "20",
        "--packet",
        "0",
        "-j",
        "DROP",
    ];
    let rule = ["iptables", "-A", "INPUT", "-p", "tcp", "-d", "10.98.0.2"];
    printed(&server, &[&rule[..], &loss].concat())?;
    let calls = CALLS.to_string();
    let calls = |name, host| {
        let options = [name, host, "9000", "--one", "--tries", &calls, "--every", "0.1", "--timeout", "30"];
        stage.python(&client, "client.py", options)
    };
    let (consumer, twin) = (calls("consumer", "10.98.0.2")?, calls("reader", "10.98.0.3")?);
    for program in [&consumer, &twin] {
        program.says("done", Duration::from_secs(110))?;
        ensure!(program.said("try")?.iter().all(|outcome| outcome == "ok"), "{}", program.log()?);
    }
    let took = consumer.numbers("took")?;
    let (usual, blocked) = (median(&took)?, took.iter().filter(|took| **took >= 200.0).count());
    ensure!(usual < 20.0 && blocked >= CALLS / 40, "{usual} ms, {blocked} of more than 200 ms");
    stage.say(format_args!(
        "{blocked} of {CALLS} answers take more than 200 ms, the others some {usual:.1} ms"
    ));
    let repeated = counter(&client, "TcpRetransSegs")?;
    ensure!(repeated >= blocked as u64, "nstat counts {repeated} retransmits");
    stage.say(format_args!("nstat: TcpRetransSegs {repeated}"));

    let Some(watch) = stage.watch else { return Ok(()) };
    let found = watch.finding(stage, "hol_blocking", &[consumer.pid()], Duration::from_secs(30), |_| true)?;
    ensure!(found.peer() == "10.98.0.2:9000", "it names {}", found.peer());
    watch.silent(stage, "the client of an address without loss", &[twin.pid()])
}
