//! nginx keeps connections to node for longer than node does, and answers 502 when a request meets node's close.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    software,
    stage::{Program, Stage, counter, listening, median},
};
use crate::namespace::Namespace;

/// Requests that meet a close.
const ROUNDS: usize = 6;
/// node's keepAliveTimeout. It may close a second later, by its version.
const KEEPALIVE_MS: &str = "1000";

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (sick, sound) = (stage.namespace("sick")?, stage.namespace("sound")?);
    let node = server(stage, &sick, KEEPALIVE_MS)?;
    let (nginx, worker) = proxy(stage, &sick, "60s")?;
    // Here the client's end gives up first.
    let twin_node = server(stage, &sound, "60000")?;
    let (_twin_nginx, twin_worker) = proxy(stage, &sound, "1s")?;

    let options = ["80", &worker.to_string(), "3000", &ROUNDS.to_string()];
    let mut race = stage.python(&sick, "race.py", options)?;
    let mut healthy = Vec::new();
    for _ in 0..ROUNDS {
        healthy.push(post(stage, &sound)?);
        crate::stop::sleep(Duration::from_millis(1_500))?;
    }
    ensure!(healthy.iter().all(|status| status == "200"), "the twin answers {healthy:?}");
    let code = race.exit_code(Duration::from_secs(60))?;
    ensure!(code == Some(0), "race.py: {}", race.log()?);
    let statuses = race.said("status")?;
    ensure!(statuses.iter().all(|status| status == "502"), "nginx answers {statuses:?}");
    stage.say(format_args!("{ROUNDS} of {ROUNDS} POSTs are answered 502"));

    let resets = nginx.log()?.matches("Connection reset by peer").count()
        + nginx.log()?.matches("upstream prematurely closed").count();
    ensure!(
        resets == ROUNDS,
        "nginx's log names {resets} upstream connections that were closed: {}",
        nginx.log()?
    );
    let sent = counter(&sick, "TcpOutRsts")?;
    ensure!(sent >= ROUNDS as u64, "nstat counts {sent} resets");
    let idle = median(&node.numbers("closed")?)?;
    stage.say(format_args!(
        "nginx's log: {resets} closed under a request; nstat: {sent} resets; node's log: closed after {idle:.3} s"
    ));

    let Some(watch) = stage.watch else { return Ok(()) };
    let found =
        watch.finding(stage, "keepalive_race", &[node.pid(), worker], Duration::from_secs(15), |found| {
            found.count >= ROUNDS as u64
        })?;
    ensure!(found.count == ROUNDS as u64, "{} of {ROUNDS} are counted", found.count);
    let told = found.number("server_idle_seconds")?;
    ensure!((told / idle - 1.0).abs() <= 0.05, "it says {told} s, node's log {idle} s");
    watch.silent(stage, "node that waits longer than nginx", &[twin_node.pid(), twin_worker])
}

fn server(stage: &Stage, inside: &Namespace, keepalive_ms: &str) -> Result<Program> {
    let script = stage.software.script("keepalive.mjs");
    let node = stage.start(inside, "node", [script.as_os_str(), "3000".as_ref(), keepalive_ms.as_ref()])?;
    listening(inside, 3000)?;
    Ok(node)
}

fn proxy(stage: &Stage, inside: &Namespace, keepalive: &str) -> Result<(Program, u32)> {
    let http = format!(
        "upstream node {{ server 127.0.0.1:3000; keepalive 8; keepalive_timeout {keepalive}; }}
    server {{
        listen 127.0.0.1:80;
        location / {{ proxy_pass http://node; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}
    }}"
    );
    software::nginx(stage, inside, &http)
}

fn post(stage: &Stage, inside: &Namespace) -> Result<String> {
    let options = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "-d", "body", "http://127.0.0.1/"];
    let mut curl = stage.start(inside, "curl", options)?;
    curl.exit_code(Duration::from_secs(10))?;
    curl.log()
}
