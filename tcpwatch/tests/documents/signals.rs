//! docs/signals.md, from the tables of signals and ways.

use tcpwatch::kernel::probes::{Signal, Way};

use crate::assert_document;

const INTRODUCTION: &str = r"# Signals and ways

<!-- Rendered by tcpwatch/tests/documents/signals.rs; `cargo xtask docs` writes it anew. -->

What tcpwatch can know is a list of *signals*. Each signal has an ordered list of *ways* to get it, best first. At the start
tcpwatch takes the first way of which this kernel loads and attaches every program. The kernel's version decides nothing,
except that tcpwatch refuses a kernel before 5.8. `--hook SIGNAL=WAY` leaves one way for a signal.

`tcpwatch check` shows which way is taken for each signal on your kernel and what is missing without a better one
([requirements.md](requirements.md#tcpwatch-check)). [kernel-support.md](kernel-support.md) shows the same for Debian's kernels.

## Ways

A row `none` says what is missing where every way fails. A version of Linux is the first that has the hook.

| signal | way | attached to, or inferred | what is missing or less exact |
|---|---|---|---|
";

const NOTES: &str = r"
`out_of_order` is the exception to *best first*: `fexit` runs for many of the segments that are received, so it is taken only
when it is asked for. Where a way has several functions, all are attached or none.

A kprobe that would run inside another probe on the same processor is skipped, uncounted, and the kernel follows only a
limited number of returns of a kretprobe at once. So both come after the ways that do the same better.

## What each way needs

`tp_btf`, `fentry`, `fexit` and `iter` need the types that the kernel itself publishes: the verifier checks every load
against them. `raw_tp` and the kprobes need only offsets, which `--btf FILE` can give. `tracepoint` needs no types: tracefs
describes its record.

## What identifies a socket

A tracing program may ask for a socket's cookie from Linux 5.12 on. Where the way of state changes does not allow it
(before 5.12, and in `raw_tp`, `kprobe` and `tracepoint` on any kernel), sockets are identified by their address, with a
secret added that is new at each start. The kernel reuses an address when its socket is gone. So a connection of which
only a minisock is left is found by its ends alone, and `id` is made of the address and the time when the connection began.
`/status` and `tcpwatch check` report which identity is in use. All signals use the same one; they are never mixed.
";

#[test]
fn every_signal_and_way_is_in_the_document() {
    let rows: String = Signal::ALL.into_iter().map(rows).collect();
    assert_document("docs/signals.md", &format!("{INTRODUCTION}{rows}{NOTES}"));
}

fn rows(signal: Signal) -> String {
    let spec = signal.spec();
    let mut ways: Vec<&Way> = spec.ways.iter().collect();
    // Several programs for one hook.
    ways.dedup_by_key(|way| way.hook());
    let mut label = format!("`{signal}`: {}", spec.title);
    let mut text = String::new();
    for way in ways {
        let since = way.since.map_or(String::new(), |linux| format!(" (Linux {linux})"));
        let cells = [
            std::mem::take(&mut label),
            format!("`{}`", way.kind()),
            format!("{}{since}", way.target()),
            way.lost.unwrap_or_default().to_owned(),
        ];
        text += &format!("| {} |\n", cells.join(" | "));
    }
    // What is inferred cannot fail.
    if spec.ways.last().is_none_or(|way| way.lost != Some(spec.lost)) {
        text += &format!("|  | none |  | {} |\n", spec.lost);
    }
    text
}
