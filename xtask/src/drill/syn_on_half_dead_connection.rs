//! A client uses a port again whose old connection its server has not closed; a firewall eats the reset that would clear
//! it.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Stage, counter, listening, printed, sockets, until};

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (client, server) = (stage.namespace("client")?, stage.namespace("server")?);
    client.join(&server, "veth0", "10.98.0.1", "10.98.0.2")?;
    // The client's end is to be forgotten soon.
    printed(&client, &["sysctl", "-qw", "net.ipv4.tcp_fin_timeout=2"])?;
    printed(&client, &["iptables", "-A", "OUTPUT", "-p", "tcp", "--tcp-flags", "RST", "RST", "-j", "DROP"])?;
    let _server = stage.python(&server, "server.py", ["vault", "9000", "--keeps"])?;
    listening(&server, 9000)?;
    let first =
        stage.python(&client, "client.py", ["opener", "10.98.0.2", "9000", "--source-port", "5000"])?;
    first.says("try ok", Duration::from_secs(20))?;
    until("the client's end is forgotten", Duration::from_secs(30), || {
        let left = sockets(&client, &["-tan", "sport", "=", ":5000"])?;
        Ok(if left.is_empty() { Ok(()) } else { Err(left.join("\n")) })
    })?;
    let half_dead = sockets(&server, &["-tan", "state", "close-wait", "dport", "=", ":5000"])?.len();
    ensure!(half_dead == 1, "ss counts {half_dead} CLOSE_WAIT");

    let port = ["--source-port", "5000", "--timeout", "4"];
    let again = ["again", "10.98.0.2", "9000", "--tries", "2", "--every", "4"];
    let again = stage.python(&client, "client.py", [&again[..], &port].concat())?;
    let twin =
        stage.python(&client, "client.py", ["other", "10.98.0.2", "9000", "--tries", "3", "--every", "1"])?;
    for program in [&again, &twin] {
        program.says("done", Duration::from_secs(30))?;
    }
    ensure!(again.said("try")? == ["timeout", "timeout"], "the connects: {}", again.log()?);
    ensure!(twin.said("try")?.iter().all(|outcome| outcome == "ok"), "the twin: {}", twin.log()?);
    stage.say("connects from port 5000 hang; from other ports they do not");
    let challenges = counter(&server, "TcpExtTCPSYNChallenge")?;
    ensure!(challenges > 0, "nstat counts no TCPSYNChallenge");
    stage.say(format_args!(
        "ss: one CLOSE_WAIT of port 5000 at the server; nstat: TCPSYNChallenge {challenges}"
    ));

    let Some(watch) = stage.watch else { return Ok(()) };
    let pids = [again.pid()];
    let found =
        watch.finding(stage, "syn_on_half_dead_connection", &pids, Duration::from_secs(15), |_| true)?;
    ensure!(found.peer() == "10.98.0.2:9000", "it names {}", found.peer());
    watch.silent(stage, "a client with other ports", &[twin.pid()])
}
