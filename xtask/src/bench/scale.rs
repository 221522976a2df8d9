//! The cost of many live connections: memory, the first sweep, answers, and idling.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    Bench, machine,
    stats::Spread,
    tool::{Running, Tool},
};
use crate::{command, namespace::Namespace, stop};

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Scale {
    pub(crate) sockets: u64,
    pub(crate) lingering: u64,
    pub(crate) rss_mib: f64,
    pub(crate) most_mib: f64,
    /// Time from the start of the process until it knew all connections with their owners.
    pub(crate) ready_seconds: f64,
    pub(crate) ready_cpu_seconds: f64,
    pub(crate) leaks_ms: Option<Spread>,
    pub(crate) connections_ms: Option<Spread>,
    pub(crate) metrics_ms: Option<Spread>,
    /// Percent of one processor, while nothing happens and nobody asks, and the number of sweeps in that time.
    pub(crate) idle_percent: f64,
    pub(crate) idle_sweeps: u32,
    /// `ss -tanp`; not tried where it would take minutes.
    pub(crate) ss_seconds: Option<f64>,
    pub(crate) proc_net_tcp_seconds: f64,
}

/// `ss -tanp` looks through all processes for each socket: 4.7 s at 100,000 sockets, 55 s at 300,000.
const SS_SOCKETS: u64 = 100_000;
/// For each hundred sockets one pair is half closed.
const LINGERING_SHARE: u64 = 100;
const QUESTIONS: usize = 9;
/// The idle measurement lasts from one sweep to the next, at most this.
const IDLE: Duration = Duration::from_secs(120);
/// How long to wait for TIME_WAITs of others: as long as the kernel keeps one, and the seconds by which tcpwatch may be
/// late.
const MINISOCKS: Duration = Duration::from_secs(75);

pub(crate) fn scale(bench: &Bench) -> Result<Vec<Scale>> {
    bench.scales.iter().map(|sockets| run(bench, *sockets)).collect()
}

fn run(bench: &Bench, sockets: u64) -> Result<Scale> {
    let inside = Namespace::new("bench-scale")?;
    // The closed clients' ends must be gone first: while there are minisocks, tcpwatch sweeps more often.
    command::output(inside.command("sysctl").args(["-q", "net.ipv4.tcp_fin_timeout=1"]))?;
    let (pairs, half_closed) = (sockets / 2, sockets / LINGERING_SHARE);
    let mut command = inside.command(command::xtask()?);
    command.args(["load", "--hold", &pairs.to_string(), "--half-closed", &half_closed.to_string()]);
    let mut held =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting the load")?;
    let mut line = String::new();
    BufReader::new(held.stdout.take().context("a load without stdout")?).read_line(&mut line)?;
    ensure!(line == "ready\n", "the load ended before all {pairs} connections were made");
    let held_since = Instant::now();
    machine::settle()?;

    let began = Instant::now();
    let running = Running::start(Tool::Tcpwatch, &bench.tcpwatch, &inside, &bench.folder)?;
    let ready_seconds = began.elapsed().as_secs_f64();
    let ready_cpu_seconds = running.cpu_seconds()?;
    // Half-closed connections count as lingering after 30 s.
    stop::sleep(Duration::from_secs(34).saturating_sub(held_since.elapsed()))?;
    let ask = |path: &str| -> Result<Option<Spread>> {
        let mut times = Vec::new();
        for _ in 0..QUESTIONS {
            let asked = Instant::now();
            running.get(path)?;
            times.push(asked.elapsed().as_secs_f64() * 1000.0);
        }
        Ok(Spread::of(times))
    };
    let (leaks_ms, connections_ms, metrics_ms) = (ask("/leaks")?, ask("/connections")?, ask("/metrics")?);
    let lingering = running.metric("tcpwatch_lingering_connections")? as u64;
    let idle_since = Instant::now();
    while minisocks(&running)? > 0.0 && idle_since.elapsed() < MINISOCKS {
        stop::sleep(Duration::from_secs(1))?;
    }
    next_sweep(&running)?;
    let (idle_since, before) = (Instant::now(), running.cpu_seconds()?);
    let idle_sweeps = next_sweep(&running)?;
    let idle_percent = (running.cpu_seconds()? - before) / idle_since.elapsed().as_secs_f64() * 100.0;
    let seconds = |program: &str, args: &[&str]| -> Result<f64> {
        let began = Instant::now();
        command::output(inside.command(program).args(args).stdout(Stdio::null()))?;
        Ok(began.elapsed().as_secs_f64())
    };
    let scale = Scale {
        sockets,
        lingering,
        rss_mib: machine::memory_mib(running.pid(), "VmRSS")?,
        most_mib: machine::memory_mib(running.pid(), "VmHWM")?,
        ready_seconds,
        ready_cpu_seconds,
        leaks_ms,
        connections_ms,
        metrics_ms,
        idle_percent,
        idle_sweeps,
        ss_seconds: (sockets <= SS_SOCKETS).then(|| seconds("ss", &["-tanp"])).transpose()?,
        proc_net_tcp_seconds: seconds("cat", &["/proc/self/net/tcp"])?,
    };
    eprintln!("{sockets} sockets: {:.0} MiB, ready after {ready_seconds:.2} s", scale.rss_mib);
    running.stop()?;
    // The load ends with its stdin.
    drop(held.stdin.take());
    held.wait().context("waiting for the load")?;
    Ok(scale)
}

/// Waits for a condition, and returns whether it came true.
fn next_sweep(running: &Running) -> Result<u32> {
    let since = Instant::now();
    let before = running.metric("tcpwatch_sweeps_total")?;
    while since.elapsed() < IDLE {
        // Rarely, as asking costs processor time too.
        stop::sleep(Duration::from_secs(5))?;
        if running.metric("tcpwatch_sweeps_total")? > before {
            return Ok(1);
        }
    }
    Ok(0)
}

/// The number of minisocks; while there are any, tcpwatch sweeps more often.
fn minisocks(running: &Running) -> Result<f64> {
    let of = |state: &str| running.metric_of("tcpwatch_connections", &format!("state=\"{state}\""));
    Ok(of("TIME_WAIT")? + of("FIN_WAIT2")?)
}
