//! `/`: what can be asked.

use axum::response::Response;
use serde::Serialize;

use crate::http::{Asked, Render, respond};

#[derive(Serialize)]
struct Index {
    version: &'static str,
    paths: &'static [Path],
}

#[derive(Serialize)]
struct Path {
    path: &'static str,
    answers: &'static str,
}

const PATHS: &[Path] = &[
    Path {
        path: "/leaks",
        answers: "connections that stand too long in a state that should be short, and whose",
    },
    Path {
        path: "/connections",
        answers: "every connection now; ?state= pid= comm= local_port= remote_port= remote= role= sort= limit=",
    },
    Path {
        path: "/connections/ID",
        answers: "one connection, now or ended: every state, how long, caused by whom",
    },
    Path { path: "/history", answers: "the connections that ended last; ?comm= pid= remote= since= limit=" },
    Path {
        path: "/processes",
        answers: "who has how many connections, and counts since the start; ?comm= sort= limit= nat=",
    },
    Path {
        path: "/peers",
        answers: "the same by the server's side of the connections; ?comm= role= sort= limit= nat=",
    },
    Path {
        path: "/ports",
        answers: "local ports in use toward each destination, and how many there are; ?limit=",
    },
    Path {
        path: "/nat",
        answers: "whom connections dialled and whom they reached, where addresses are translated; ?comm= role= limit=",
    },
    Path {
        path: "/transfer",
        answers: "how the data of live connections goes, by process and peer; ?comm= role= seconds= sort= limit=",
    },
    Path {
        path: "/events",
        answers: "every transition as it happens, as server-sent events; filters as above",
    },
    Path { path: "/status", answers: "how tcpwatch itself is doing: hooks, records, states, own cost" },
    Path { path: "/metrics", answers: "the same as numbers for Prometheus; ?nat=" },
    Path { path: "/healthz", answers: "200 while alive" },
    Path { path: "/readyz", answers: "200 once everything open is known, else 503" },
];

pub(crate) async fn handle(asked: Asked) -> Response {
    let answer =
        asked.params.finish(&[]).map(|()| Index { version: env!("CARGO_PKG_VERSION"), paths: PATHS });
    respond(asked.format, answer)
}

impl Render for Index {
    fn text(&self) -> String {
        let mut text = format!("tcpwatch {}\n\n", self.version);
        for path in self.paths {
            text += &format!("{:<17}{}\n", path.path, path.answers);
        }
        text += "\nAdd ?format=json for JSON.\n";
        text
    }
}
