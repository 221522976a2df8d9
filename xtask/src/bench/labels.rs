//! `/metrics` when all label sets are taken: as it comes, and with every collector.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    Bench,
    stats::Spread,
    tool::{Running, Tool},
};
use crate::namespace::Namespace;

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Labels {
    pub(crate) sets: usize,
    pub(crate) kib: f64,
    pub(crate) metrics_ms: Option<Spread>,
    /// The same with every collector.
    #[serde(default)]
    pub(crate) all_kib: f64,
    #[serde(default)]
    pub(crate) all_ms: Option<Spread>,
}

const QUESTIONS: usize = 15;
/// The most there are unless `--max-label-sets` says otherwise.
const SETS: usize = 200;

const ALL: &str = "/metrics?collect[]=summary&collect[]=daemon&collect[]=connects&collect[]=closes&collect[]=resets\
                   &collect[]=retransmits&collect[]=stalls&collect[]=answers&collect[]=states&collect[]=sockets\
                   &collect[]=transfer";

pub(crate) fn labels(bench: &Bench) -> Result<Labels> {
    let inside = Namespace::new("bench-labels")?;
    let running = Running::start(Tool::Tcpwatch, &bench.tcpwatch, &inside, &bench.folder)?;
    // Each port of the load is a set for the client and one for the server.
    bench.load(&inside, &["--workers", "1", "--ports", "600", "--connections", "2400"])?;
    let text = running.get("/metrics")?;
    let sets = text.lines().filter(|line| line.starts_with("tcpwatch_connections_opened_total{")).count();
    ensure!(sets >= SETS, "{sets} label sets of {SETS} are taken");
    let ask = |path| -> Result<(f64, Option<Spread>)> {
        let kib = running.get(path)?.len() as f64 / 1024.0;
        let mut times = Vec::new();
        for _ in 0..QUESTIONS {
            let asked = Instant::now();
            running.get(path)?;
            times.push(asked.elapsed().as_secs_f64() * 1000.0);
        }
        Ok((kib, Spread::of(times)))
    };
    let ((kib, metrics_ms), (all_kib, all_ms)) = (ask("/metrics")?, ask(ALL)?);
    Ok(Labels { sets, kib, metrics_ms, all_kib, all_ms })
}
