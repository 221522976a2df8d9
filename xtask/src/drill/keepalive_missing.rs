//! A middlebox forgets idle connections without a word: the first request after a pause hangs.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Program, Stage, counter, listening, printed};

/// Connections that are idle for more than a minute, and are used again then.
const CLIENTS: usize = 3;
const PAUSE: &str = "65";

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (client, server) = (stage.namespace("client")?, stage.namespace("server")?);
    client.join(&server, "veth0", "10.98.0.1", "10.98.0.2")?;
    let _server = stage.python(&server, "server.py", ["database", "9000"])?;
    let _other = stage.python(&server, "server.py", ["cache", "9001"])?;
    for port in [9000, 9001] {
        listening(&server, port)?;
    }
    let clients = |name: &str, port: &str| -> Result<Vec<Program>> {
        let options = [name, "10.98.0.2", port, "--one", "--tries", "2", "--every", PAUSE, "--timeout", "15"];
        (0..CLIENTS).map(|_| stage.python(&client, "client.py", options)).collect()
    };
    let (idle, twins) = (clients("worker", "9000")?, clients("poller", "9001")?);
    for program in idle.iter().chain(&twins) {
        program.says("try ok", Duration::from_secs(20))?;
    }
    printed(&server, &["iptables", "-A", "INPUT", "-p", "tcp", "--dport", "9000", "-j", "DROP"])?;
    for program in idle.iter().chain(&twins) {
        program.says("done", Duration::from_secs(110))?;
    }
    for (programs, outcome) in [(&idle, "timeout"), (&twins, "ok")] {
        for program in programs {
            ensure!(program.said("try")?.last().is_some_and(|last| last == outcome), "{}", program.log()?);
        }
    }
    stage.say(format_args!("after {PAUSE} s without a request {CLIENTS} of {CLIENTS} requests hang"));
    let repeated = counter(&client, "TcpRetransSegs")?;
    ensure!(repeated >= 3 * CLIENTS as u64, "nstat counts {repeated} retransmits");
    stage.say(format_args!("nstat: TcpRetransSegs {repeated}"));

    let Some(watch) = stage.watch else { return Ok(()) };
    let pids: Vec<u32> = idle.iter().map(Program::pid).collect();
    let found = watch.finding(stage, "keepalive_missing", &pids, Duration::from_secs(30), |_| true)?;
    ensure!(found.peer() == "10.98.0.2:9000", "it names {}", found.peer());
    let twins: Vec<u32> = twins.iter().map(Program::pid).collect();
    watch.silent(stage, "clients whose path is there", &twins)
}
