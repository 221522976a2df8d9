//! HTTP answers to well-formed, malformed and hostile requests, over a recorded run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{num::NonZeroU16, sync::LazyLock, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use serde_json::{Value, json};
use tcpwatch::{
    cli::{options::DEFAULT_LIMITS, replay::Replayed},
    events::frame::{Frame, ReportedFacts},
    http::{Api, Endpoint, Place, endpoints, router},
    kernel::{clock, probes::Hooks},
    node::{Node, NodeIdentity, Question},
    recorder,
    tcp::{ticks::TickRate, time::Clock},
};
use tokio::sync::mpsc;
use tower::ServiceExt as _;

#[path = "fixtures/mod.rs"]
mod fixture;

/// A path of each endpoint that answers at once.
fn paths() -> Vec<String> {
    endpoints().iter().filter(|endpoint| !is_stream(endpoint)).map(path_of).collect()
}

fn is_stream(endpoint: &Endpoint) -> bool {
    endpoint.content[0].media_type == "text/event-stream"
}

/// One connection and one finding of the fixture stand for all.
fn path_of(endpoint: &Endpoint) -> String {
    static IDS: LazyLock<(String, String)> = LazyLock::new(|| {
        let node = fixture::played().node;
        let conn = node.tracker.table().iter().next().unwrap();
        (format!("{:x}", conn.id()), node.findings.open()[0].id.to_string())
    });
    let (conn, finding) = &*IDS;
    let id = if endpoint.path.starts_with("/findings") { finding } else { conn };
    endpoint.path.replace("{id}", id)
}

/// A value that the parameter's schema does not allow; `None` where it allows any.
fn bad_value(schema: &Value) -> Option<&'static str> {
    let kind = if schema["type"] == "array" { &schema["items"] } else { schema };
    let is_bounded = |name| !kind[name].is_null();
    (kind["type"] != "string" || ["enum", "format", "pattern"].into_iter().any(is_bounded)).then_some("b~d")
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn content_type(&self) -> &str {
        self.headers.get(header::CONTENT_TYPE).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        assert_eq!(self.content_type(), "application/json", "{}", self.body);
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Answers from a state that no longer changes.
struct Server(Router);

impl Server {
    fn new(node: Node, clock: Clock) -> Self {
        Self::with(node, clock, Api::new)
    }

    fn with(node: Node, clock: Clock, api: impl FnOnce(mpsc::Sender<Question>) -> Api) -> Self {
        let (sender, mut questions) = mpsc::channel::<Question>(8);
        tokio::spawn(async move {
            while let Some(question) = questions.recv().await {
                (question.ask)(&node, clock);
            }
        });
        Self(router(api(sender)))
    }

    fn of_fixture() -> Self {
        let Replayed { node, clock, .. } = fixture::played();
        Self::new(node, clock)
    }

    fn before_the_first_sweep() -> Self {
        let clock = clock::read();
        Self::new(empty_node(clock), clock)
    }

    async fn request(&self, method: Method, path: &str, accept: Option<&str>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(accept) = accept {
            request = request.header(header::ACCEPT, accept);
        }
        let response = self.0.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        Answer { status, headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    /// As curl requests it.
    async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, Some("*/*")).await
    }

    async fn json(&self, path: &str) -> Value {
        let answer = self.request(Method::GET, path, Some("application/json")).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.json()
    }
}

fn empty_node(clock: Clock) -> Node {
    let identity = NodeIdentity {
        node: "empty".into(),
        kernel: "none".into(),
        started_ns: clock.now_ns,
        wall_offset_ns: 0,
        tick_rate: TickRate(NonZeroU16::MIN),
    };
    Node::new(identity, fixture::settings(), DEFAULT_LIMITS, Hooks::default(), ReportedFacts::default())
}

/// The question fails with `status` in both forms, and both name `parameter`.
async fn fails(server: &Server, method: Method, path: &str, status: u16, parameter: Option<&str>) {
    let mark = if path.contains('?') { '&' } else { '?' };
    let text = server.request(method.clone(), path, Some("*/*")).await;
    assert_eq!(text.status, status, "{method} {path}: {}", text.body);
    assert_eq!(text.content_type(), "text/plain; charset=utf-8", "{method} {path}");
    assert_eq!(text.body.lines().count(), 1, "{method} {path}: {}", text.body);
    assert!(text.body.contains(parameter.unwrap_or("")), "{method} {path}: {}", text.body);

    let by_parameter = (format!("{path}{mark}format=json"), "*/*");
    let by_header = (path.to_owned(), "application/json");
    for (path, accept) in [by_parameter, by_header] {
        let json = server.request(method.clone(), &path, Some(accept)).await;
        assert_eq!(json.status, status, "{method} {path}: {}", json.body);
        assert_eq!(json.content_type(), "application/json", "{method} {path} {accept}: {}", json.body);
        assert!(json.json()["error"].is_string(), "{method} {path}: {}", json.body);
        assert_eq!(json.json().get("parameter").and_then(Value::as_str), parameter, "{method} {path}");
    }
}

#[tokio::test]
async fn an_unknown_path_is_404_in_the_requested_format() {
    let server = Server::of_fixture();
    for path in ["/nothing", "/leaks/", "/leaks/1", "//", "/LEAKS", "/leaks%00", "/%ff%fe", "/../leaks"] {
        fails(&server, Method::GET, path, 404, None).await;
    }
    fails(&server, Method::POST, "/nothing", 404, None).await;
}

#[tokio::test]
async fn only_get_and_head_are_allowed() {
    let server = Server::of_fixture();
    for endpoint in endpoints() {
        let path = path_of(endpoint);
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            fails(&server, method, &path, 405, None).await;
        }
        let refused = server.request(Method::POST, &path, None).await;
        assert_eq!(refused.headers.get(header::ALLOW).unwrap(), "GET,HEAD", "RFC 9110, 15.5.6");
        let head = server.request(Method::HEAD, &path, None).await;
        assert_eq!((head.status, &*head.body), (StatusCode::OK, ""), "{path}");
        assert_eq!(head.content_type(), endpoint.content[0].media_type, "{path}");
    }
}

#[tokio::test]
async fn each_endpoint_answers_in_the_forms_of_the_table() {
    let server = Server::of_fixture();
    for endpoint in endpoints().iter().filter(|endpoint| !is_stream(endpoint)) {
        let path = path_of(endpoint);
        let format = endpoint.parameters.iter().find(|parameter| parameter.name == "format").unwrap();
        let formats = format.schema["enum"].as_array().unwrap();
        for (number, format) in formats.iter().enumerate() {
            let answer = server.get(&format!("{path}?format={}", format.as_str().unwrap())).await;
            assert_eq!(answer.status, 200, "{path} {format}: {}", answer.body);
            let expected = endpoint.content.get(number).unwrap_or(&endpoint.content[0]).media_type;
            assert_eq!(answer.content_type(), expected, "{path} {format}");
            match expected {
                "application/json" => assert!(answer.json().is_object(), "{path}"),
                "application/x-ndjson" => {
                    for line in answer.body.lines() {
                        assert!(serde_json::from_str::<Value>(line).unwrap().is_object(), "{path}: {line}");
                    }
                }
                _ => assert!(answer.body.ends_with('\n'), "{path}"),
            }
        }
    }
}

#[tokio::test]
async fn unknown_parameters_are_named_everywhere() {
    let server = Server::of_fixture();
    for endpoint in endpoints() {
        let path = path_of(endpoint);
        fails(&server, Method::GET, &format!("{path}?bogus=1"), 400, Some("bogus")).await;
        let answer = server.get(&format!("{path}?bogus=1")).await;
        for parameter in endpoint.parameters.iter().filter(|parameter| parameter.place == Place::Query) {
            assert!(answer.body.contains(parameter.name), "{path}: {} is not listed", parameter.name);
        }
    }
    // Of other paths, or misspelt.
    fails(&server, Method::GET, "/leaks?state=CLOSE_WAIT", 400, Some("state")).await;
    fails(&server, Method::GET, "/connections?State=CLOSE_WAIT", 400, Some("State")).await;
}

#[tokio::test]
async fn each_parameter_refuses_what_its_schema_does_not_allow_and_repetition() {
    let server = Server::of_fixture();
    for endpoint in endpoints() {
        let path = path_of(endpoint);
        for parameter in &endpoint.parameters {
            let name = parameter.name;
            let bad = bad_value(&parameter.schema);
            if parameter.place == Place::Path {
                let path = endpoint.path.replace(&format!("{{{name}}}"), bad.unwrap());
                fails(&server, Method::GET, &path, 400, Some(name)).await;
                continue;
            }
            let queries = [
                bad.map(|bad| format!("{name}={bad}")),
                (parameter.schema["type"] != "array").then(|| format!("{name}=1&{name}=1")),
            ];
            for query in queries.iter().flatten() {
                let answer = server.get(&format!("{path}?{query}")).await;
                assert_eq!(answer.status, 400, "{path}?{query}: {}", answer.body);
                let blamed = format!("error: parameter {name}: ");
                assert!(answer.body.starts_with(&blamed), "{path}?{query}: {}", answer.body);
                if name != "format" {
                    fails(&server, Method::GET, &format!("{path}?{query}"), 400, Some(name)).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn malformed_parameters_are_named() {
    let server = Server::of_fixture();
    for (name, value) in [
        ("state", "HALF_OPEN"),
        ("state", ""),
        ("state", "%00"),
        ("pid", "-1"),
        ("pid", "x"),
        ("pid", "4294967296"),
        ("pid", ""),
        ("pid", "%ff"),
        ("local_port", "65536"),
        ("remote_port", "http"),
        ("remote", "localhost"),
        ("remote", "127.0.0"),
        ("remote", "10.0.0.0/33"),
        ("remote", "::1/129"),
        ("role", "boss"),
        ("sort", "name"),
        ("limit", "-1"),
        ("limit", "0"),
        ("limit", "10001"),
        ("limit", "all"),
        ("limit", "99999999999999999999999"),
        ("cursor", ""),
        ("cursor", "7b7d"),
    ] {
        fails(&server, Method::GET, &format!("/connections?{name}={value}"), 400, Some(name)).await;
    }
    let zero = server.get("/connections?limit=0").await.body;
    assert!(zero.contains("format=ndjson"), "{zero}");
    for id in ["xyz", "-1", "+1", "1%20", "%ff", "%00", "11112222333344445", "1.5"] {
        fails(&server, Method::GET, &format!("/connections/{id}"), 400, Some("id")).await;
    }
    fails(&server, Method::GET, "/connections/1111222233334444", 404, None).await;
    for path in paths() {
        for query in ["format=xml", "format=", "format=json&format=json"] {
            let answer = server.get(&format!("{path}?{query}")).await;
            assert_eq!(answer.status, 400, "{path}?{query}: {}", answer.body);
            assert!(answer.body.contains("format"), "{path}?{query}: {}", answer.body);
        }
    }
}

#[tokio::test]
async fn format_decides_then_accept_then_text() {
    let server = Server::of_fixture();
    for path in ["/", "/help", "/leaks", "/connections", "/status"] {
        for (query, accept, json) in [
            ("", None, false),
            ("", Some("*/*"), false),
            ("", Some("text/html"), false),
            ("", Some("application/json"), true),
            ("", Some("text/html, application/json;q=0.9"), true),
            ("?format=json", Some("*/*"), true),
            ("?format=text", Some("application/json"), false),
        ] {
            let answer = server.request(Method::GET, &format!("{path}{query}"), accept).await;
            assert_eq!(answer.status, 200, "{path}{query}");
            let expected = if json { "application/json" } else { "text/plain; charset=utf-8" };
            assert_eq!(answer.content_type(), expected, "{path}{query} {accept:?}");
            assert!(answer.body.ends_with('\n'), "{path}{query} {accept:?}");
        }
    }
    let metrics = server.request(Method::GET, "/metrics", Some("application/json")).await;
    assert_eq!(metrics.content_type(), "text/plain; version=0.0.4; charset=utf-8");
}

#[tokio::test]
async fn filters_find_what_they_name() {
    let server = Server::of_fixture();
    let leaky = server.json("/connections?comm=leaky-4&role=listener").await;
    let pid = &leaky["connections"][0]["process"]["pid"];
    for (query, total) in [
        ("", fixture::TOTAL),
        ("state=CLOSE_WAIT", 8),
        ("state=close-wait", 8),
        ("state=CLOSING", 0),
        (&format!("pid={pid}"), 4),
        ("pid=4294967295", 0),
        ("comm=leaky-4", 4),
        ("comm=leaky", 0),
        ("comm=%ff", 0),
        ("local_port=7004", 4),
        ("remote_port=7004", 3),
        ("remote=127.0.0.1", 37),
        ("remote=127.0.0.0/8", 37),
        ("remote=0.0.0.0/0", 42),
        ("remote=::1", 6),
        ("remote=::/0", 8),
        ("remote=10.0.0.0/8", 0),
        ("role=listener", 7),
        ("role=server", 11),
        ("role=client", 32),
        ("role=unknown", 0),
        ("state=CLOSE_WAIT&comm=leaky-6", 2),
        ("role=server&remote=::1&local_port=7006&state=CLOSE_WAIT", 2),
    ] {
        let answer = server.json(&format!("/connections?{query}")).await;
        assert_eq!(answer["total"], total, "{query}");
        assert_eq!(answer["connections"].as_array().unwrap().len(), total, "{query}");
        assert_eq!(answer["next_cursor"], Value::Null, "{query}");
        let text = server.get(&format!("/connections?{query}")).await;
        assert_eq!(text.body.lines().count(), total + 1, "{query}: {}", text.body);
    }
}

#[tokio::test]
async fn a_limit_cuts_the_list_and_gives_a_cursor_for_the_rest() {
    let server = Server::of_fixture();
    for (limit, shown) in [(1, 1), (49, 49), (50, 50), (51, 50), (10_000, 50)] {
        let answer = server.json(&format!("/connections?limit={limit}")).await;
        assert_eq!(answer["total"], fixture::TOTAL, "{limit}");
        assert_eq!(answer["connections"].as_array().unwrap().len(), shown, "{limit}");
        assert_eq!(answer["next_cursor"].is_string(), shown < fixture::TOTAL, "{limit}");
    }
    let text = server.get("/connections?limit=3").await.body;
    assert!(text.lines().last().is_some_and(|last| last.contains("3 of 50")), "{text}");
}

/// The rows of a list: the one array beside `errors`.
fn rows_of(answer: &Value) -> Vec<Value> {
    let members = answer.as_object().unwrap().iter().filter(|(name, _)| *name != "errors");
    let lists: Vec<_> = members.filter_map(|(_, value)| value.as_array()).collect();
    let [rows] = lists[..] else { panic!("{answer}") };
    rows.clone()
}

/// Of every list of the table in every order: the pages in turn, and the lines of NDJSON, are the rows of one large page.
#[tokio::test]
async fn pages_and_lines_together_are_the_whole_list() {
    let Replayed { node, clock, .. } = fixture::played();
    // Of this machine, to which its namespaces belong no more, `/ports` would have none.
    let server = Server::with(node, clock, Api::of_recording);
    for endpoint in endpoints() {
        let parameter = |name| endpoint.parameters.iter().find(|parameter| parameter.name == name);
        // The recording has nothing of what only the kernel knows.
        if parameter("cursor").is_none() || ["/nat", "/transfer"].contains(&endpoint.path) {
            continue;
        }
        let sorts = match parameter("sort") {
            Some(sort) => sort.schema["enum"].as_array().unwrap().clone(),
            None => vec![Value::Null],
        };
        for sort in sorts {
            let sort = sort.as_str().map_or(String::new(), |sort| format!("&sort={sort}"));
            let path = format!("{}?format=json{sort}", endpoint.path);
            let whole = server.json(&format!("{path}&limit=10000")).await;
            assert_eq!(whole["next_cursor"], Value::Null, "{path}");
            let all = rows_of(&whole);
            assert!(all.len() > 3, "{path}: {}", all.len());
            assert_eq!(whole["total"], all.len(), "{path}");

            let (mut paged, mut cursor) = (Vec::new(), String::new());
            loop {
                let page = server.json(&format!("{path}&limit=3{cursor}")).await;
                assert_eq!(page["total"], whole["total"], "{path}");
                paged.extend(rows_of(&page));
                let Some(next) = page["next_cursor"].as_str() else { break };
                cursor = format!("&cursor={next}");
            }
            let by_limit = |row: &Value| {
                let mut row = row.clone();
                // It keeps to `limit` too.
                row.as_object_mut().unwrap().remove("instances");
                row
            };
            let expected: Vec<_> = all.iter().map(by_limit).collect();
            assert_eq!(paged.iter().map(by_limit).collect::<Vec<_>>(), expected, "{path}");

            for (limit, count) in [("", all.len()), ("&limit=2", 2)] {
                let lines = server.get(&format!("{}?format=ndjson{sort}{limit}", endpoint.path)).await.body;
                let lines: Vec<Value> =
                    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
                assert_eq!(lines.iter().map(by_limit).collect::<Vec<_>>(), expected[..count], "{path}");
            }
        }
    }
}

#[tokio::test]
async fn a_cursor_is_of_one_order() {
    let server = Server::of_fixture();
    let page = server.json("/connections?limit=1").await;
    let cursor = page["next_cursor"].as_str().unwrap();
    assert_eq!(server.json(&format!("/connections?cursor={cursor}")).await["next_cursor"], Value::Null);
    for query in [format!("sort=stalled&cursor={cursor}"), format!("cursor={}", &cursor[1..])] {
        fails(&server, Method::GET, &format!("/connections?{query}"), 400, Some("cursor")).await;
    }
    fails(&server, Method::GET, &format!("/processes?cursor={cursor}"), 400, Some("cursor")).await;
}

#[tokio::test]
async fn rows_are_sorted_with_the_longest_first_also_when_cut() {
    let server = Server::of_fixture();
    for (sort, key) in
        [("", "age_seconds"), ("sort=age", "age_seconds"), ("sort=state_seconds", "state_seconds")]
    {
        let seconds = async |limit: usize| -> Vec<f64> {
            let answer = server.json(&format!("/connections?{sort}&limit={limit}")).await;
            let rows = answer["connections"].as_array().unwrap().iter();
            rows.map(|row| row[key].as_f64().unwrap()).collect()
        };
        let all = seconds(10_000).await;
        assert!(all.is_sorted_by(|a, b| a >= b), "{sort}: {all:?}");
        assert_eq!(seconds(7).await, all[..7], "{sort}");
    }
}

/// Why `what` is missing in an answer, or `null`.
fn errors_of(answer: &Value, what: &str) -> Vec<String> {
    let errors = answer["errors"].as_array().unwrap_or_else(|| panic!("{answer}"));
    let whys = errors.iter().filter(|error| error["what"] == what).map(|error| error["why"].as_str());
    whys.map(|why| why.unwrap().to_owned()).collect()
}

#[tokio::test]
async fn every_answer_says_whether_it_is_complete_and_why_not() {
    let (whole, empty) = (Server::of_fixture(), Server::before_the_first_sweep());
    for path in ["/leaks", "/connections", "/history", "/processes", "/peers", "/status"] {
        let answer = whole.json(path).await;
        assert_eq!((&answer["complete"], &answer["errors"]), (&json!(true), &json!([])), "{path}");
        assert!(!whole.get(path).await.body.contains("INCOMPLETE"), "{path}");
    }
    for path in [
        "/leaks",
        "/connections",
        "/history",
        "/processes",
        "/peers",
        "/ports",
        "/nat",
        "/transfer",
        "/status",
    ] {
        let answer = empty.json(path).await;
        assert_eq!(answer["complete"], false, "{path}");
        let [why] = &errors_of(&answer, "connections")[..] else { panic!("{path}: {answer}") };
        let text = empty.get(path).await.body;
        assert!(text.contains(&format!("\n\nINCOMPLETE: connections: {why}\n")), "{path}: {text}");
    }
    let Replayed { node, clock, .. } = fixture::played();
    let recorded = Server::with(node, clock, Api::of_recording);
    let row = &recorded.json("/connections?state=ESTABLISHED&limit=1").await["connections"][0];
    let detail = recorded.json(&format!("/connections/{}", row["id"].as_str().unwrap())).await;
    for what in ["transfer", "nat", "options"] {
        assert_eq!((&detail[what], errors_of(&detail, what).len()), (&Value::Null, 1), "{detail}");
    }
}

/// Sum of a number over the rows of an answer.
fn sum(rows: &Value, number: impl Fn(&Value) -> &Value) -> u64 {
    rows.as_array().unwrap().iter().map(|row| number(row).as_u64().unwrap_or(0)).sum()
}

#[tokio::test]
async fn processes_peers_and_metrics_have_the_same_sums() {
    let server = Server::of_fixture();
    let processes = server.json("/processes?limit=10000").await["processes"].clone();
    let peers = server.json("/peers?limit=10000").await["peers"].clone();
    let total = fixture::TOTAL as u64;
    assert_eq!(sum(&processes, |row| &row["connections"]["total"]), total);
    let instances = |row: &Value| sum(&row["instances"], |one| &one["connections"]["total"]);
    let owned = processes.as_array().unwrap().iter().filter(|row| !row["comm"].is_null());
    for row in owned {
        assert_eq!(row["connections"]["total"], instances(row), "{row}");
        assert_eq!(row["running"], row["instances"].as_array().unwrap().len(), "{row}");
    }
    // Listeners have no peer.
    let listeners = server.json("/connections?role=listener").await["total"].as_u64().unwrap();
    assert_eq!(sum(&peers, |row| &row["connections"]["total"]), total - listeners);
    let metrics = server.get("/metrics").await.body;
    for (field, metric) in [
        ("opened", "tcpwatch_connections_opened_total"),
        ("closed", "tcpwatch_connections_closed_total"),
        ("connect_attempts", "tcpwatch_connect_attempts_total"),
        ("retransmits", "tcpwatch_retransmits_total"),
    ] {
        let samples = metrics.lines().filter(|line| line.split('{').next() == Some(metric));
        let counted: u64 = samples.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(sum(&processes, |row| &row[field]), counted, "{field}");
        assert_eq!(sum(&peers, |row| &row[field]), counted, "{field}");
    }
    for (field, direction) in [("resets_sent", "sent"), ("resets_received", "received")] {
        let direction = format!("direction=\"{direction}\"");
        let samples = metrics
            .lines()
            .filter(|line| line.starts_with("tcpwatch_resets_total{") && line.contains(&direction));
        let counted: u64 = samples.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
        for rows in [&processes, &peers] {
            let reasons = |row: &Value| {
                let counts = row[field].as_object().unwrap().values();
                counts.map(|count| count.as_u64().unwrap()).sum::<u64>()
            };
            assert_eq!(rows.as_array().unwrap().iter().map(reasons).sum::<u64>(), counted, "{field}");
        }
    }
    for rows in [&processes, &peers] {
        for row in rows.as_array().unwrap() {
            let over: u64 = row["connects"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
            let waiting = row["connections"]["states"]["SYN_SENT"].as_u64().unwrap_or(0);
            assert_eq!(row["connect_attempts"], over + waiting, "{row}");
        }
    }
}

#[tokio::test]
async fn a_recording_has_no_translations_and_says_so() {
    let Replayed { node, clock, .. } = fixture::played();
    let server = Server::with(node, clock, Api::of_recording);
    let nat = server.json("/nat?comm=curl&role=client&limit=10000").await;
    assert_eq!((&nat["total"], &nat["translations"]), (&json!(0), &json!([])));
    assert_eq!((&nat["complete"], errors_of(&nat, "translations").len()), (&json!(false), 1), "{nat}");
    assert!(server.get("/nat").await.body.contains("INCOMPLETE: translations: "));
    for (query, name) in [("limit=few", "limit"), ("role=friend", "role"), ("sort=name", "sort")] {
        fails(&server, Method::GET, &format!("/nat?{query}"), 400, Some(name)).await;
    }
    for (path, rows) in [("/processes", "processes"), ("/peers", "peers")] {
        let [asked, plain] = [
            server.json(&format!("{path}?comm=curl&nat=true")).await,
            server.json(&format!("{path}?comm=curl")).await,
        ];
        assert_eq!(errors_of(&asked, "translated"), errors_of(&nat, "translations"), "{asked}");
        assert!(server.get(&format!("{path}?nat=true")).await.body.contains("INCOMPLETE: translated: "));
        assert_eq!((&plain["complete"], &plain[rows]), (&json!(true), &asked[rows]));
    }
    for path in ["/processes", "/peers", "/metrics"] {
        fails(&server, Method::GET, &format!("{path}?nat=maybe"), 400, Some("nat")).await;
    }
    assert!(!server.get("/metrics?nat=true").await.body.contains("translated"));
}

#[tokio::test]
async fn ports_in_use_are_listed_where_the_available_ones_are_unknown() {
    let Replayed { node, clock, .. } = fixture::played();
    let server = Server::with(node, clock, Api::of_recording);
    let clients = server.json("/connections?role=client").await["total"].as_u64().unwrap();
    let ports = server.json("/ports?limit=10000").await;
    assert_eq!(sum(&ports["ports"], |row| &row["in_use"]), clients);
    for row in ports["ports"].as_array().unwrap() {
        assert!(row["available"].is_null(), "{row}");
    }
    assert_eq!(errors_of(&ports, "available").len(), 1, "{ports}");
    let cut = server.json("/ports?limit=1").await;
    assert_eq!((&cut["total"], cut["next_cursor"].is_string()), (&ports["total"], true));
    assert!(server.get("/ports?limit=1").await.body.contains(" shown; "));
    fails(&server, Method::GET, "/ports?limit=few", 400, Some("limit")).await;
}

#[tokio::test]
async fn a_recording_has_no_transfer_values() {
    let Replayed { node, clock, .. } = fixture::played();
    let server = Server::with(node, clock, Api::of_recording);
    let answer = server.json("/transfer").await;
    assert_eq!((&answer["total"], errors_of(&answer, "transfers").len()), (&json!(0), 1), "{answer}");
    fails(&server, Method::GET, "/transfer?sort=age", 400, Some("sort")).await;
    fails(&server, Method::GET, "/transfer?role=boss", 400, Some("role")).await;
    // Nothing is waited for.
    let rates = server.json("/transfer?seconds=60&sort=rate").await;
    assert_eq!((&rates["period_seconds"], &rates["errors"]), (&Value::Null, &answer["errors"]));
}

#[tokio::test]
async fn rates_are_measured_over_at_most_a_minute() {
    let server = Server::of_fixture();
    for seconds in ["0", "-1", "60.001", "1e300", "inf", "nan", "1s", "", "%30x"] {
        fails(&server, Method::GET, &format!("/transfer?seconds={seconds}"), 400, Some("seconds")).await;
    }
    fails(&server, Method::GET, "/transfer?seconds=1&seconds=1", 400, Some("seconds")).await;
    fails(&server, Method::GET, "/transfer?sort=rate", 400, Some("sort")).await;
    let answer = server.json("/transfer?seconds=0.01&sort=rate").await;
    assert!(answer["period_seconds"].as_f64() >= Some(0.01), "{answer}");
    assert!(server.get("/transfer?seconds=0.01").await.body.contains("SENT/S"));
    assert_eq!(server.json("/transfer").await["period_seconds"], Value::Null);
    assert!(!server.get("/transfer").await.body.contains("SENT/S"));
}

#[tokio::test]
async fn measurements_are_limited_in_number_and_end_when_the_daemon_stops() {
    let (sender, mut questions) = mpsc::channel::<Question>(8);
    let server = Server(router(Api::new(sender)));
    let ask = || {
        let server = Server(server.0.clone());
        tokio::spawn(async move { server.get("/transfer?seconds=60").await })
    };
    // A measurement takes its place when it sends its first question.
    let mut asked = Vec::new();
    let mut put = Vec::new();
    for _ in 0..4 {
        asked.push(ask());
        put.push(questions.recv().await.unwrap());
    }
    let refused = server.get("/transfer?seconds=60").await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(refused.body.contains("`seconds`"), "{}", refused.body);
    // They take their first sample, and wait for the second.
    let clock = clock::read();
    let node = empty_node(clock);
    for question in put {
        (question.ask)(&node, clock);
    }
    drop(questions);
    for answer in asked {
        let answer = tokio::time::timeout(Duration::from_secs(30), answer).await;
        assert_eq!(answer.expect("an answer before the minute is over").unwrap().status, 503);
    }
}

#[tokio::test]
async fn processes_and_peers_are_sorted_filtered_and_cut() {
    let server = Server::of_fixture();
    for (path, rows) in [("/processes", "processes"), ("/peers", "peers")] {
        let all = server.json(&format!("{path}?limit=10000")).await;
        let count = all[rows].as_array().unwrap().len();
        assert_eq!((&all["total"], &all["next_cursor"]), (&json!(count), &Value::Null), "{path}");
        for (sort, number) in [
            ("connections", ["connections", "total"]),
            ("opened", ["opened", ""]),
            ("retransmits", ["retransmits", ""]),
        ] {
            let answer = server.json(&format!("{path}?sort={sort}&limit=10000")).await;
            let numbers: Vec<_> = answer[rows]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| {
                    let [outer, inner] = number;
                    if inner.is_empty() { row[outer].as_u64() } else { row[outer][inner].as_u64() }
                })
                .collect();
            assert!(numbers.is_sorted_by(|a, b| a >= b), "{path} {sort}: {numbers:?}");
        }
        let cut = server.json(&format!("{path}?limit=2")).await;
        assert_eq!(
            (cut[rows].as_array().unwrap().len(), cut["next_cursor"].is_string()),
            (2, true),
            "{path}"
        );
        assert_eq!(cut["total"], count, "{path}");
        let text = server.get(&format!("{path}?limit=2")).await.body;
        assert!(text.lines().last().is_some_and(|last| last.contains(&format!("2 of {count}"))), "{text}");
        fails(&server, Method::GET, &format!("{path}?sort=age"), 400, Some("sort")).await;
        fails(&server, Method::GET, &format!("{path}?limit=x"), 400, Some("limit")).await;
        assert_eq!(server.json(&format!("{path}?comm=nobody")).await["total"], 0);
    }
    let leaky = server.json("/processes?comm=leaky-4").await;
    assert_eq!(leaky["processes"][0]["connections"]["total"], 4, "{leaky}");
    let clients = server.json("/peers?role=client&limit=10000").await;
    assert!(clients["peers"].as_array().unwrap().iter().all(|row| row["role"] == "client"), "{clients}");
    fails(&server, Method::GET, "/peers?role=boss", 400, Some("role")).await;
}

#[tokio::test]
async fn leaks_fit_a_terminal_and_name_their_process() {
    let server = Server::of_fixture();
    let text = server.get("/leaks").await.body;
    let too_wide: Vec<_> = text.lines().filter(|line| line.chars().count() > 100).collect();
    assert_eq!(too_wide, [] as [&str; 0]);
    let leaks = server.json("/leaks").await;
    for leak in leaks["leaks"].as_array().unwrap() {
        for what in [&leak["rule"], &leak["state"], &leak["process"]["comm"]] {
            assert!(text.contains(what.as_str().unwrap()), "no {what} in:\n{text}");
        }
        assert!(text.contains(&format!("pid {}", leak["process"]["pid"])), "{text}");
    }
}

#[tokio::test]
async fn before_the_first_sweep_answers_are_incomplete() {
    let server = Server::before_the_first_sweep();
    fails(&server, Method::GET, "/readyz", 503, None).await;
    assert_eq!(server.get("/healthz").await.status, 200);
    let leaks = server.json("/leaks").await;
    assert_eq!((&leaks["complete"], &leaks["leaks"]), (&json!(false), &json!([])));
    assert_eq!(server.json("/status").await["ready"], false);
    assert_eq!(Server::of_fixture().get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_stopping_daemon_answers_503_and_healthz_200() {
    let (sender, questions) = mpsc::channel(1);
    drop(questions);
    let server = Server(router(Api::new(sender)));
    for path in paths().iter().filter(|path| !["/help", "/healthz", "/openapi.json"].contains(&&***path)) {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 503, "{path}: {}", answer.body);
    }
    assert_eq!(server.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn hostile_queries_are_refused_or_find_nothing() {
    let server = Server::of_fixture();
    let long = "x".repeat(60_000);
    let many = "a=1&".repeat(15_000);
    for path in paths() {
        for query in [
            "%", "%f", "%00", "%00=%00", "=", "&", "&&&&", "==", "%ff=%fe", "%c3%28=1", "a[]=1", "a;b", "+",
            &long, &many,
        ] {
            let answer = server.get(&format!("{path}?{query}")).await;
            let fine = answer.status == 400 || answer.status == 200;
            assert!(fine, "{path}?{}: {}", &query[..query.len().min(20)], answer.status);
        }
    }
    for query in [
        format!("comm={long}"),
        format!("state={long}"),
        format!("remote={long}"),
        "comm=%00".to_owned(),
        "comm=%1b[31m".to_owned(),
    ] {
        let answer = server.get(&format!("/connections?{query}")).await;
        assert!(answer.status == 200 || answer.status == 400, "{}", answer.status);
        assert!(!answer.body.contains('\u{1b}'), "{query}");
    }
}

/// The fixture where a process calls itself by a name with a newline and a terminal's control sequence.
fn fixture_with_a_hostile_name() -> Server {
    let rename = |bytes: Bytes| -> Bytes {
        let mut bytes = bytes.to_vec();
        let starts: Vec<usize> =
            bytes.windows(8).enumerate().filter(|(_, name)| name == b"leaky-4\0").map(|(at, _)| at).collect();
        for start in starts {
            bytes[start..start + 7].copy_from_slice(b"\n\x1b[31m\"");
        }
        bytes.into()
    };
    let Replayed { clock, .. } = fixture::played();
    let mut node = empty_node(clock);
    for frame in recorder::open(&fixture::path()).unwrap() {
        node.ingest(&match frame {
            Frame::Record(bytes) => Frame::Record(rename(bytes)),
            Frame::Seen(records) => Frame::Seen(rename(records)),
            other => other,
        });
    }
    Server::new(node, clock)
}

#[tokio::test]
async fn a_hostile_process_name_cannot_forge_lines_or_colours() {
    let server = fixture_with_a_hostile_name();
    let rows = server.json(r"/connections?comm=%5cx0a%5cx1b[31m%22").await;
    assert_eq!(rows["total"], 4);
    assert_eq!(rows["connections"][0]["process"]["comm"], r#"\x0a\x1b[31m""#, "the same in JSON");
    let honest = Server::of_fixture();
    for path in ["/", "/series", "/connections", "/processes", "/peers", "/ports", "/leaks", "/status"] {
        let text = server.get(path).await.body;
        assert!(!text.contains('\u{1b}'), "{path}: {text:?}");
        // A longer name may break an indented line of prose elsewhere.
        let lines = |text: &str| text.lines().filter(|line| !line.starts_with(' ')).count();
        assert_eq!(lines(&text), lines(&honest.get(path).await.body), "{path}: {text}");
    }
}
