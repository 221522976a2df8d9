//! Runs Criterion's benches of the daemon without a kernel, and takes over their results.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::command;

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Micro {
    pub(crate) name: String,
    pub(crate) median_ns: f64,
}

pub(crate) fn micro() -> Result<Vec<Micro>> {
    command::run(command::cargo().args(["bench", "--package", "tcpwatch", "--bench", "cost", "--locked"]))?;
    let mut found = Vec::new();
    collect(&command::target_directory()?.join("criterion"), &mut found)?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// `<group>/<bench>/new/` holds the last run.
fn collect(folder: &Path, found: &mut Vec<Micro>) -> Result<()> {
    let benchmark = folder.join("new/benchmark.json");
    if benchmark.exists() {
        let json = |file: &Path| -> Result<serde_json::Value> {
            let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
            serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))
        };
        let median = &json(&folder.join("new/estimates.json"))?["median"]["point_estimate"];
        found.push(Micro {
            name: json(&benchmark)?["full_id"].as_str().context("a benchmark without a name")?.to_owned(),
            median_ns: median.as_f64().context("an estimate without a median")?,
        });
        return Ok(());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), found)?;
        }
    }
    Ok(())
}
