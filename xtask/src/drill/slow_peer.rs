//! A server that always answered at once begins to take two seconds.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Stage, listening};

/// Answers at once, and late ones after them.
const QUICK: usize = 100;
const LATE: usize = 12;
const DELAY_MS: f64 = 2_000.0;

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (client, server) = (stage.namespace("client")?, stage.namespace("server")?);
    client.join(&server, "veth0", "10.98.0.1", "10.98.0.2")?;
    let quick = QUICK.to_string();
    let _slow = stage.python(&server, "server.py", ["quotes", "9000", "--from", &quick, "--after", "2"])?;
    let _quick = stage.python(&server, "server.py", ["prices", "9001"])?;
    for port in [9000, 9001] {
        listening(&server, port)?;
    }
    let tries = (QUICK + LATE).to_string();
    let calls = |name, port| {
        let options =
            [name, "10.98.0.2", port, "--one", "--tries", &tries, "--every", "0.3", "--timeout", "30"];
        stage.python(&client, "client.py", options)
    };
    let (shop, twin) = (calls("shop", "9000")?, calls("catalog", "9001")?);
    for program in [&shop, &twin] {
        program.says("done", Duration::from_secs(110))?;
        ensure!(program.said("try")?.iter().all(|outcome| outcome == "ok"), "{}", program.log()?);
    }
    let late = shop.numbers("took")?.iter().filter(|took| (DELAY_MS..DELAY_MS * 1.1).contains(*took)).count();
    ensure!(late == LATE, "{late} answers are late");
    stage.say(format_args!("the last {late} answers take {DELAY_MS} ms each"));

    let Some(watch) = stage.watch else { return Ok(()) };
    let found = watch.finding(stage, "slow_peer", &[shop.pid()], Duration::from_secs(40), |_| true)?;
    ensure!(found.peer() == "10.98.0.2:9000", "it names {}", found.peer());
    watch.silent(stage, "the client whose server answers at once", &[twin.pid()])
}
