//! Records that tcpwatch loses, at rising rates and when it is kept from reading; whether its table is right again
//! afterwards, and after how long.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::{
    Bench, machine,
    tool::{Running, Tool},
};
use crate::{command, load::unit, namespace::Namespace, stop};

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Loss {
    pub(crate) what: String,
    /// Requested connections a second; `null` for as many as possible.
    pub(crate) rate: Option<u32>,
    pub(crate) per_second: f64,
    pub(crate) records: f64,
    pub(crate) lost: f64,
    /// Time from the end of the load until answers were complete again.
    pub(crate) complete_after_seconds: f64,
    /// Connections in the table and in the kernel's list, when both agreed or the time was up.
    pub(crate) connections: [u64; 2],
    /// Time from the end of the load until both agreed; `null` when they did not.
    pub(crate) equal_after_seconds: Option<f64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Starved {
    No,
    /// Nice 19, and on one processor, which the load uses too.
    Nice,
    Stopped(Duration),
}

const RATES: [u32; 4] = [5_000, 10_000, 20_000, 30_000];
/// Time for a repair: a sweep follows a loss within seconds, as sweeps have a pause between them.
const REPAIR_LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn loss(bench: &Bench) -> Result<Vec<Loss>> {
    let mut runs: Vec<(String, Option<u32>, Starved)> =
        RATES.iter().map(|rate| (format!("{rate} a second"), Some(*rate), Starved::No)).collect();
    runs.push(("as many as possible".to_owned(), None, Starved::No));
    runs.push(("the same, tcpwatch at nice 19 on one processor".to_owned(), None, Starved::Nice));
    for milliseconds in [500, 2000] {
        let stopped = Starved::Stopped(Duration::from_millis(milliseconds));
        runs.push((
            format!("the same, tcpwatch stopped for {} s", f64::from(milliseconds as u32) / 1000.0),
            None,
            stopped,
        ));
    }
    runs.into_iter().map(|(what, rate, starved)| run(bench, what, rate, starved)).collect()
}

fn run(bench: &Bench, what: String, rate: Option<u32>, starved: Starved) -> Result<Loss> {
    let inside = Namespace::new("bench-loss")?;
    let running = Running::start(Tool::Tcpwatch, &bench.tcpwatch, &inside, &bench.folder)?;
    let pid = running.pid().to_string();
    if starved == Starved::Nice {
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = task?.file_name();
            command::output(Command::new("renice").args(["-n", "19", "-p"]).arg(&thread))?;
        }
        command::output(Command::new("taskset").args(["-a", "-cp", "0", &pid]))?;
    }
    machine::settle()?;
    let option = rate.map(|rate| ["--rate".to_owned(), rate.to_string()]);
    let option: Vec<&str> = option.iter().flatten().map(String::as_str).collect();
    let report = thread::scope(|scope| -> Result<_> {
        let load = scope.spawn(|| bench.load(&inside, &option));
        if let Starved::Stopped(pause) = starved {
            thread::sleep(Duration::from_millis(500));
            running.signal(Signal::SIGSTOP)?;
            thread::sleep(pause);
            running.signal(Signal::SIGCONT)?;
        }
        load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let ended = Instant::now();
    while !running.get("/leaks?format=json")?.contains("\"complete\": true") {
        ensure!(ended.elapsed() < REPAIR_LIMIT, "not complete {} s after the load", REPAIR_LIMIT.as_secs());
        stop::sleep(Duration::from_millis(50))?;
    }
    let complete_after_seconds = ended.elapsed().as_secs_f64();
    let mut connections = [0, 0];
    let mut equal_after_seconds = None;
    while equal_after_seconds.is_none() && ended.elapsed() < REPAIR_LIMIT {
        connections = [listed(&running)?, in_kernel(&inside)?];
        if connections[0] == connections[1] {
            equal_after_seconds = Some(ended.elapsed().as_secs_f64());
        } else {
            stop::sleep(Duration::from_millis(200))?;
        }
    }
    let lost = running.metric("tcpwatch_records_lost_total")?;
    let received = running.metric("tcpwatch_records_received_total")?;
    eprintln!(
        "loss, {what}: {lost} of {} records, complete after {complete_after_seconds:.1} s",
        lost + received
    );
    Ok(Loss {
        what,
        rate,
        per_second: report.per_second,
        records: lost + received,
        lost,
        complete_after_seconds,
        connections,
        equal_after_seconds,
    })
}

/// Connections between the load's addresses, which nobody else uses.
fn listed(running: &Running) -> Result<u64> {
    let mut sum = 0;
    for network in [unit::SOURCES, unit::LISTENERS] {
        let answer = running.get(&format!("/connections?format=json&limit=1&remote={network}"))?;
        let answer: serde_json::Value = serde_json::from_str(&answer).context("reading /connections")?;
        sum += answer["total"].as_u64().context("/connections without a total")?;
    }
    Ok(sum)
}

fn in_kernel(inside: &Namespace) -> Result<u64> {
    let mut ss = inside.command("ss");
    Ok(command::output(ss.arg("-Htan"))?.lines().count() as u64)
}
