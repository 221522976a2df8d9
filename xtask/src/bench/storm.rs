//! A storm of retransmits: bulk transfers through a link that drops segments at random.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{
    Bench, Pairs,
    machine::{self, BpfStats, Foreign},
    stats::Spread,
    tool::{Running, Tool},
};
use crate::{command, load::Report, namespace::Namespace, stop};

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Storm {
    /// Ratio of the throughputs with and without tcpwatch, pair by pair.
    pub(crate) kept: Option<Spread>,
    pub(crate) retransmits_per_second: f64,
    /// Ratio of the segments that tcpwatch counted to the kernel's own count.
    pub(crate) counted: f64,
    pub(crate) bpf_ns_per_retransmit: f64,
    pub(crate) lost: f64,
    /// Pairs thrown away because somebody else used the processors.
    pub(crate) disturbed: usize,
}

/// One segment in this many is dropped.
const ONE_IN: u32 = 50;
const BYTES: &str = "1000000";
const SERVER: &str = "10.201.0.2";
const PORT: &str = ":9000";

pub(crate) fn storm(bench: &Bench) -> Result<Storm> {
    let Pairs { kept, disturbed } = bench.pairs(bench.pairs.div_ceil(2), || {
        let foreign = Foreign::watch()?;
        let without = transfers(bench, &link()?)?.per_second;
        let ends = link()?;
        let running = Running::start(Tool::Tcpwatch, &bench.tcpwatch, &ends[0], &bench.folder)?;
        let with = transfers(bench, &ends)?.per_second;
        running.stop()?;
        eprintln!("storm: {without:.0} and {with:.0} MB/s");
        Ok((with / without, foreign.share()?))
    })?;
    let ends = link()?;
    let running = Running::start(Tool::Tcpwatch, &bench.tcpwatch, &ends[0], &bench.folder)?;
    let stats = BpfStats::on()?;
    let report = transfers(bench, &ends)?;
    let ns: u64 = machine::bpf_time(running.pid())?.iter().map(|program| program.run_time_ns).sum();
    drop(stats);
    let kernel = ends.iter().map(retransmitted).sum::<Result<f64>>()?;
    // The daemon reads the BPF programs' counts once a second.
    stop::sleep(Duration::from_secs(3))?;
    let counted = running.metric_of("tcpwatch_retransmits_total", &format!("{PORT}\""))?;
    Ok(Storm {
        kept: Spread::of(kept),
        retransmits_per_second: kernel / report.seconds,
        counted: counted / kernel.max(1.0),
        bpf_ns_per_retransmit: ns as f64 / kernel.max(1.0),
        lost: running.metric("tcpwatch_records_lost_total")?,
        disturbed,
    })
}

/// Two namespaces and a link between them that drops segments in both directions.
fn link() -> Result<[Namespace; 2]> {
    let ends = [Namespace::new("bench-storm-a")?, Namespace::new("bench-storm-b")?];
    let [a, b] = &ends;
    command::output(Command::new("ip").args([
        "-n", &a.name, "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", &b.name,
    ]))?;
    for (end, address) in [(a, "10.201.0.1/24"), (b, "10.201.0.2/24")] {
        let ip =
            |arguments: &[&str]| command::output(Command::new("ip").args(["-n", &end.name]).args(arguments));
        ip(&["addr", "add", address, "dev", "veth0"])?;
        // Packets as small as on a wire: otherwise the loss of one would be a loss of forty segments.
        ip(&["link", "set", "veth0", "gso_max_segs", "1"])?;
        ip(&["link", "set", "veth0", "up"])?;
        let drop = format!(
            "add table ip loss; add chain ip loss in {{ type filter hook input priority 0; }}; \
             add rule ip loss in iifname veth0 numgen random mod {ONE_IN} == 0 drop"
        );
        command::output(end.command("nft").arg(&drop))?;
    }
    Ok(ends)
}

/// This load's unit is megabytes each way.
fn transfers(bench: &Bench, [a, b]: &[Namespace; 2]) -> Result<Report> {
    machine::settle()?;
    let address = format!("{SERVER}{PORT}");
    let mut server = b.command(command::xtask()?);
    let longer = (bench.seconds + 30.0).to_string();
    server.args(["load", "--workers", "8", "--bytes", BYTES, "--serve", &address, "--seconds", &longer]);
    let mut server =
        server.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("starting the server")?;
    while !command::output(b.command("ss").args(["-Htln"]))?.contains(PORT) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let report = bench.load(a, &["--workers", "8", "--bytes", BYTES, "--connect", &address]);
    server.kill().context("stopping the server")?;
    server.wait().context("stopping the server")?;
    report
}

fn retransmitted(end: &Namespace) -> Result<f64> {
    let snmp = command::output(end.command("cat").arg("/proc/thread-self/net/snmp"))?;
    let mut tcp = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (tcp.next().unwrap_or(""), tcp.next().unwrap_or(""));
    let mut columns = names.split(' ').zip(values.split(' '));
    let (_, value) =
        columns.find(|(name, _)| *name == "RetransSegs").context("no RetransSegs in /proc/net/snmp")?;
    value.parse().context("reading RetransSegs")
}
