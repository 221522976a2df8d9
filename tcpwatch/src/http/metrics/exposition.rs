//! Families written in the Prometheus text format, straight from the counts.

use std::fmt::Write as _;

use crate::{
    http::metrics::family::{Collector, Family, LabelValues, Sample, Scrape, Value, View},
    model::groups::{Group, GroupKey},
};

/// All families of these collectors but the registered ones.
pub(super) fn write<'a>(
    text: &mut String,
    families: impl IntoIterator<Item = &'a Family>,
    collectors: &[Collector],
    scrape: &Scrape<'_>,
) {
    let groups: Vec<(String, &Group)> =
        scrape.node.tracker.groups().iter().map(|group| (labels(&group.key), group)).collect();
    for family in families {
        if family.collector.is_some_and(|collector| collectors.contains(&collector)) {
            write_family(text, family, scrape, &groups);
        }
    }
}

fn write_family(text: &mut String, family: &Family, scrape: &Scrape<'_>, groups: &[(String, &Group)]) {
    let mut lines = Lines { text, family, begun: false, bounds: None };
    match family.value {
        Value::Registered => {}
        Value::OfNode(samples) => samples(scrape, &mut |values, sample| lines.sample("", values, sample)),
        Value::OfSets(samples) => samples(scrape, &mut |set, values, sample| {
            lines.sample(&labels(scrape.node.tracker.groups().key(set)), values, sample);
        }),
        Value::OfGroup(value) => {
            for (labels, group) in groups {
                if let Some(value) = value(group) {
                    lines.sample(labels, &[], Sample::Int(value));
                }
            }
        }
        Value::Of(_) | Value::By(_) | Value::Each(_) => {
            for (labels, group) in groups {
                let from_the_start = family.sets.has(&group.key);
                family.samples(&group.counts, &mut |values, sample| {
                    if from_the_start || !sample.is_zero() {
                        lines.sample(labels, values, sample);
                    }
                });
            }
        }
    }
}

struct Lines<'a> {
    text: &'a mut String,
    family: &'a Family,
    begun: bool,
    /// The bounds of the family's buckets, and as label values.
    bounds: Option<(&'static [u64], Vec<String>)>,
}

impl Lines<'_> {
    fn sample(&mut self, group: &str, values: &[&str], sample: Sample<'_>) {
        if !self.begun {
            let Family { name, help, kind, .. } = self.family;
            let (help, kind) = (escape_help(help), kind.name());
            let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            self.begun = true;
        }
        match sample {
            Sample::Int(value) => {
                self.series("", group, values, None);
                let _ = writeln!(self.text, " {value}");
            }
            Sample::Float(value) => {
                self.series("", group, values, None);
                let _ = writeln!(self.text, " {value}");
            }
            Sample::Histogram(view) => self.histogram(group, values, &view),
        }
    }

    fn histogram(&mut self, group: &str, values: &[&str], view: &View<'_>) {
        let bounds = match self.bounds.take() {
            Some((bounds, texts)) if bounds == view.bounds_ns => texts,
            _ => view.bounds_ns.iter().map(|bound| (*bound as f64 / 1e9).to_string()).collect(),
        };
        let mut below = 0;
        for (at, bound) in bounds.iter().map(String::as_str).chain(["+Inf"]).enumerate() {
            below += view.bucket(at);
            self.series("_bucket", group, values, Some(bound));
            let _ = writeln!(self.text, " {below}");
        }
        self.bounds = Some((view.bounds_ns, bounds));
        self.series("_sum", group, values, None);
        let _ = writeln!(self.text, " {}", view.sum_seconds());
        self.series("_count", group, values, None);
        let _ = writeln!(self.text, " {below}");
    }

    /// `name_suffix{labels}`
    fn series(&mut self, suffix: &str, group: &str, values: &[&str], le: Option<&str>) {
        let text = &mut *self.text;
        text.push_str(self.family.name);
        text.push_str(suffix);
        let mut separator = "{";
        if !group.is_empty() {
            text.push('{');
            text.push_str(group);
            separator = ",";
        }
        for (label, value) in self.family.labels.iter().zip(values) {
            text.push_str(separator);
            text.push_str(label.name);
            text.push_str("=\"");
            match label.values {
                LabelValues::Fixed(_) => text.push_str(value),
                LabelValues::Open(_) => push_escaped(text, value),
            }
            text.push('"');
            separator = ",";
        }
        if let Some(le) = le {
            text.push_str(separator);
            text.push_str("le=\"");
            text.push_str(le);
            text.push('"');
            separator = ",";
        }
        if separator == "," {
            text.push('}');
        }
    }
}

/// `process`, `role` and `peer`. A process that is not known, or that found no place of its own, has a value that no name
/// has as its text (`events/comm.rs`).
fn labels(key: &GroupKey) -> String {
    let mut text = String::from("process=\"");
    push_escaped(&mut text, key.shown_process().as_deref().unwrap_or("~unknown"));
    let _ = write!(text, "\",role=\"{}\",peer=\"{}\"", key.role, key.peer);
    text
}

/// A label value as the text format wants it.
fn push_escaped(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}

fn escape_help(help: &str) -> String {
    help.replace('\\', "\\\\").replace('\n', "\\n")
}
