//! The tcpwatch of this checkout, running beside the drills, and its findings.

use std::{
    fs::{self, File},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Outcome,
    software::Software,
    stage::{Stage, until},
};
use crate::stop;

/// How long it may take to load its programs.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running tcpwatch; stopped when dropped.
pub(crate) struct Watch {
    child: Child,
    log: PathBuf,
    address: String,
    agent: ureq::Agent,
}

/// A finding, as `/findings` gives it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Finding {
    pub(crate) id: String,
    pub(crate) rule: String,
    pub(crate) severity: String,
    pub(crate) who: Who,
    netns: u64,
    pub(crate) role: String,
    peer: Peer,
    pub(crate) count: u64,
    evidence: Vec<Evidence>,
    pub(crate) summary: String,
    pub(crate) caused_by: Vec<String>,
    pub(crate) effects: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Who {
    pub(crate) process: Option<String>,
    pub(crate) pids: Vec<u32>,
    pub(crate) processes: u64,
}

/// The server's end: of a server's finding its own port only.
#[derive(Debug, Clone, Deserialize)]
struct Peer {
    addr: Option<IpAddr>,
    port: Option<u16>,
}

#[derive(Debug, Clone, Deserialize)]
struct Evidence {
    name: String,
    value: Value,
}

impl Finding {
    /// A number of its evidence.
    pub(crate) fn number(&self, name: &str) -> Result<f64> {
        let known = || self.evidence.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = self.evidence.iter().find(|one| one.name == name);
        let found = found.with_context(|| format!("{} has no evidence {name}, only {}", self.id, known()))?;
        found.value.as_f64().with_context(|| format!("{} of {} is {}", name, self.id, found.value))
    }

    /// A number of its evidence that counts something.
    pub(crate) fn counted(&self, name: &str) -> Result<u64> {
        Ok(self.number(name)? as u64)
    }

    /// `10.98.0.2:6379`, or `:8080` of a server.
    pub(crate) fn peer(&self) -> String {
        let port = self.peer.port.map_or_else(|| "*".to_owned(), |port| port.to_string());
        match self.peer.addr {
            Some(addr) => format!("{addr}:{port}"),
            None => format!(":{port}"),
        }
    }

    fn alarms(&self) -> bool {
        self.severity != "info"
    }

    pub(crate) fn names(&self, pids: &[u32]) -> bool {
        self.who.pids.iter().any(|pid| pids.contains(pid))
    }
}

impl Watch {
    pub(crate) fn start(software: &Software, folder: &Path) -> Result<Self> {
        let log = folder.join("tcpwatch.log");
        let file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut command = Command::new(software.program("tcpwatch"));
        for (name, _) in std::env::vars_os() {
            if name == "RUST_LOG" || name.to_string_lossy().starts_with("TCPWATCH_") {
                command.env_remove(name);
            }
        }
        command
            .args(["run", "--listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        let child = command.spawn().context("starting tcpwatch")?;
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut watch = Self { child, log, address: String::new(), agent };
        let until = Instant::now() + START_LIMIT;
        while watch.address.is_empty() || watch.get("/readyz").is_err() {
            let said = fs::read_to_string(&watch.log).context("reading tcpwatch's log")?;
            ensure!(watch.child.try_wait()?.is_none(), "tcpwatch ended: {said}");
            ensure!(
                Instant::now() < until,
                "tcpwatch is not ready after {} s: {said}",
                START_LIMIT.as_secs()
            );
            if let Some((address, _)) = said.split_once("http://").and_then(|(_, rest)| rest.split_once('/'))
            {
                address.clone_into(&mut watch.address);
            }
            stop::sleep(Duration::from_millis(50))?;
        }
        Ok(watch)
    }

    /// The answer; an error for any status other than 200.
    fn get(&self, path: &str) -> Result<String> {
        let mut response = self.agent.get(format!("http://{}{path}", self.address)).call()?;
        let answer = response.body_mut().read_to_string().context("reading an answer")?;
        ensure!(response.status() == 200, "{path}: {}: {}", response.status(), answer.trim());
        Ok(answer)
    }

    /// An answer in JSON.
    pub(crate) fn json(&self, path: &str) -> Result<Value> {
        let mark = if path.contains('?') { '&' } else { '?' };
        let text = self.get(&format!("{path}{mark}format=json"))?;
        serde_json::from_str(&text).with_context(|| format!("reading {path}"))
    }

    /// Why a drill of these rules cannot be run with this tcpwatch; `None` if it can.
    pub(super) fn without(&self, rules: &[&str]) -> Result<Option<Outcome>> {
        let answer = self.json("/findings")?;
        let known = answer["rules"].as_array().context("/findings without rules")?;
        for rule in rules {
            let Some(known) = known.iter().find(|known| known["rule"] == *rule) else {
                return Ok(Some(Outcome::NotRun(format!("no such rule yet: {rule}"))));
            };
            if known["status"] == "unavailable" {
                let why = known["reason"].as_str().unwrap_or("without a reason");
                return Ok(Some(Outcome::Skipped(format!("{rule} is unavailable here: {why}"))));
            }
        }
        Ok(None)
    }

    /// The findings of the last hours, open and closed, each with its JSON.
    fn findings(&self) -> Result<Vec<(Finding, Value)>> {
        let answer = self.json("/findings?since=6h")?;
        let findings = answer["findings"].as_array().context("/findings without findings")?;
        findings
            .iter()
            .map(|finding| {
                let read = serde_json::from_value(finding.clone());
                Ok((read.with_context(|| format!("reading the finding {finding}"))?, finding.clone()))
            })
            .collect()
    }

    /// Waits for a warning or critical finding of a rule that names one of these processes and is as `wanted`, and
    /// prints it.
    pub(crate) fn finding(
        &self,
        stage: &Stage,
        rule: &str,
        pids: &[u32],
        limit: Duration,
        wanted: impl Fn(&Finding) -> bool,
    ) -> Result<Finding> {
        let found = until(&format!("{rule} names a process of {pids:?}"), limit, || {
            let findings = self.findings()?;
            let of_rule = || findings.iter().filter(|(finding, _)| finding.rule == rule);
            let found =
                of_rule().find(|(finding, _)| finding.alarms() && finding.names(pids) && wanted(finding));
            Ok(found.map(|(finding, _)| finding.clone()).ok_or_else(|| {
                let seen: Vec<String> = of_rule()
                    .filter(|(finding, _)| finding.names(pids))
                    .map(|(_, json)| json.to_string())
                    .collect();
                if seen.is_empty() {
                    format!("{} of that rule, none names it", of_rule().count())
                } else {
                    seen.join("\n")
                }
            }))
        })?;
        stage.say(format_args!("tcpwatch: {} {}: {}", found.severity, found.id, found.summary));
        Ok(found)
    }

    /// The finding with this id.
    pub(crate) fn by_id(&self, id: &str) -> Result<Finding> {
        let findings = self.findings()?.into_iter().map(|(finding, _)| finding);
        findings.into_iter().find(|finding| finding.id == id).with_context(|| format!("no finding {id}"))
    }

    /// The warning and critical findings about one of these network namespaces, open and ended: id and JSON.
    pub(crate) fn alarms_in(&self, namespaces: &[u64]) -> Result<Vec<(String, Value)>> {
        let alarms = self.findings()?.into_iter();
        let alarms = alarms.filter(|(finding, _)| finding.alarms() && namespaces.contains(&finding.netns));
        Ok(alarms.map(|(finding, json)| (finding.id, json)).collect())
    }

    /// Fails if a warning or critical finding of any rule names, or named, one of these processes.
    pub(crate) fn silent(&self, stage: &Stage, who: &str, pids: &[u32]) -> Result<()> {
        if let Some((finding, json)) =
            self.findings()?.into_iter().find(|(finding, _)| finding.alarms() && finding.names(pids))
        {
            bail!("{} names {who}, which is healthy: {json}", finding.id);
        }
        stage.say(format_args!("tcpwatch: nothing wrong with {who}"));
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
