//! `/metrics` read back: what is no valid exposition, or has a series twice, fails the test that asked.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::{BTreeMap, BTreeSet};

/// Samples of the Prometheus text format.
#[derive(Debug)]
pub(crate) struct Metrics(Vec<Sample>);

#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    pub(crate) fn parse(text: &str) -> Self {
        Self::check(text).unwrap_or_else(|wrong| panic!("{wrong}"))
    }

    /// The samples, or what is wrong with the text.
    pub(crate) fn check(text: &str) -> Result<Self, String> {
        let (mut samples, mut seen) = (Vec::new(), BTreeSet::new());
        // Each family's type; the family that the lines are of.
        let (mut types, mut current) = (BTreeMap::new(), "");
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or(line)?;
                if types.insert(name, kind).is_some() {
                    return Err(format!("two families are called {name}"));
                }
                current = name;
            } else if !line.starts_with('#') {
                let sample = sample(line).ok_or_else(|| format!("not a sample: {line:?}"))?;
                let is_histogram = types.get(current) == Some(&"histogram");
                let suffix = sample.name.strip_prefix(current);
                let belongs = match suffix {
                    Some("") => !is_histogram,
                    Some("_bucket" | "_sum" | "_count") => is_histogram,
                    _ => false,
                };
                if current.is_empty() || !belongs {
                    return Err(format!("not in its family: {line:?}"));
                }
                if !seen.insert((sample.name.clone(), sample.labels.clone())) {
                    return Err(format!("twice: {line:?}"));
                }
                samples.push(sample);
            }
        }
        let metrics = Self(samples);
        for (name, _) in types.iter().filter(|(_, kind)| **kind == "histogram") {
            metrics.check_histogram(name)?;
        }
        Ok(metrics)
    }

    /// Buckets grow, and the last is the count.
    fn check_histogram(&self, name: &str) -> Result<(), String> {
        let mut buckets: BTreeMap<_, Vec<f64>> = BTreeMap::new();
        for sample in self.0.iter().filter(|sample| sample.name == format!("{name}_bucket")) {
            let mut labels = sample.labels.clone();
            labels.remove("le").ok_or_else(|| format!("{name}: a bucket without a bound"))?;
            buckets.entry(labels).or_default().push(sample.value);
        }
        let counts: BTreeMap<_, _> = self
            .0
            .iter()
            .filter(|sample| sample.name == format!("{name}_count"))
            .map(|sample| (sample.labels.clone(), sample.value))
            .collect();
        for (labels, buckets) in &buckets {
            if !buckets.is_sorted() || buckets.last() != counts.get(labels) {
                return Err(format!("{name}{labels:?}: {buckets:?}"));
            }
        }
        if buckets.len() == counts.len() { Ok(()) } else { Err(format!("{name}: counts without buckets")) }
    }

    /// Each series: its name and labels.
    pub(crate) fn series(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, String>)> {
        self.0.iter().map(|sample| (sample.name.as_str(), &sample.labels))
    }

    /// The sum over the samples that have these labels, `None` where there is none.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<u64> {
        self.values(name, labels).next().map(|_| self.exact(name, labels) as u64)
    }

    /// The same as a fraction; 0 where there is none.
    pub(crate) fn exact(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.values(name, labels).sum()
    }

    fn values(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = f64> {
        let wanted = move |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|is| is == value))
        };
        self.0.iter().filter(wanted).map(|sample| sample.value)
    }
}

/// The path of a scrape of all families, those of connection tracking excepted.
pub(crate) fn all_collectors() -> String {
    let all =
        tcpwatch::http::metrics::family::Collector::ALL.map(tcpwatch::http::metrics::family::Collector::name);
    let parameters: Vec<_> =
        all.iter().filter(|name| **name != "nat").map(|name| format!("collect[]={name}")).collect();
    format!("/metrics?{}", parameters.join("&"))
}

/// `name{label="value",…} 1`
fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = label_value(after)?;
            if labels.insert(label.to_owned(), value).is_some() {
                return None;
            }
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = &rest[1..];
    }
    Some(Sample { name: name.to_owned(), labels, value: rest.strip_prefix(' ')?.parse().ok()? })
}

/// A value up to its closing quote, and what follows that.
fn label_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                _ => return None,
            }),
            c => value.push(c),
        }
    }
    None
}

#[test]
fn what_is_no_exposition_is_found() {
    let valid = "# HELP a b\n# TYPE a counter\na{b=\"c\\\\\\\"\\n,}\",d=\"\"} 1\na{b=\"c\"} 2\n";
    let metrics = Metrics::check(valid).unwrap();
    assert_eq!(metrics.sum("a", &[("b", "c\\\"\n,}"), ("d", "")]), Some(1));
    for wrong in [
        "# TYPE a counter\na 1\na 2\n",
        "# TYPE a counter\na{b=\"c\",d=\"e\"} 1\na{d=\"e\",b=\"c\"} 2\n",
        "# TYPE a counter\na{b=\"c\"d\"} 1\n",
        "# TYPE a counter\na{b=\"c\n\"} 1\n",
        "# TYPE a counter\nb 1\n",
        "# TYPE a counter\na 1\n# TYPE b counter\n# TYPE a counter\n",
        "a 1\n",
        "# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n",
    ] {
        assert!(Metrics::check(wrong).is_err(), "{wrong}");
    }
}
