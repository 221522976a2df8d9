//! The route under a sending connection goes away, and a rule of the firewall drops what another sends: the kernel cannot
//! even repeat a segment.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Stage, counter, listening, printed, sockets, until};
use crate::stop;

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (client, server) = (stage.namespace("client")?, stage.namespace("server")?);
    client.join(&server, "veth0", "10.98.0.1", "10.98.0.2")?;
    for address in ["10.98.0.3/24", "10.98.0.4/24"] {
        server.ip(&["addr", "add", address, "dev", "veth0"])?;
    }
    let _server = stage.python(&server, "server.py", ["store", "9000"])?;
    listening(&server, 9000)?;
    let calls = |name, host| {
        let options = [name, host, "9000", "--one", "--tries", "2000", "--every", "0.05", "--timeout", "60"];
        stage.python(&client, "client.py", options)
    };
    let (writer, sender, twin) =
        (calls("writer", "10.98.0.2")?, calls("sender", "10.98.0.3")?, calls("reader", "10.98.0.4")?);
    let programs = [&writer, &sender, &twin];
    for program in programs {
        program.says("try", Duration::from_secs(20))?;
    }
    // A segment must be on its way that is not acknowledged: what was never sent is not repeated.
    printed(&server, &["iptables", "-A", "INPUT", "-d", "10.98.0.2,10.98.0.3", "-j", "DROP"])?;
    stop::sleep(Duration::from_millis(150))?;
    client.ip(&["route", "add", "unreachable", "10.98.0.2/32"])?;
    printed(&client, &["iptables", "-A", "OUTPUT", "-d", "10.98.0.3", "-j", "DROP"])?;
    let failed = until("segments cannot be repeated", Duration::from_secs(20), || {
        let failed = counter(&client, "TcpExtTCPRetransFail")?;
        Ok(if failed >= 3 { Ok(failed) } else { Err(failed.to_string()) })
    })?;
    let answers =
        || programs.iter().map(|program| Ok(program.said("try")?.len())).collect::<Result<Vec<_>>>();
    let before = answers()?;
    stop::sleep(Duration::from_secs(1))?;
    let after = answers()?;
    ensure!(after[..2] == before[..2] && after[2] > before[2], "answers: {before:?}, then {after:?}");
    stage.say("writer and sender hang");
    // The kernel does not count what has no route.
    let timers = sockets(&client, &["-tno", "dst", "10.98.0.2"])?.join("\n");
    ensure!(timers.contains("timer:(on,"), "ss shows no retransmit timer: {timers}");
    stage.say(format_args!("nstat: TcpExtTCPRetransFail {failed}; ss: {}", timers.trim()));

    let Some(watch) = stage.watch else { return Ok(()) };
    for (program, peer) in [(&writer, "10.98.0.2:9000"), (&sender, "10.98.0.3:9000")] {
        let limit = Duration::from_secs(10);
        let found = watch.finding(stage, "retransmit_failed", &[program.pid()], limit, |_| true)?;
        ensure!(found.peer() == peer, "it names {}", found.peer());
    }
    watch.silent(stage, "the client beside them", &[twin.pid()])
}
