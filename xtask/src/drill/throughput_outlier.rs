//! A log shipper that kept up for a quarter of an hour gets half of the bandwidth that it needs.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Program, Stage, listening, printed, until};
use crate::{namespace::Namespace, stop};

/// What is usual for it must be known before: the rule asks for 15 minutes.
const USUAL: Duration = Duration::from_secs(16 * 60);
const BYTES_PER_SECOND: &str = "1000000";
/// Less than that, in tc's words.
const SHAPED: &str = "4mbit";

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (client, server) = (stage.namespace("client")?, stage.namespace("server")?);
    client.join(&server, "veth0", "10.98.0.1", "10.98.0.2")?;
    client.join(&server, "veth1", "10.98.1.1", "10.98.1.2")?;
    let _server = stage.python(&server, "stream.py", ["receive", "logs", "9000"])?;
    listening(&server, 9000)?;
    let (shipper, twin) = (shipper(stage, &client, "10.98.0.2")?, shipper(stage, &client, "10.98.1.2")?);
    stop::sleep(USUAL)?;
    let lag = |program: &Program| -> Result<f64> {
        Ok(program.said("lag")?.last().and_then(|lag| lag.parse().ok()).unwrap_or(0.0))
    };
    ensure!(lag(&shipper)? < 1.0, "shipper lags {} s behind before", lag(&shipper)?);
    printed(
        &client,
        &[
            "tc", "qdisc", "add", "dev", "veth0", "root", "tbf", "rate", SHAPED, "burst", "32kbit",
            "latency", "400ms",
        ],
    )?;
    let behind = until("shipper lags behind", Duration::from_secs(60), || {
        let behind = lag(&shipper)?;
        Ok(if behind > 5.0 { Ok(behind) } else { Err(behind.to_string()) })
    })?;
    ensure!(lag(&twin)? < 1.0, "the twin lags {} s behind", lag(&twin)?);
    stage.say(format_args!("shipper lags {behind} s behind, and more each second"));
    let qdisc = printed(&client, &["tc", "-s", "qdisc", "show", "dev", "veth0"])?;
    ensure!(qdisc.contains("overlimits") && !qdisc.contains("overlimits 0 "), "tc: {qdisc}");
    stage.say(format_args!("tc: {}", qdisc.lines().nth(1).unwrap_or_default().trim()));

    let Some(watch) = stage.watch else { return Ok(()) };
    let found =
        watch.finding(stage, "throughput_outlier", &[shipper.pid()], Duration::from_secs(180), |_| true)?;
    ensure!(found.peer() == "10.98.0.2:9000", "it names {}", found.peer());
    watch.silent(stage, "the same shipper over another device", &[twin.pid()])
}

fn shipper(stage: &Stage, inside: &Namespace, host: &str) -> Result<Program> {
    stage.python(inside, "stream.py", ["send", "shipper", host, "9000", BYTES_PER_SECOND])
}
