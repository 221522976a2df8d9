//! A Go server whose handlers wait for a pool that leaks: the pool is the cause, CLOSE_WAIT its effect at the server,
//! FIN_WAIT2 that of its clients.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    software,
    stage::{Program, Stage, listening, printed, sockets, until},
    watch::{Finding, Watch},
};
use crate::namespace::Namespace;

/// `MaxActive` of the server's pool.
const POOL: usize = 5;
/// Requests that hang.
const CLIENTS: usize = 12;

pub(super) fn run(stage: &Stage) -> Result<()> {
    server_and_clients(stage, false)
}

/// The same, until the pool is known to be the cause of all.
pub(super) fn with_pool(stage: &Stage) -> Result<()> {
    server_and_clients(stage, true)
}

fn server_and_clients(stage: &Stage, with_pool: bool) -> Result<()> {
    let (sick, sound) = (stage.namespace("sick")?, stage.namespace("sound")?);
    let redis = [software::redis(stage, &sick, &[])?, software::redis(stage, &sound, &[])?];
    let orders = server(stage, &sick, "forgets")?;
    let twin = server(stage, &sound, "returns")?;

    for (namespace, server) in [(&sick, &orders), (&sound, &twin)] {
        for _ in 0..POOL {
            let status = ask(stage, namespace, "/order?id=unknown")?;
            ensure!(status == Ok("404".to_owned()), "pid {}: {status:?}", server.pid());
        }
    }
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(client(stage, &sick)?);
        let status = ask(stage, &sound, "/order?id=1")?;
        ensure!(status == Ok("200".to_owned()), "the twin: {status:?}");
    }
    let curls: Vec<u32> = clients.iter().map(Program::pid).collect();
    for client in &mut clients {
        let code = client.exit_code(Duration::from_secs(20))?;
        ensure!(code == Some(28), "curl ends with {code:?}, not with a time-out: {}", client.log()?);
    }
    stage.say(format_args!(
        "{CLIENTS} of {CLIENTS} requests hang: {}",
        clients[0].log()?.lines().next().unwrap_or_default()
    ));

    let close_wait = sockets(&sick, &["-tn", "state", "close-wait", "sport", "=", ":8080"])?.len();
    ensure!(close_wait == CLIENTS, "ss counts {close_wait} CLOSE_WAIT");
    let held = printed(&sick, &["redis-cli", "client", "list", "type", "normal"])?;
    let held = held.lines().filter(|line| line.contains("cmd=incr")).count();
    ensure!(held == POOL, "redis counts {held} connections of the pool");
    stage.say(format_args!(
        "ss: {close_wait} CLOSE_WAIT at :8080; redis: {held} idle connections of the pool"
    ));

    let Some(watch) = stage.watch else { return Ok(()) };
    let leak = watch.finding(stage, "close_wait_leak", &[orders.pid()], Duration::from_secs(60), |leak| {
        leak.count == close_wait as u64
    })?;
    ensure!(leak.who.process.as_deref() == Some("orders"), "it names {:?}", leak.who.process);
    ensure!(leak.role == "server" && leak.peer() == ":8080", "{} {}", leak.role, leak.peer());
    clients_under(stage, watch, &leak, &curls)?;
    if with_pool {
        pool_above(stage, watch, &leak, orders.pid(), held)?;
    }
    let healthy = [twin.pid(), redis[0].pid(), redis[1].pid()];
    watch.silent(stage, "the server that returns its connections, and both redis", &healthy)
}

/// The clients' FIN_WAIT2 are one finding, an effect of the server's CLOSE_WAIT.
fn clients_under(stage: &Stage, watch: &Watch, leak: &Finding, curls: &[u32]) -> Result<()> {
    let ends = until("the clients' FIN_WAIT2 are an effect", Duration::from_secs(30), || {
        let leak = watch.by_id(&leak.id)?;
        let effects = leak.effects.iter().map(|id| watch.by_id(id)).collect::<Result<Vec<_>>>()?;
        let ends =
            effects.into_iter().find(|effect| effect.rule == "fin_wait2_pileup" && effect.names(curls));
        Ok(ends.ok_or_else(|| format!("effects {:?}", leak.effects)))
    })?;
    ensure!(
        ends.who.processes == CLIENTS as u64 && ends.count == CLIENTS as u64,
        "{} connections of {} curls",
        ends.count,
        ends.who.processes
    );
    stage.say(format_args!("tcpwatch: {} is an effect of {}", ends.id, leak.id));
    Ok(())
}

/// The pool is the cause.
fn pool_above(stage: &Stage, watch: &Watch, leak: &Finding, pid: u32, held: usize) -> Result<()> {
    let pool = watch.finding(stage, "connection_pool_leak", &[pid], Duration::from_secs(90), |pool| {
        pool.count == held as u64
    })?;
    until("the pool is the cause", Duration::from_secs(20), || {
        let causes = watch.by_id(&leak.id)?.caused_by;
        Ok(if causes.contains(&pool.id) { Ok(()) } else { Err(format!("caused_by {causes:?}")) })
    })?;
    stage.say(format_args!("tcpwatch: {} is the cause of {}", pool.id, leak.id));
    Ok(())
}

fn server(stage: &Stage, inside: &Namespace, how: &str) -> Result<Program> {
    let server =
        stage.start(inside, stage.software.program("orders"), [":8080", "127.0.0.1:6379", "0", how])?;
    listening(inside, 8080)?;
    Ok(server)
}

/// A request that may take two seconds.
fn client(stage: &Stage, inside: &Namespace) -> Result<Program> {
    let options =
        ["-sS", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:8080/order?id=1"];
    stage.start(inside, "curl", options)
}

/// The status of the answer, or what curl says.
fn ask(stage: &Stage, inside: &Namespace, path: &str) -> Result<std::result::Result<String, String>> {
    let url = format!("http://127.0.0.1:8080{path}");
    let mut curl =
        stage.start(inside, "curl", ["-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", &url])?;
    let code = curl.exit_code(Duration::from_secs(10))?;
    let said = curl.log()?;
    Ok(if code == Some(0) { Ok(said) } else { Err(said) })
}
