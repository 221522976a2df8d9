//! A Go server that forgets to close its result sets: its pool to MariaDB only grows, to its maximum, and then
//! everything that needs the database waits.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{
    software,
    stage::{Program, Stage, listening, printed, until},
};
use crate::{namespace::Namespace, stop};

/// `SetMaxOpenConns`.
const MAXIMUM: usize = 43;

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (sick, sound) = (stage.namespace("sick")?, stage.namespace("sound")?);
    let databases = [software::mariadb(stage, &sick, &[])?, software::mariadb(stage, &sound, &[])?];
    let reports = server(stage, &sick, "forgets")?;
    let twin = server(stage, &sound, "closes")?;
    // The twin's pool reaches its maximum at once, and is idle from then on but for a query a second.
    let busy: Vec<Program> = (0..MAXIMUM).map(|_| ask(stage, &sound, "1")).collect::<Result<_>>()?;
    let mut waiting = Vec::new();
    for number in 0..MAXIMUM + 3 {
        waiting.push(ask(stage, &sick, "0")?);
        let mut curl = ask(stage, &sound, "0")?;
        ensure!(
            curl.exit_code(Duration::from_secs(10))? == Some(0),
            "request {number} of the twin: {}",
            curl.log()?
        );
        stop::sleep(Duration::from_secs(1))?;
    }
    drop(busy);
    let answered = answered(&waiting)?;
    ensure!(answered == MAXIMUM, "{answered} of {} requests are answered", waiting.len());
    stage.say(format_args!("{answered} requests are answered; the next {} wait", waiting.len() - answered));

    let in_use = printed(&sick, &["curl", "-s", "http://127.0.0.1:8080/in-use"])?;
    ensure!(in_use.starts_with(&format!("{MAXIMUM} 0 ")), "the pool says {in_use}");
    let threads = printed(&sick, &["mariadb", "-h127.0.0.1", "-Ne", "SHOW STATUS LIKE 'Threads_connected'"])?;
    let threads: usize =
        threads.split_whitespace().last().and_then(|n| n.parse().ok()).context("no Threads_connected")?;
    // One of them is the question itself.
    ensure!(threads == MAXIMUM + 1, "MariaDB counts {threads} connections");
    stage.say(format_args!("db.Stats(): {MAXIMUM} in use, 0 idle; MariaDB: Threads_connected {threads}"));

    let Some(watch) = stage.watch else { return Ok(()) };
    let found =
        watch.finding(stage, "connection_pool_leak", &[reports.pid()], Duration::from_secs(90), |found| {
            found.number("maximum").is_ok()
        })?;
    ensure!(found.peer() == "127.0.0.1:3306", "it names {}", found.peer());
    let told = found.counted("maximum")?;
    ensure!(told == MAXIMUM as u64, "it says {told}, the pool's maximum is {MAXIMUM}");
    let healthy = [twin.pid(), databases[0].pid(), databases[1].pid()];
    watch.silent(stage, "the same pool with closed result sets, and both databases", &healthy)
}

fn server(stage: &Stage, inside: &Namespace, how: &str) -> Result<Program> {
    let maximum = MAXIMUM.to_string();
    let options = [":8080", "drill@tcp(127.0.0.1:3306)/drill?interpolateParams=true", &maximum, "0", how];
    let server = stage.start(inside, stage.software.program("reports"), options)?;
    listening(inside, 8080)?;
    Ok(server)
}

/// A request whose query takes these seconds.
fn ask(stage: &Stage, inside: &Namespace, seconds: &str) -> Result<Program> {
    let url = format!("http://127.0.0.1:8080/report?sleep={seconds}");
    stage.start(inside, "curl", ["-sS", "-m", "300", &url])
}

fn answered(curls: &[Program]) -> Result<usize> {
    until("the requests that have a connection are answered", Duration::from_secs(10), || {
        let answers = curls.iter().map(Program::log).collect::<Result<Vec<_>>>()?;
        let count = answers.iter().filter(|answer| answer.trim() == "ok").count();
        Ok(if count >= MAXIMUM { Ok(count) } else { Err(count.to_string()) })
    })
}
