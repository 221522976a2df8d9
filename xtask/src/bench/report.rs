//! The measured values as a document: the budget first, then the tables on which it rests.

use std::fmt::Write as _;

use super::{
    Results,
    churn::Churn,
    loss::Loss,
    scale::Scale,
    stats::{Spread, three_digits},
};

/// One line of the budget.
struct Line {
    measure: &'static str,
    must: &'static str,
    aim: &'static str,
    /// The measured value, and whether it is within each bound; `None` where the part did not run.
    measured: Option<(String, bool, bool)>,
}

/// Missed lines of the budget: what was tried, and the reason, by measure.
const NOTES: [(&str, &str); 4] = [
    (
        "throughput kept, both processors saturated",
        "the cost of the two lines below together; with this load one microsecond a connection is two hundredths. Tried, without a gain beyond noise: offsets as constants of the programs, records put together as words, fewer or smaller queues that stay in the processors' caches, queues read every 15 or 20 ms, records fetched ahead, decoding and applying in one function, the table's links inlined. On Intel processors of 2.3 GHz, where the connection itself costs 33 µs instead of 52, it is 0.88, and was 0.87 before retransmits, stalls and resets were reported (3cbe890, in turns; BPF 2.28 and 2.01 µs, daemon 2.54 and 1.83). Not tried yet: several transitions of one socket in one slot of a queue, as long as it has not been read.",
    ),
    (
        "BPF time for each connection, µs",
        "queues instead of the ring, no program for what is not reported, and reading a socket's cookie instead of calling for it brought it from 4.5 to 1.7; remembering a namespace's number, and reading members from the argument that the verifier trusts, saved some 4 % each. The time stamp that the kernel took of a packet, instead of one more reading of the clock, and records written where they go, brought it from 1.80 to 1.63 (in turns).",
    ),
    (
        "processor time of the daemon for each connection, µs",
        "fewer cache misses brought it from 2.6 to 1.5; keeping together in the indexes what is reported together saved another 7 % (1.64 and 1.53 in turns); decoding records where they stay brought it from 1.90 to 1.59. A row of 192 bytes instead of 256, and ended connections that take the place of the oldest, brought it from 1.78 to 1.71 and from 1.59 to 1.40 (each in turns, medians of nine). Reserving memory for all rows, so that a growing table is not copied, brought it from 1.12 to 1.07, and 8 MiB for records instead of 4, so that the timer comes before a queue is half full, from 1.15 to 1.08 (in turns); that is 4 MiB more of RSS. A seventh of what remains is page faults of a table that fills during the run; huge pages make it worse, and reading the queues more often gains nothing.",
    ),
    (
        "idle with 100,000 sockets, percent of a processor",
        "it was 0.57 while timers woke the daemon 30 times a second and sweeps had a fixed interval.",
    ),
];

pub(super) fn document(results: &Results) -> String {
    let machine = &results.machine;
    let mut text = format!(
        "# Performance\n\nWritten by `cargo xtask bench --write`; not to be edited. Measured {}, commit {}, on {} \
         processors ({}), {:.0} GiB, Linux {}.\n\n",
        machine.date,
        machine.commit,
        machine.processors,
        machine.processor,
        machine.memory_gib,
        machine.kernel
    );
    text += "The unit of the load is one loopback connection: connect, 64 bytes each way, close. That is two \
             sockets and \
             ten calls of `inet_sock_set_state`. Each worker of the load drives both ends of its connections and \
             waits for nobody. So the processors' time makes as many connections as it can, and a tracer's cost \
             shows most. \
             Runs with and without a tool alternate, each in a network namespace of its own with the kernel's \
             defaults; \
             a pair during which somebody else used the processors is discarded and repeated. tcpwatch also \
             follows the \
             connections in TIME_WAIT that a run leaves, up to the kernel's limit for them; their end, a minute \
             later, is not in the values. The machine is \
             shared and virtual: ratios within one run are claims, times are not. Values are medians, with the \
             lowest and the highest in parentheses.\n";
    budget(&mut text, results);
    if let Some(churn) = &results.churn {
        tools(&mut text, churn);
    }
    if let Some(loss) = &results.loss {
        losses(&mut text, loss);
    }
    if let Some(scale) = &results.scale {
        scales(&mut text, scale);
    }
    if let Some(storm) = &results.storm {
        let _ = write!(
            text,
            "\n## A storm of retransmits\n\nBulk transfers over a link that drops one segment of fifty each way, {} \
             retransmits a second: throughput kept {}, {} of the retransmits that the kernel counted were \
             counted, {} records lost, {} ns \
             of BPF time for each retransmit.\n",
            three_digits(storm.retransmits_per_second),
            spread(storm.kept),
            percent(storm.counted),
            storm.lost,
            three_digits(storm.bpf_ns_per_retransmit)
        );
    }
    if let Some(http) = &results.http {
        let _ = write!(
            text,
            "\n## Connections that are kept alive\n\nwrk with 32 connections to nginx: {} requests a second \
             without tcpwatch; with it {} of that rate, and {} of the 99th percentile of the response times.\n",
            spread(http.without_per_second),
            spread(http.kept),
            spread(http.p99_ratio)
        );
    }
    if let Some(labels) = &results.labels {
        let _ = write!(
            text,
            "\n## All label sets in use\n\n`/metrics` with {} label sets, {:.0} KiB: {} ms.\n",
            labels.sets,
            labels.kib,
            spread(labels.metrics_ms)
        );
        if labels.all_ms.is_some() {
            let all = spread(labels.all_ms);
            let _ = writeln!(text, "\nWith every collector but `nat`, {:.0} KiB: {all} ms.", labels.all_kib);
        }
    }
    if let Some(micro) = &results.micro {
        text += "\n## Without a kernel\n\n`cargo bench -p tcpwatch`, medians. A connection is nine records.\n\n| \
             bench | time |\n|---|---|\n";
        for bench in micro {
            let _ = writeln!(text, "| {} | {} |", bench.name, time(bench.median_ns));
        }
    }
    text
}

fn budget(text: &mut String, results: &Results) {
    text.push_str("\n## Budget\n\n| measure | must | aim | measured | |\n|---|---|---|---|---|\n");
    for line in lines(results) {
        let (measured, verdict) = match line.measured {
            None => ("not measured".to_owned(), ""),
            Some((measured, _, true)) => (measured, "aim met"),
            Some((measured, true, false)) => (measured, "met"),
            Some((measured, false, false)) => (measured, "**missed**"),
        };
        let _ =
            writeln!(text, "| {} | {} | {} | {measured} | {verdict} |", line.measure, line.must, line.aim);
    }
    for failure in &results.failures {
        let _ = write!(text, "\nNot measured: {failure}\n");
    }
    for (measure, note) in NOTES {
        let _ = write!(text, "\n**{measure}**: {note}\n");
    }
}

fn lines(results: &Results) -> Vec<Line> {
    let tcpwatch = results.churn.as_ref().and_then(|churn| churn.first());
    let of = |figure: fn(&Churn) -> Option<Spread>| tcpwatch.and_then(figure);
    let at_most = |spread: Option<Spread>, must: f64, aim: f64| {
        spread.map(|spread| (spread.show(three_digits), spread.median <= must, spread.median <= aim))
    };
    let at_least = |spread: Option<Spread>, must: f64, aim: f64| {
        spread.map(|spread| (spread.show(three_digits), spread.median >= must, spread.median >= aim))
    };
    let scale = |sockets: u64| results.scale.as_ref()?.iter().find(|scale| scale.sockets == sockets);
    let million = scale(1_000_000);
    let mut lines = vec![
        Line {
            measure: "throughput kept, both processors saturated",
            must: "≥ 0.95",
            aim: "≥ 0.98",
            measured: at_least(of(|churn| churn.kept), 0.95, 0.98),
        },
        Line {
            measure: "BPF time for each connection, µs",
            must: "≤ 2.0",
            aim: "≤ 1.0",
            measured: at_most(of(|churn| churn.bpf_us), 2.0, 1.0),
        },
        Line {
            measure: "processor time of the daemon for each connection, µs",
            must: "≤ 1.5",
            aim: "≤ 0.6",
            measured: at_most(of(|churn| churn.cpu_us), 1.5, 0.6),
        },
        Line {
            measure: "records lost with as many connections as possible",
            must: "0",
            aim: "0, also after 2 s stopped",
            measured: results.loss.as_deref().and_then(|loss| {
                let at_full_speed: Vec<&Loss> = loss.iter().filter(|run| run.rate.is_none()).collect();
                let (free, stopped) = (at_full_speed.first()?.lost, at_full_speed.last()?.lost);
                Some((format!("{free}; stopped for 2 s {stopped}"), free == 0.0, free + stopped == 0.0))
            }),
        },
        Line {
            measure: "requests kept, connections kept alive",
            must: "≥ 0.99",
            aim: "no difference measurable",
            // No difference beyond the spread of the pairs.
            measured: results.http.as_ref().and_then(|http| http.kept).map(|kept| {
                (kept.show(three_digits), kept.median >= 0.99, kept.median >= 0.99 && kept.most >= 1.0)
            }),
        },
    ];
    for (sockets, measure, must, aim) in [
        (1_000, "RSS with 1,000 sockets, MiB", 25.0, 15.0),
        (100_000, "RSS with 100,000 sockets, MiB", 70.0, 40.0),
        (1_000_000, "RSS with 1,000,000 sockets, MiB", 512.0, 256.0),
    ] {
        let bounds = match sockets {
            1_000 => ["≤ 25", "≤ 15"],
            100_000 => ["≤ 70", "≤ 40"],
            _ => ["≤ 512", "≤ 256"],
        };
        let rss = scale(sockets).and_then(|scale| Spread::of([scale.rss_mib]));
        lines.push(Line { measure, must: bounds[0], aim: bounds[1], measured: at_most(rss, must, aim) });
    }
    lines.extend([
        Line {
            measure: "first sweep of 1,000,000 sockets with owners, s",
            must: "≤ 3",
            aim: "≤ 1",
            measured: at_most(million.and_then(|scale| Spread::of([scale.ready_seconds])), 3.0, 1.0),
        },
        Line {
            measure: "`/leaks` with 1,000,000 sockets, 10,000 of them lingering, ms",
            must: "≤ 50",
            aim: "≤ 5",
            measured: at_most(million.and_then(|scale| scale.leaks_ms), 50.0, 5.0),
        },
        Line {
            measure: "`/metrics` with all label sets in use, ms",
            must: "≤ 20",
            aim: "≤ 5",
            measured: at_most(results.labels.as_ref().and_then(|labels| labels.metrics_ms), 20.0, 5.0),
        },
        Line {
            measure: "idle with 100,000 sockets, percent of a processor",
            must: "≤ 0.5",
            aim: "≤ 0.1",
            measured: at_most(scale(100_000).and_then(|scale| Spread::of([scale.idle_percent])), 0.5, 0.1),
        },
    ]);
    lines
}

fn tools(text: &mut String, churn: &[Churn]) {
    text.push_str(
        "\n## Beside other tools\n\nAs many connections as two processors can make. Lost: records of tcpwatch, \
         printed \
         lines of the others; `ss` sees only connections that exist when it runs.\n\n| tool | throughput kept | \
         p99 | processor time for each \
         connection, µs | BPF time, µs | lost, % | RSS, MiB |\n|---|---|---|---|---|---|---|\n",
    );
    for tool in churn {
        if let Some(error) = &tool.error {
            let _ = writeln!(
                text,
                "| {} | could not be measured: {} | | | | | |",
                tool.tool,
                error.replace('|', "/")
            );
            continue;
        }
        let lost =
            tool.lost.map_or_else(|| "–".to_owned(), |lost| lost.show(|share| three_digits(share * 100.0)));
        let _ = writeln!(
            text,
            "| {} | {} | × {} | {} | {} | {lost} | {} |",
            tool.tool,
            spread(tool.kept),
            spread(tool.p99_ratio),
            spread(tool.cpu_us),
            spread(tool.bpf_us),
            spread(tool.rss_mib)
        );
    }
    if let Some(tcpwatch) = churn.first() {
        text.push_str("\ntcpwatch's programs, slowest first:");
        for program in &tcpwatch.programs {
            let _ = write!(
                text,
                " {} runs a connection of {:.0} ns;",
                three_digits(program.runs_per_connection),
                program.ns_per_run
            );
        }
        let _ = writeln!(
            text,
            " an empty program measures some 33 ns, mostly the statistics' own clock. \
             The kernel counts from a program's beginning to its end. A reader that a program wakes, and that \
             runs on the same processor before the program ends, is counted too: for tools that wake a reader for \
             each record, that is much of their time. Without a tool the machine \
             made {} connections a second.",
            spread(tcpwatch.without_per_second)
        );
        let disturbed: usize = churn.iter().map(|tool| tool.disturbed).sum();
        let _ = writeln!(text, "{disturbed} pairs were discarded.");
    }
}

fn losses(text: &mut String, losses: &[Loss]) {
    text.push_str(
        "\n## Loss\n\nComplete: from the end of the load until answers were complete. Equal: until the table had \
         as many connections as `ss` lists, nearly all of them in TIME_WAIT; checked for 30 s.\n\n| load | \
         connections a second | records | lost | complete after, s | equal after, s | connections, `ss` |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for loss in losses {
        let _ = writeln!(
            text,
            "| {} | {:.0} | {} | {} | {:.1} | {} | {}, {} |",
            loss.what,
            loss.per_second,
            loss.records,
            loss.lost,
            loss.complete_after_seconds,
            loss.equal_after_seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds:.1}")),
            loss.connections[0],
            loss.connections[1]
        );
    }
}

fn scales(text: &mut String, scales: &[Scale]) {
    text.push_str(
        "\n## Scale\n\nOpen sockets; one pair of fifty is half closed, with its server in CLOSE_WAIT. Idle: with \
         no connection in TIME_WAIT and no questions, from one sweep to the next, for 120 s at most; in \
         parentheses the number of sweeps in that time. Ready: from the start of the process until all sockets \
         are known with their owners. `ss -tanp` goes through all processes for each socket, so it was not tried \
         with more than 100,000.\n\n| sockets | RSS (at most), MiB | ready after (processor time), s | `/leaks`, \
         ms | \
         `/connections`, ms | `/metrics`, ms | idle (sweeps), % | `ss -tanp`, s | `/proc/net/tcp`, s |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for scale in scales {
        let _ = writeln!(
            text,
            "| {} | {:.0} ({:.0}) | {:.2} ({:.2}) | {} | {} | {} | {} | {} | {:.2} |",
            scale.sockets,
            scale.rss_mib,
            scale.most_mib,
            scale.ready_seconds,
            scale.ready_cpu_seconds,
            spread(scale.leaks_ms),
            spread(scale.connections_ms),
            spread(scale.metrics_ms),
            format_args!("{} ({})", three_digits(scale.idle_percent), scale.idle_sweeps),
            scale.ss_seconds.map_or_else(|| "–".to_owned(), three_digits),
            scale.proc_net_tcp_seconds
        );
    }
}

fn spread(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "–".to_owned(), |spread| spread.show(three_digits))
}

fn percent(share: f64) -> String {
    format!("{} %", three_digits(share * 100.0))
}

fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ns if ns < 1e3 => format!("{} ns", three_digits(ns)),
        ns if ns < 1e6 => format!("{} µs", three_digits(ns / 1e3)),
        ns => format!("{} ms", three_digits(ns / 1e6)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::document;
    use crate::{
        bench::{DOCUMENT, FIGURES},
        command,
    };

    #[test]
    fn the_document_is_what_its_values_make() {
        let committed = |file| fs::read_to_string(command::repository().join(file)).unwrap();
        let results = serde_json::from_str(&committed(FIGURES)).unwrap();
        assert!(
            document(&results) == committed(DOCUMENT),
            "{DOCUMENT} is not what {FIGURES} makes: change the text in report.rs, and the document with it"
        );
    }
}
