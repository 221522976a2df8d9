//! A client writes each request in two parts: the second waits for an acknowledgement that the server delays.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Stage, counter, listening, median};

/// Requests: as many as a minute has room for, at 40 ms each.
const REQUESTS: usize = 1_200;

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (client, server) = (stage.namespace("client")?, stage.namespace("server")?);
    client.join(&server, "veth0", "10.98.0.1", "10.98.0.2")?;
    let _server = stage.python(&server, "records.py", ["records", "9000"])?;
    listening(&server, 9000)?;
    let requests = REQUESTS.to_string();
    let reader =
        stage.python(&client, "stuttering.py", ["reader", "10.98.0.2", "9000", &requests, "nagle"])?;
    let twin =
        stage.python(&client, "stuttering.py", ["quick", "10.98.0.2", "9000", &requests, "nodelay"])?;
    twin.says("done", Duration::from_secs(60))?;
    reader.says("took", Duration::from_secs(30))?;
    crate::stop::sleep(Duration::from_secs(10))?;
    let (slow, quick) = (median(&reader.numbers("took")?)?, median(&twin.numbers("took")?)?);
    ensure!((39.0..60.0).contains(&slow) && quick < 20.0, "{slow} ms, and {quick} ms with TCP_NODELAY");
    stage.say(format_args!("a request takes {slow} ms; with TCP_NODELAY {quick} ms"));
    let (delayed, repeated) = (counter(&server, "TcpExtDelayedACKs")?, counter(&client, "TcpRetransSegs")?);
    // The kernel repeats a segment now and then, to probe for a loss that there was not.
    ensure!(
        delayed > 100 && repeated < delayed / 10,
        "nstat: {delayed} delayed ACKs, {repeated} retransmits"
    );
    stage.say(format_args!("nstat: {delayed} delayed acknowledgements, {repeated} retransmits"));

    let Some(watch) = stage.watch else { return Ok(()) };
    let found = watch.finding(stage, "nagle_stall", &[reader.pid()], Duration::from_secs(75), |_| true)?;
    ensure!(found.peer() == "10.98.0.2:9000", "it names {}", found.peer());
    let told = found.number("stall_ms")?;
    ensure!((told / slow - 1.0).abs() < 0.15, "it says {told} ms, the client's log {slow} ms");
    watch.silent(stage, "the client with TCP_NODELAY", &[twin.pid()])
}
