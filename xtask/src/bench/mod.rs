//! `cargo xtask bench`: what tcpwatch costs, beside other tools, in one run.
//!
//! `load` makes the connections, `tool` starts the measured programs, `machine` watches the processors, `report` writes
//! the document; each part has a file. Machines are shared and noisy: only ratios within one run count.

mod churn;
mod http;
mod labels;
mod loss;
mod machine;
mod micro;
mod report;
mod scale;
mod stats;
mod storm;
mod tool;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use self::{machine::Machine, tool::Tool};
use crate::{command, debian, load::Report, namespace::Namespace, stop};

const DOCUMENT: &str = "docs/performance.md";
const FIGURES: &str = "docs/performance.json";

/// Measure what tcpwatch costs, beside other tools
///
/// Runs as root, in network namespaces of its own, on loopback only. Installs what it compares with and this machine
/// lacks (libbpf-tools, bpftrace, iproute2, util-linux, nftables, wrk; nginx is only unpacked) with apt-get, saying
/// so. Of each comparison the runs with and without alternate; a pair that somebody else's use of the processors
/// disturbed is thrown away and made again. All parts take some half an hour.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which parts; all when none is given
    #[arg(value_enum)]
    parts: Vec<Part>,

    /// How many pairs of runs with and without tcpwatch; of its peers half as many
    #[arg(long, default_value_t = 7)]
    pairs: usize,

    /// How long each run is
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,

    /// Share of the processors' time that somebody else may use during a run
    #[arg(long, value_name = "SHARE", default_value_t = 0.03)]
    foreign: f64,

    /// Live sockets of the part scale
    #[arg(long, value_name = "SOCKETS", value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000, 1_000_000])]
    scales: Vec<u64>,

    /// Write the figures to docs/performance.json and the tables to docs/performance.md
    #[arg(long, conflicts_with = "parts")]
    write: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Throughput, processor time, BPF time and loss of each tool, under as many connections as can be
    Churn,
    /// What tcpwatch loses, at rising rates and starved
    Loss,
    /// Memory, first sweep and answers with up to a million sockets
    Scale,
    /// Answers of /metrics with all label sets taken
    Labels,
    /// Retransmits by the thousand
    Storm,
    /// nginx and wrk over connections that are kept alive
    Http,
    /// Criterion's benches of decode, order, table and answers
    Micro,
}

/// Programs that all parts run, and their Debian packages.
const TOOLS: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("ss", "iproute2"),
    ("nsenter", "util-linux"),
    ("taskset", "util-linux"),
    ("sysctl", "procps"),
    ("nft", "nftables"),
    ("tcpstates", "libbpf-tools"),
    ("tcplife", "libbpf-tools"),
    ("bpftrace", "bpftrace"),
];

/// Pairs to try, for each wanted pair, before giving up.
const ATTEMPTS: usize = 3;

/// State that all parts need.
struct Bench {
    tcpwatch: PathBuf,
    folder: PathBuf,
    pairs: usize,
    seconds: f64,
    foreign: f64,
    scales: Vec<u64>,
}

/// Measurements with and without a tool.
struct Pairs<T> {
    kept: Vec<T>,
    /// Pairs that were thrown away because somebody else used the processors.
    disturbed: usize,
}

/// All measured values, as in the JSON document; parts that were not requested, or failed, are `null`.
#[derive(Debug, Deserialize, Serialize)]
struct Results {
    machine: Machine,
    churn: Option<Vec<churn::Churn>>,
    loss: Option<Vec<loss::Loss>>,
    scale: Option<Vec<scale::Scale>>,
    labels: Option<labels::Labels>,
    storm: Option<storm::Storm>,
    http: Option<http::Http>,
    micro: Option<Vec<micro::Micro>>,
    /// Parts that could not be measured, and why.
    failures: Vec<String>,
}

pub(crate) fn bench(args: &Args) -> Result<()> {
    ensure!(command::is_root()?, "this measures BPF programs and makes network namespaces: run it as root");
    ensure!(args.pairs > 0 && args.seconds > 0.0, "nothing is measured by no pairs or in no time");
    debian::install_missing(&TOOLS, "the benchmark")?;
    let mut build = command::cargo();
    build.args(["build", "--release", "--package", "tcpwatch", "--bin", "tcpwatch", "--locked"]);
    let [tcpwatch] = command::build_executables(&mut build, ["tcpwatch"])?;
    let folder = command::target_directory()?.join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let bench = Bench {
        tcpwatch,
        folder,
        pairs: args.pairs,
        seconds: args.seconds,
        foreign: args.foreign,
        scales: args.scales.clone(),
    };
    let began = Instant::now();
    stop::stop_at_signals()?;
    let results = measure(&bench, &args.parts)?;
    ensure!(!stop::stopped(), "stopped by a signal");
    let document = report::document(&results);
    println!("{document}");
    let figures = serde_json::to_string_pretty(&results).context("writing the figures")? + "\n";
    fs::write(bench.folder.join("figures.json"), &figures).context("writing the figures")?;
    if args.write {
        for (file, text) in [(DOCUMENT, &document), (FIGURES, &figures)] {
            fs::write(command::repository().join(file), text).with_context(|| format!("writing {file}"))?;
            println!("Wrote {file}");
        }
    }
    eprintln!("xtask bench: {} s", began.elapsed().as_secs());
    ensure!(results.failures.is_empty(), "not measured: {}", results.failures.join("; "));
    Ok(())
}

/// Measures the named parts, or all. A part that fails leaves the values of the others.
fn measure(bench: &Bench, parts: &[Part]) -> Result<Results> {
    let tools = || std::iter::once(Tool::Tcpwatch).chain(Tool::PEERS);
    let mut failures = Vec::new();
    Ok(Results {
        machine: Machine::this()?,
        churn: part(parts, Part::Churn, &mut failures, || {
            Ok(tools().map(|tool| churn::churn(bench, tool)).collect())
        }),
        http: part(parts, Part::Http, &mut failures, || http::http(bench)),
        storm: part(parts, Part::Storm, &mut failures, || storm::storm(bench)),
        labels: part(parts, Part::Labels, &mut failures, || labels::labels(bench)),
        loss: part(parts, Part::Loss, &mut failures, || loss::loss(bench)),
        scale: part(parts, Part::Scale, &mut failures, || scale::scale(bench)),
        micro: part(parts, Part::Micro, &mut failures, micro::micro),
        failures,
    })
}

fn part<T>(
    wanted: &[Part],
    part: Part,
    failures: &mut Vec<String>,
    measure: impl FnOnce() -> Result<T>,
) -> Option<T> {
    if stop::stopped() || !(wanted.is_empty() || wanted.contains(&part)) {
        return None;
    }
    eprintln!("== {part:?}");
    match measure() {
        Ok(figures) => Some(figures),
        Err(error) => {
            eprintln!("{part:?}: {error:#}");
            failures.push(format!("{part:?}: {error:#}"));
            None
        }
    }
}

impl Bench {
    /// Makes the wanted number of pairs. `pair` returns each with the share of the processors that somebody else used
    /// in the meantime.
    fn pairs<T>(&self, wanted: usize, mut pair: impl FnMut() -> Result<(T, f64)>) -> Result<Pairs<T>> {
        let mut pairs = Pairs { kept: Vec::new(), disturbed: 0 };
        while pairs.kept.len() < wanted && pairs.kept.len() + pairs.disturbed < wanted * ATTEMPTS {
            let (figures, foreign) = pair()?;
            if foreign > self.foreign {
                eprintln!("thrown away: others used {:.1} % of the processors", foreign * 100.0);
                pairs.disturbed += 1;
            } else {
                pairs.kept.push(figures);
            }
        }
        ensure!(
            !pairs.kept.is_empty(),
            "others used more than {:.1} % of the processors in each of {} pairs: stop them, or allow more with \
             --foreign",
            self.foreign * 100.0,
            pairs.disturbed
        );
        Ok(pairs)
    }

    /// One run of the load: as many connections as possible, unless `options` say otherwise.
    fn load(&self, inside: &Namespace, options: &[&str]) -> Result<Report> {
        let mut load = inside.command(command::xtask()?);
        load.args(["load", "--seconds", &self.seconds.to_string()]).args(options);
        let report: Report =
            serde_json::from_str(&command::output(&mut load)?).context("reading what the load said")?;
        ensure!(
            report.failures == 0 && report.connections > 0,
            "{} of the load's connections failed: {}",
            report.failures,
            report.first_failure.as_deref().unwrap_or("there were none")
        );
        // Gives records on their way time to arrive.
        stop::sleep(Duration::from_millis(300))?;
        Ok(report)
    }
}
