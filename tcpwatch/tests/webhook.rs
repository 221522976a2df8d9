//! The webhook: what is posted when findings are open, and that a receiver which fails gets them later.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
};

use serde_json::Value;
use tcpwatch::{
    cli::replay::{Replayed, play},
    http::{Api, webhook::notify},
    node::Question,
    recorder,
};
use tokio::sync::mpsc;

#[path = "fixtures/mod.rs"]
#[allow(dead_code, reason = "of the fixture, what other tests use")]
mod fixture;

/// Reads one request and answers with this status; returns its first line and its body.
fn receive(listener: &TcpListener, status: &str) -> (String, String) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut request = Vec::new();
    let mut part = [0; 4096];
    loop {
        let count = stream.read(&mut part).unwrap();
        assert!(count > 0, "the request ends in its middle");
        request.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
        if body.len() == length.unwrap().parse::<usize>().unwrap() {
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
            return (head.lines().next().unwrap().to_owned(), body.to_owned());
        }
    }
}

#[tokio::test]
async fn open_findings_are_posted_as_alerts_until_a_post_succeeds() {
    let mut settings = fixture::settings();
    settings.thresholds.set("fin_wait2_pileup.connections", 1.0).unwrap();
    let Replayed { node, clock, .. } = play(recorder::open(&fixture::path()).unwrap(), settings);
    let open = node.findings.open().iter().filter(|one| one.severity.name() != "info").count();
    assert!(open > 0, "the recorded run has something to post");
    let (sender, mut questions) = mpsc::channel::<Question>(1);
    tokio::spawn(async move {
        while let Some(question) = questions.recv().await {
            (question.ask)(&node, clock);
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/api/v2/alerts", listener.local_addr().unwrap());
    let posting = tokio::spawn(notify(Api::of_recording(sender), url.parse().unwrap()));
    let receiver = tokio::task::spawn_blocking(move || {
        [receive(&listener, "503 Service Unavailable"), receive(&listener, "200 OK")]
    });
    let [refused, (line, body)] = receiver.await.unwrap();
    assert_eq!((&*line, &body), ("POST /api/v2/alerts HTTP/1.1", &refused.1));
    let alerts: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(alerts.as_array().unwrap().len(), open);
    let alert = &alerts[0];
    for label in ["alertname", "severity", "node", "finding", "process", "peer"] {
        assert!(alert["labels"][label].as_str().is_some_and(|text| !text.is_empty()), "{label}: {alert}");
    }
    assert!(alert["startsAt"].is_string() && alert["annotations"]["summary"].is_string(), "{alert}");
    assert!(alert.get("endsAt").is_none(), "{alert}");
    posting.abort();
}
