//! `/leaks`: what stands too long, whose it is, and what to do.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    findings::{
        Severity,
        evidence::OtherEnd,
        leaks::{Leak, leaks},
    },
    http::{
        Api, ApiError, Render,
        render::{
            completeness::Completeness,
            text::{bounded_duration, bytes, printable, wrap},
            view::show_queue,
        },
    },
    model::groups::Role,
    tcp::state::TcpState,
};

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Leaks {
    /// Name of the node.
    node: String,
    /// When the question was answered.
    generated_at: String,
    #[serde(flatten)]
    completeness: Completeness,
    /// The worst first.
    leaks: Vec<Leak>,
}

/// More than anybody reads, and what an answer has room for.
const MAX_LEAKS: usize = 1000;

pub(crate) async fn answer(api: Api, (): ()) -> Result<Leaks, ApiError> {
    api.ask(true, |node, clock| {
        let mut leaks = leaks(&node.tracker, &node.settings.linger, &node.history, clock);
        let more = leaks.len().saturating_sub(MAX_LEAKS);
        leaks.truncate(MAX_LEAKS);
        let problem = (more > 0).then(|| format!("{more} more, less bad than these, are not listed"));
        Leaks {
            node: node.identity.node.clone(),
            generated_at: clock.rfc3339(),
            completeness: Completeness::of(node).and("leaks", problem),
            leaks,
        }
    })
    .await
}

/// The text form's width.
const COLUMNS: usize = 100;
/// Where the text beside the labels begins.
const INDENT: usize = 13;

impl Render for Leaks {
    fn text(&self) -> String {
        let count = |severity| self.leaks.iter().filter(|leak| leak.severity == severity).count();
        let mut text = format!("{} at {}: ", self.node, self.generated_at);
        if self.leaks.is_empty() {
            text += "no connection stands longer than it should\n";
        } else {
            let _ = writeln!(
                text,
                "{} critical, {} warning, {} info",
                count(Severity::Critical),
                count(Severity::Warning),
                count(Severity::Info)
            );
        }
        for leak in &self.leaks {
            text.push('\n');
            text += &leak_text(leak);
        }
        text + &self.completeness.text()
    }
}

fn leak_text(leak: &Leak) -> String {
    let severity = match leak.severity {
        Severity::Critical => "CRITICAL",
        Severity::Warning => "WARNING",
        Severity::Info => "INFO",
    };
    let mut head = format!(
        "{severity:<INDENT$}{}: {} in {}, oldest {}",
        leak.rule,
        leak.count,
        leak.state,
        bounded_duration(leak.oldest_seconds, leak.oldest_is_lower_bound)
    );
    match leak.growth_per_minute {
        Some(growth) if growth > 0.0 => head += &format!(", +{growth}/min"),
        Some(growth) if growth < 0.0 => head += &format!(", {growth}/min"),
        _ => {}
    }
    for (count, what) in [(leak.unread_bytes, "unread"), (leak.unsent_bytes, "unsent")] {
        if count > 0 {
            head += &format!(", {} {what}", bytes(count));
        }
    }
    let mut text = head + "\n";
    let mut line = |label: &str, value: &str| {
        let _ = writeln!(
            text,
            "  {label:<width$}{}",
            wrap(&printable(value), COLUMNS, INDENT),
            width = INDENT - 2
        );
    };
    match &leak.process {
        Some(process) => {
            line("process", &format!("{} (pid {}){}", process.comm, process.pid, process.exe_text()));
            if let Some(container) = &process.container {
                let pod = container.pod_uid.as_ref().map(|uid| format!(", pod {uid}")).unwrap_or_default();
                let runtime = container.runtime.map(|runtime| format!("{runtime} ")).unwrap_or_default();
                line("container", &format!("{runtime}{}{pod}", &container.id[..12]));
            } else if let Some(cgroup) = process.cgroup.as_deref().filter(|cgroup| *cgroup != "/") {
                line("cgroup", cgroup);
            }
        }
        None => line("process", "unknown"),
    }
    let (local, remote) = (leak.local, leak.remote);
    if leak.role == Role::Client {
        line("client of", &remote.to_string());
    } else if leak.state == TcpState::Close {
        let fds: Vec<_> = leak.example_fds.iter().map(ToString::to_string).collect();
        line("fds", &fds.join(", "));
    } else if leak.role == Role::Unknown {
        line("ends", &format!("{local} and {remote}"));
    } else {
        let from = match remote.addr {
            Some(addr) => addr.to_string(),
            None => format!("{} addresses", leak.distinct_remote_addrs),
        };
        line("server on", &format!("{local}, peers from {from}"));
    }
    if let Some(queue) = &leak.queue {
        line("queue", &show_queue(queue));
    }
    if let Some(other) = &leak.other_end {
        line("other end", &show_other_end(other));
    }
    if let Some(waits_for) = &leak.waits_for {
        let other = waits_for
            .other_end
            .as_ref()
            .map_or(String::new(), |other| format!(": {}", show_other_end(other)));
        line("waits for", &format!("{} to {}{other}", waits_for.count, waits_for.remote));
    }
    line("what", &leak.summary);
    line("do", &leak.next_step);
    text
}

fn show_other_end(other: &OtherEnd) -> String {
    let process = match &other.process {
        Some(process) => format!("{} (pid {})", process.comm, process.pid),
        None => "unknown".to_owned(),
    };
    format!("{process}, {} in {}", other.count, other.state)
}
