//! Posts the findings that are open, and those that ended lately, to a webhook: the list of alerts that Prometheus'
//! Alertmanager takes (`POST /api/v2/alerts`).
//!
//! The whole list is posted when it has changed and at least each minute, so that a post that fails is made good by the next,
//! and Alertmanager, which takes silence for an end, does not end what goes on.

use std::{str::FromStr, time::Duration};

use anyhow::Context as _;
use axum::http::{Request, Uri, header};
use http_body_util::Full;
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{
    findings::{Severity, life::Finding, rules::spec},
    http::Api,
    node::Node,
    tcp::time::Clock,
};

/// Time between two looks at the findings.
const LOOK: Duration = Duration::from_secs(5);
/// A list that has not changed is posted again after this.
const REPEAT: Duration = Duration::from_secs(60);
/// Limit for a post.
const DEADLINE: Duration = Duration::from_secs(10);
/// For how long an end is posted.
const ENDED_NS: u64 = 300_000_000_000;

/// Where findings are posted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Webhook {
    /// Host and port.
    authority: String,
    path: String,
}

impl FromStr for Webhook {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("`{text}` is not a URL: {error}"))?;
        let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(format!("`{text}` is not of the form http://HOST[:PORT]/PATH"));
        };
        let authority = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
        Ok(Self { authority, path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned() })
    }
}

impl TryFrom<String> for Webhook {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// As Alertmanager's API names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Alert {
    labels: Labels,
    annotations: Annotations,
    starts_at: String,
    /// Absent while it is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_at: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Labels {
    /// The rule.
    alertname: &'static str,
    severity: &'static str,
    node: String,
    /// The id of the finding.
    finding: String,
    process: String,
    peer: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Annotations {
    summary: String,
    description: &'static str,
    next_step: String,
}

impl Alert {
    fn of(node: &Node, finding: &Finding, clock: Clock) -> Self {
        let latest = &finding.latest;
        Self {
            labels: Labels {
                alertname: finding.id.rule.name(),
                severity: finding.severity.name(),
                node: node.identity.node.clone(),
                finding: finding.id.to_string(),
                process: latest.subject.name().to_owned(),
                peer: latest.subject.peer.to_string(),
            },
            annotations: Annotations {
                summary: latest.summary.clone(),
                description: spec(finding.id.rule).explanation,
                next_step: latest.next_step.clone(),
            },
            starts_at: clock.at(finding.opened_ns).rfc3339(),
            ends_at: finding.ended_ns.map(|ended_ns| clock.at(ended_ns).rfc3339()),
        }
    }

    /// What makes a post due when it changes: a number in a summary does not.
    fn state(&self) -> (String, &'static str, bool) {
        (self.labels.finding.clone(), self.labels.severity, self.ends_at.is_some())
    }
}

/// Posts until the daemon stops. Failures are logged when they begin, and when a post succeeds again.
pub async fn notify(api: Api, webhook: Webhook) {
    let mut posted = Vec::new();
    let mut posted_at = Instant::now();
    let mut failing = false;
    loop {
        sleep(LOOK).await;
        let Ok(alerts) = api.ask(false, alerts).await else { continue };
        let state: Vec<_> = alerts.iter().map(Alert::state).collect();
        let is_due = state != posted || (!state.is_empty() && posted_at.elapsed() >= REPEAT);
        if !is_due {
            continue;
        }
        match post(&webhook, &alerts).await {
            Ok(()) => {
                if std::mem::take(&mut failing) {
                    tracing::info!("findings reach the webhook again");
                }
                (posted, posted_at) = (state, Instant::now());
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "findings do not reach the webhook; trying on"
                    );
                }
            }
        }
    }
}

fn alerts(node: &Node, clock: Clock) -> Vec<Alert> {
    let open = node.findings.open().into_iter();
    let ended_lately =
        |finding: &&Finding| finding.ended_ns.is_some_and(|ended_ns| ended_ns + ENDED_NS > clock.now_ns);
    let ended = node.findings.ended().take_while(ended_lately);
    let alarms = open.chain(ended).filter(|finding| finding.severity > Severity::Info);
    alarms.map(|finding| Alert::of(node, finding, clock)).collect()
}

async fn post(webhook: &Webhook, alerts: &[Alert]) -> anyhow::Result<()> {
    let exchange = async {
        let stream = TcpStream::connect(&webhook.authority)
            .await
            .with_context(|| format!("cannot connect to {}", webhook.authority))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its errors are those of the answer.
        tokio::spawn(connection);
        let request = Request::post(&webhook.path)
            .header(header::HOST, &webhook.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(serde_json::to_vec(alerts)?)))?;
        let status = sender.send_request(request).await?.status();
        anyhow::ensure!(status.is_success(), "{} answers {status}", webhook.authority);
        anyhow::Ok(())
    };
    timeout(DEADLINE, exchange).await.with_context(|| format!("no answer within {DEADLINE:?}"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_host_and_a_path_and_no_tls() {
        let webhook: Webhook = "http://am.example/api/v2/alerts?x=1".parse().unwrap();
        assert_eq!((&*webhook.authority, &*webhook.path), ("am.example:80", "/api/v2/alerts?x=1"));
        let webhook: Webhook = "http://[::1]:9093".parse().unwrap();
        assert_eq!((&*webhook.authority, &*webhook.path), ("[::1]:9093", "/"));
        for wrong in ["https://am.example/", "am.example:9093", "/alerts", "", "http://"] {
            assert!(wrong.parse::<Webhook>().is_err(), "{wrong}");
        }
    }
}
