//! The report of `tcpwatch check --json`, compared with what is expected of the kernel.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::support::{Forced, Series, WAYS};

#[derive(Debug, Deserialize)]
pub(crate) struct Check {
    pub(crate) verdict: Verdict,
    pub(crate) signals: Vec<Signal>,
    pub(crate) programs: Vec<Program>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Full,
    Reduced,
    Unusable,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Signal {
    /// As `--hook` names it.
    pub(crate) key: String,
    /// The signal's name for people.
    pub(crate) signal: String,
    /// Its first word is the way; none where the signal is lost.
    pub(crate) hook: Option<String>,
    pub(crate) tried: Vec<Tried>,
    /// What is less exact.
    pub(crate) lost: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Tried {
    pub(crate) hook: String,
    pub(crate) error: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Program {
    pub(crate) program: String,
    pub(crate) hook: String,
    /// Instructions that the verifier went through; `None` on kernels before 5.16, which do not report it.
    pub(crate) verified_instructions: Option<u64>,
}

impl Verdict {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Reduced => "reduced",
            Self::Unusable => "unusable",
        }
    }

    fn exit_code(self) -> i32 {
        match self {
            Self::Full => 0,
            Self::Reduced => 1,
            Self::Unusable => 2,
        }
    }
}

impl Check {
    /// Reads the answer from the program's output, which includes its log.
    pub(crate) fn parse(printed: &str) -> Result<Self> {
        let json = printed.lines().find(|line| line.starts_with('{'));
        let json = json.with_context(|| format!("no JSON in what `tcpwatch check` printed: {printed}"))?;
        serde_json::from_str(json).with_context(|| format!("reading what `tcpwatch check` printed: {json}"))
    }

    /// The differences from the table; `forced` are the ways that were asked for.
    pub(crate) fn faults(&self, exit_code: i32, series: &Series, forced: Option<&Forced>) -> Vec<String> {
        let mut faults = Vec::new();
        if exit_code != self.verdict.exit_code() {
            faults.push(format!(
                "`tcpwatch check` says {}, but its exit code is {exit_code}",
                self.verdict.name()
            ));
        }
        if forced.is_none() && self.verdict != series.verdict {
            faults.push(format!("{} expected, {} found", series.verdict.name(), self.verdict.name()));
        }
        for (key, _) in WAYS {
            let asked = forced.and_then(|forced| forced.hooks.iter().find(|(of, _)| *of == key));
            // Where the best way is missing, the others are missing too.
            let expected = series.way(key).map(|own| asked.map_or(own, |(_, way)| *way));
            let Some(signal) = self.signals.iter().find(|signal| signal.key == key) else {
                faults.push(format!("the signal {key} is missing"));
                continue;
            };
            if signal.way() != expected {
                faults.push(format!(
                    "{}: {} expected, {} found{}",
                    signal.signal,
                    expected.unwrap_or("nothing"),
                    signal.hook.as_deref().unwrap_or("nothing"),
                    signal.why_not()
                ));
            }
        }
        for signal in self.signals.iter().filter(|signal| WAYS.iter().all(|(key, _)| *key != signal.key)) {
            faults.push(format!("the signal {} is not in the table", signal.key));
        }
        faults
    }
}

impl Signal {
    pub(crate) fn way(&self) -> Option<&str> {
        self.hook.as_deref().and_then(|hook| hook.split(' ').next())
    }

    fn why_not(&self) -> String {
        let tried: Vec<_> =
            self.tried.iter().map(|tried| format!("; {}: {}", tried.hook, tried.error)).collect();
        tried.concat()
    }
}
