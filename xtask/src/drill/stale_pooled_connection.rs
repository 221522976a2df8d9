//! A Go pool whose connections redis closes while they are idle: the next request over one of them fails, "EOF".
//!
//! Not MariaDB: its 10.11 ends an idle connection by a reset, which the driver meets at its write, and repeats the query.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{
    software,
    stage::{Program, Stage, listening, printed},
};
use crate::{namespace::Namespace, stop};

/// Requests that meet a closed connection.
const ROUNDS: usize = 6;

pub(super) fn run(stage: &Stage) -> Result<()> {
    let (sick, sound) = (stage.namespace("sick")?, stage.namespace("sound")?);
    let (orders, redis) = server(stage, &sick, "0")?;
    // Here the pool closes before redis does.
    let (twin, twin_redis) = server(stage, &sound, "1")?;
    let mut answers = [Vec::new(), Vec::new()];
    for _ in 0..2 * ROUNDS {
        for (namespace, answers) in [&sick, &sound].into_iter().zip(&mut answers) {
            answers.push(printed(namespace, &["curl", "-s", "-m", "5", "http://127.0.0.1:8080/order?id=1"])?);
        }
        stop::sleep(Duration::from_secs(4))?;
    }
    let [answers, healthy] = answers;
    // Every other request meets a closed connection, and leaves the pool without any.
    let failed = answers.iter().filter(|answer| *answer == "EOF").count();
    ensure!(failed == ROUNDS, "the answers are {answers:?}");
    ensure!(healthy.iter().all(|answer| answer.starts_with("order")), "the twin answers {healthy:?}");
    stage.say(format_args!("{failed} of {} requests fail: EOF", 2 * ROUNDS));

    let idle = closes(&redis)?;
    ensure!(idle.len() >= ROUNDS, "redis' log names {} idle clients", idle.len());
    let least = idle.iter().copied().fold(f64::INFINITY, f64::min);
    stage.say(format_args!("redis' log: {} idle clients closed, the first after {least:.3} s", idle.len()));

    let Some(watch) = stage.watch else { return Ok(()) };
    let limit = Duration::from_secs(15);
    let found = watch.finding(stage, "stale_pooled_connection", &[orders.pid()], limit, |found| {
        found.count == ROUNDS as u64
    })?;
    ensure!(found.peer() == "127.0.0.1:6379", "it names {}", found.peer());
    let told = found.number("server_idle_seconds")?;
    ensure!((told / least - 1.0).abs() <= 0.05, "it says {told} s, redis' log {least} s");
    watch.silent(stage, "the pool that closes first", &[twin.pid(), twin_redis.pid()])
}

/// The server and its redis.
fn server(stage: &Stage, inside: &Namespace, idle_seconds: &str) -> Result<(Program, Program)> {
    let redis = software::redis(stage, inside, &["--timeout", "2", "--loglevel", "verbose"])?;
    let options = [":8080", "127.0.0.1:6379", idle_seconds, "returns"];
    let server = stage.start(inside, stage.software.program("orders"), options)?;
    listening(inside, 8080)?;
    Ok((server, redis))
}

/// For how long the clients that redis closed had been idle: each asked once, when it was accepted.
fn closes(redis: &Program) -> Result<Vec<f64>> {
    let (mut accepted, mut idle) = (None, Vec::new());
    for line in redis.log()?.lines() {
        if line.contains("Accepted 127.0.0.1") {
            accepted = Some(time_of_day(line).context("a line of redis without a time")?);
        } else if line.contains("Closing idle client")
            && let Some(accepted) = accepted.take()
        {
            idle.push(time_of_day(line).context("a line of redis without a time")? - accepted);
        }
    }
    Ok(idle)
}

/// Seconds, from `17:M 30 Nov 2026 23:26:12.123 - Accepted 127.0.0.1:43044`.
fn time_of_day(line: &str) -> Option<f64> {
    let time = line.split_whitespace().nth(4)?;
    time.split(':').try_fold(0.0, |seconds, part| Some(seconds * 60.0 + part.parse::<f64>().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_line_is_read_to_the_millisecond() {
        assert_eq!(time_of_day("17:M 30 Nov 2026 00:01:02.500 - Accepted 127.0.0.1:43044"), Some(62.5));
        assert_eq!(time_of_day("a line"), None);
    }
}
