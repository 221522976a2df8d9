//! `tcpwatch findings`, `leaks`, `connections`, `processes` and `peers`: the answers of a running tcpwatch.

use std::io::Write;

use serde::Deserialize;

use crate::{
    cli::{
        client,
        options::{AskArgs, Output},
    },
    findings::Severity,
};

/// Prints the answer to a path.
///
/// # Errors
/// When nobody answers, or the answer is an error.
pub fn print(path: &str, args: &AskArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let form = match args.output {
        Output::Text => "text",
        Output::Json => "json",
    };
    out.write_all(ask(path, args, form)?.as_bytes())?;
    Ok(())
}

/// Prints the findings, and returns how severe the worst open one is.
///
/// # Errors
/// As [`print`].
pub fn findings(args: &AskArgs, out: &mut impl Write) -> anyhow::Result<Option<Severity>> {
    #[derive(Deserialize)]
    struct Answer {
        findings: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        severity: Severity,
        ended_at: Option<String>,
    }
    let json = ask("/findings", args, "json")?;
    match args.output {
        Output::Json => out.write_all(json.as_bytes())?,
        Output::Text => print("/findings", args, out)?,
    }
    let answer: Answer = serde_json::from_str(&json)?;
    Ok(answer.findings.iter().filter(|one| one.ended_at.is_none()).map(|one| one.severity).max())
}

fn ask(path: &str, args: &AskArgs, form: &str) -> anyhow::Result<String> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(&args.parameters).append_pair("format", form);
    let mut answer = client::get(&args.connect, &format!("{path}?{}", query.finish()))?;
    let mut text = String::new();
    while let Some(line) = answer.line() {
        text += &(line? + "\n");
    }
    anyhow::ensure!(answer.status.is_success(), "{}: {}", answer.status, text.trim_end());
    Ok(text)
}
