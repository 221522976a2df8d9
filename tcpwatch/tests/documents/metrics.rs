//! docs/metrics.md, from the table of metric families.

use std::fmt::Write as _;

use tcpwatch::{
    http::metrics::{
        FAMILIES,
        family::{Collector, Family, Kind, LabelValues, Sample, Sets, Value},
    },
    model::groups::Counts,
};

use crate::assert_document;

const INTRODUCTION: &str = r#"# Metrics

What `/metrics` answers, in the Prometheus text format 0.0.4, with gzip where the scraper accepts it. What the values mean in
detail, and which counter of the kernel they equal, is in [measures.md](measures.md).

This document is rendered from the table of metric families (`tcpwatch/src/http/metrics/families.rs`) by `cargo xtask docs`.

## Label sets

Most families have the labels `process`, `role` and `peer`; three values of them are a label set.

| label | value |
|---|---|
| `process` | the name of the local process, never a pid. `~unknown` where the owner is not known, `~empty` for a name without a byte. A name that begins with `~` has another `~` before it: a process called `~other` is `~~other`. A backslash is doubled; bytes that are no UTF-8, control characters and what is not visible read `\xff`. So no two names are counted together, and `comm` in JSON, text and filters is the same |
| `role` | `client`, `server`, `listener`, or `unknown` for a connection older than tcpwatch whose sides look alike |
| `peer` | the server's side of the connection: the address and port that a client dialled, or a server's own port (`:8080`); `~unknown` where `role` is. No label has a remote client's address or an ephemeral port |

There are at most 200 label sets (`--max-label-sets`). A new one takes the place of one that had no connection for ten
minutes: the old one's series end, as with a process that exits. Where there is none, what is new is counted in the label set
`process="~other",role="unknown",peer="~other"`, which has only what was counted there. So `sum(rate(...))` over all label
sets never jumps.

Counters and histograms of a label set exist, with 0, from the moment the set does: `increase()` sees the first reset. Families
of clients are absent from servers. Gauges of held connections are absent where the latest sweep found none, but for
`tcpwatch_held_connections` itself.

## Collectors

The families are collected in groups. A scrape without parameters collects `summary` and `daemon`. As with node_exporter,
`?collect[]=NAME` collects only what it names, and `?exclude[]=NAME` the default without that; either may be repeated, but not
both be given. An unknown name is answered with 400 and the names.

"#;

const AFTER_COLLECTORS: &str = r#"
"Series" are those of one label set of a client and of a server. A default scrape of 200 label sets, half of them clients,
is 1,900 series and at most 100 of the node: about 170 KiB, some 10 KiB with gzip.

A configuration that scrapes the default often and the rest rarely:

```yaml
scrape_configs:
  - job_name: tcpwatch
    static_configs: [{targets: ["node:18279"]}]
  - job_name: tcpwatch-details
    scrape_interval: 5m
    params: {"collect[]": [connects, closes, resets, retransmits, states]}
    static_configs: [{targets: ["node:18279"]}]
```

`?nat=true` adds the collector `nat` to the others: connection tracking is then asked for its translations, which is a walk
through all of its buckets in each network namespace that has connections. It has a place in a job of its own with a long
interval. Without CAP_NET_ADMIN, and in a replay, it has no series.
"#;

/// Series of one label set: those of a client and those of a server.
fn series(family: &Family) -> [usize; 2] {
    if !family.is_of_groups() || (matches!(family.value, Value::OfSets(_)) && !family.labels.is_empty()) {
        return [0, 0];
    }
    let mut lines = 0;
    family.samples(&Counts::default(), &mut |_, sample| {
        lines += match sample {
            Sample::Histogram(view) => view.bounds_ns.len() + 3,
            _ => 1,
        };
    });
    if lines == 0 {
        // A gauge of live connections.
        let values = family.labels.iter().map(|label| match label.values {
            LabelValues::Fixed(values) => values.len(),
            LabelValues::Open(_) => 1,
        });
        lines = values.product();
    }
    [lines, if family.sets == Sets::Clients { 0 } else { lines }]
}

fn buckets(family: &Family) -> Option<String> {
    let mut bounds = None;
    family.samples(&Counts::default(), &mut |_, sample| {
        if let Sample::Histogram(view) = sample {
            bounds = Some(view.bounds_ns);
        }
    });
    let bounds: Vec<_> = bounds?.iter().map(|bound| (*bound as f64 / 1e9).to_string()).collect();
    Some(bounds.join(", "))
}

fn of(collector: Collector) -> impl Iterator<Item = &'static Family> {
    FAMILIES.iter().filter(move |family| family.collector == Some(collector))
}

fn labels(family: &Family) -> String {
    let mut all = Vec::new();
    if family.is_of_groups() {
        all.push("`process` `role` `peer`".to_owned());
    }
    for label in family.labels {
        all.push(match label.values {
            LabelValues::Fixed(values) => {
                let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
                format!("`{}`: {}", label.name, values.join(" "))
            }
            LabelValues::Open(values) => format!("`{}`: {values}", label.name),
        });
    }
    all.join("; ")
}

fn rendered() -> String {
    let mut text = INTRODUCTION.to_owned();
    text += "| collector | answers | default | series |\n|---|---|---|---|\n";
    for collector in Collector::ALL {
        let [clients, servers] =
            of(collector).map(series).fold([0, 0], |sum, one| [sum[0] + one[0], sum[1] + one[1]]);
        let (name, about) = (collector.name(), collector.about());
        let default = if Collector::DEFAULT.contains(&collector) { "yes" } else { "" };
        let series = if clients + servers == 0 { "none".to_owned() } else { format!("{clients}, {servers}") };
        let _ = writeln!(text, "| [`{name}`](#{name}) | {about} | {default} | {series} |");
    }
    text += AFTER_COLLECTORS;
    for collector in Collector::ALL {
        let _ = write!(text, "\n## {}\n\n", collector.name());
        text += "| metric | type | labels | |\n|---|---|---|---|\n";
        for family in of(collector) {
            let (name, kind, help, labels) = (family.name, family.kind.name(), family.help, labels(family));
            let clients = if family.sets == Sets::Clients { "Of clients. " } else { "" };
            let buckets = buckets(family).filter(|_| family.kind == Kind::Histogram);
            let buckets = buckets.map_or(String::new(), |bounds| format!(" Buckets: {bounds}"));
            let _ = writeln!(text, "| `{name}` | {kind} | {labels} | {clients}{help}{buckets} |");
        }
    }
    text
}

#[test]
fn metrics_md_is_the_table_of_families() {
    assert_document("docs/metrics.md", &rendered());
}
