//! The cost of a tool on a machine that makes as many connections as it can.
//!
//! In: the tool. Out: the throughput with and without it, in pairs; the tool's processor time and the kernel's BPF time
//! for each connection; the share that it reported of what it should have reported.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{
    Bench, Pairs,
    machine::{self, BpfStats, Foreign, ProgramTime},
    stats::Spread,
    tool::{Running, Tool},
};
use crate::{load::Report, namespace::Namespace};

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Churn {
    pub(crate) tool: String,
    /// Ratio of the throughputs with and without the tool, pair by pair.
    pub(crate) kept: Option<Spread>,
    pub(crate) without_per_second: Option<Spread>,
    /// Ratio of the durations of the whole unit, with and without the tool.
    pub(crate) p99_ratio: Option<Spread>,
    pub(crate) cpu_us: Option<Spread>,
    pub(crate) bpf_us: Option<Spread>,
    /// By program, slowest first, from the last run.
    pub(crate) programs: Vec<ProgramCost>,
    /// Share that it reported of what it should have reported.
    pub(crate) lost: Option<Spread>,
    pub(crate) rss_mib: Option<Spread>,
    /// Pairs thrown away because somebody else used the processors.
    pub(crate) disturbed: usize,
    /// The reason why it could not be measured.
    pub(crate) error: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct ProgramCost {
    pub(crate) runs_per_connection: f64,
    pub(crate) ns_per_run: f64,
}

/// One run of the load beside a tool.
struct With {
    report: Report,
    foreign: f64,
    cpu_us: f64,
    lost: Option<f64>,
    rss_mib: f64,
    programs: Vec<ProgramTime>,
}

pub(crate) fn churn(bench: &Bench, tool: Tool) -> Churn {
    let mut churn = Churn {
        tool: tool.name().to_owned(),
        kept: None,
        without_per_second: None,
        p99_ratio: None,
        cpu_us: None,
        bpf_us: None,
        programs: Vec::new(),
        lost: None,
        rss_mib: None,
        disturbed: 0,
        error: None,
    };
    if let Err(error) = measure(bench, tool, &mut churn) {
        eprintln!("{}: {error:#}", tool.name());
        churn.error = Some(format!("{error:#}"));
    }
    churn
}

fn measure(bench: &Bench, tool: Tool, churn: &mut Churn) -> Result<()> {
    let pairs = if tool == Tool::Tcpwatch { bench.pairs } else { bench.pairs.div_ceil(2) };
    let Pairs { kept, disturbed } = bench.pairs(pairs, || {
        let (without, foreign) = run_without(bench)?;
        let with = run_with(bench, tool)?;
        eprintln!(
            "{}: {:.0} and {:.0} connections a second",
            tool.name(),
            without.per_second,
            with.report.per_second
        );
        let foreign = foreign.max(with.foreign);
        Ok(((without, with), foreign))
    })?;
    churn.disturbed = disturbed;
    churn.kept = Spread::of(kept.iter().map(|(without, with)| with.report.per_second / without.per_second));
    churn.without_per_second = Spread::of(kept.iter().map(|(without, _)| without.per_second));
    churn.p99_ratio = Spread::of(
        kept.iter().map(|(without, with)| with.report.p99_us as f64 / without.p99_us.max(1) as f64),
    );
    churn.cpu_us = Spread::of(kept.iter().map(|(_, with)| with.cpu_us));
    churn.rss_mib = Spread::of(kept.iter().map(|(_, with)| with.rss_mib));
    churn.lost = Spread::of(kept.iter().filter_map(|(_, with)| with.lost));
    if tool != Tool::Ss {
        // Not in the same runs, as the statistics cost time themselves.
        let _stats = BpfStats::on()?;
        let runs = (0..bench.pairs.div_ceil(2)).map(|_| run_with(bench, tool)).collect::<Result<Vec<_>>>()?;
        let us = |with: &With| {
            let ns: u64 = with.programs.iter().map(|program| program.run_time_ns).sum();
            ns as f64 / 1000.0 / with.report.connections as f64
        };
        churn.bpf_us = Spread::of(runs.iter().map(us));
        if let Some(with) = runs.last() {
            churn.programs = costs(with);
        }
    }
    Ok(())
}

fn costs(with: &With) -> Vec<ProgramCost> {
    let mut ran: Vec<_> = with.programs.iter().filter(|program| program.runs > 0).collect();
    ran.sort_by_key(|program| std::cmp::Reverse(program.run_time_ns));
    ran.into_iter()
        .map(|program| ProgramCost {
            runs_per_connection: program.runs as f64 / with.report.connections as f64,
            ns_per_run: program.run_time_ns as f64 / program.runs as f64,
        })
        .collect()
}

/// Each run has a namespace of its own: TIME_WAITs of one run would slow the next.
fn run_without(bench: &Bench) -> Result<(Report, f64)> {
    let inside = Namespace::new("bench-churn")?;
    machine::settle()?;
    let foreign = Foreign::watch()?;
    let report = bench.load(&inside, &[])?;
    Ok((report, foreign.share()?))
}

fn run_with(bench: &Bench, tool: Tool) -> Result<With> {
    let inside = Namespace::new("bench-churn")?;
    let running = Running::start(tool, &bench.tcpwatch, &inside, &bench.folder)?;
    machine::settle()?;
    let (cpu, foreign) = (running.cpu_seconds()?, Foreign::watch()?);
    let programs = machine::bpf_time(running.pid())?;
    let report = bench.load(&inside, &[])?;
    let cpu = running.cpu_seconds()? - cpu;
    let foreign = foreign.share()?;
    let rss_mib = machine::memory_mib(running.pid(), "VmRSS")?;
    let programs = since(&programs, machine::bpf_time(running.pid())?);
    let lost_records = if tool == Tool::Tcpwatch {
        let received = running.metric("tcpwatch_records_received_total")?;
        let lost = running.metric("tcpwatch_records_lost_total")?;
        Some(lost / (lost + received).max(1.0))
    } else {
        None
    };
    let lines = running.stop().context("stopping the tool")?;
    let unprinted = tool.lines_per_connection().map(|each| {
        let expected = (each * report.connections) as f64;
        (1.0 - lines as f64 / expected).max(0.0)
    });
    Ok(With {
        cpu_us: cpu * 1e6 / report.connections as f64,
        lost: lost_records.or(unprinted),
        report,
        foreign,
        rss_mib,
        programs,
    })
}

fn since(before: &[ProgramTime], now: Vec<ProgramTime>) -> Vec<ProgramTime> {
    let passed = |program: ProgramTime| {
        let earlier = before.iter().find(|earlier| earlier.id == program.id);
        earlier.map_or(program, |earlier| ProgramTime {
            id: program.id,
            run_time_ns: program.run_time_ns - earlier.run_time_ns,
            runs: program.runs - earlier.runs,
        })
    };
    now.into_iter().map(passed).collect()
}
