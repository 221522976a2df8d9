//! A client that opens a connection for each request, and closes it first.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::stage::{Program, Stage, listening, printed, sockets};
use crate::namespace::Namespace;

/// Requests, at a rate that fills a fifth of the namespace's 5,000 ports within half a minute.
const TRIES: usize = 1_800;
const EVERY: &str = "0.025";

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (client, server) = (stage.namespace("client")?, stage.namespace("server")?);
    // Not loopback: there the kernel uses ports in TIME_WAIT again after a second.
    client.join(&server, "veth0", "10.98.0.1", "10.98.0.2")?;
    printed(&client, &["sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 44999"])?;
    let _server = stage.python(&server, "server.py", ["metrics", "9100"])?;
    listening(&server, 9100)?;
    let scraper = requests(stage, &client, &["scraper"])?;
    let twin = requests(stage, &client, &["poller", "--one"])?;
    for program in [&scraper, &twin] {
        program.says("done", Duration::from_secs(120))?;
        let wrong = program.said("try")?.iter().filter(|outcome| *outcome != "ok").count();
        ensure!(wrong == 0, "{wrong} requests fail");
    }
    let time_wait = sockets(&client, &["-tan", "state", "time-wait", "dport", "=", ":9100"])?.len();
    ensure!(time_wait > TRIES * 9 / 10, "ss counts {time_wait} TIME_WAIT");
    stage.say(format_args!("ss: {time_wait} TIME_WAIT to 10.98.0.2:9100"));

    let Some(watch) = stage.watch else { return Ok(()) };
    let found =
        watch.finding(stage, "time_wait_churn", &[scraper.pid()], Duration::from_secs(20), |_| true)?;
    ensure!(found.who.process.as_deref() == Some("scraper"), "it names {:?}", found.who.process);
    ensure!(found.peer() == "10.98.0.2:9100", "it names {}", found.peer());
    let rate = found.number("connections_per_second")?;
    ensure!((36.0..=44.0).contains(&rate), "it says {rate} connections a second, the client made 40");
    watch.silent(stage, "a client with one connection for all requests", &[twin.pid()])
}

fn requests(stage: &Stage, inside: &Namespace, how: &[&str]) -> Result<Program> {
    let tries = TRIES.to_string();
    let (name, options) = how.split_at(1);
    let common = [name, &["10.98.0.2", "9100", "--tries", &tries, "--every", EVERY], options].concat();
    stage.python(inside, "client.py", common)
}
