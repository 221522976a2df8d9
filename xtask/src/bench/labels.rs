//! The cost of `/metrics` when all label sets are taken.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    Bench,
    machine::Namespace,
    stats::Spread,
    tool::{Running, Tool},
};

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Labels {
    pub(crate) sets: usize,
    pub(crate) kib: f64,
    pub(crate) metrics_ms: Option<Spread>,
}

const QUESTIONS: usize = 15;
/// The default limit of label sets (`--max-label-sets`).
const SETS: usize = 1000;

pub(crate) fn labels(bench: &Bench) -> Result<Labels> {
    let inside = Namespace::new("labels")?;
    let running = Running::start(Tool::Tcpwatch, &bench.tcpwatch, &inside, &bench.folder)?;
    // Each port of the load is a set for the client and one for the server.
    bench.load(&inside, &["--workers", "1", "--ports", "600", "--connections", "2400"])?;
    let text = running.get("/metrics")?;
    let sets = text.lines().filter(|line| line.starts_with("tcpwatch_connections_opened_total{")).count();
    ensure!(sets >= SETS, "{sets} label sets of {SETS} are taken");
    let mut times = Vec::new();
    for _ in 0..QUESTIONS {
        let asked = Instant::now();
        running.get("/metrics")?;
        times.push(asked.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(Labels { sets, kib: text.len() as f64 / 1024.0, metrics_ms: Spread::of(times) })
}
