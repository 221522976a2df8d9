//! What people and programs ask over HTTP: a file for each answer.
//!
//! | path | answers |
//! |---|---|
//! | `/` | this list |
//! | `/leaks` | connections that stand too long in a state that should be short |
//! | `/connections` | every connection now |
//! | `/connections/ID` | one connection's whole life |
//! | `/history` | the connections that ended last |
//! | `/processes` | connections and counts by process |
//! | `/peers` | the same by the server's side |
//! | `/ports` | local ports in use toward each destination |
//! | `/nat` | whom connections dialled and whom they reached, where addresses are translated |
//! | `/transfer` | how the data goes, by process and peer |
//! | `/events` | every transition as it happens |
//! | `/status` | how tcpwatch itself is doing |
//! | `/metrics` | Prometheus |
//! | `/healthz`, `/readyz` | for probes |
//!
//! Answers are text for people, JSON with `?format=json` or `Accept: application/json`. A question runs on
//! the task that owns the state and gets a consistent view of it.

mod connection;
mod connections;
mod events;
mod filter;
mod history;
mod index;
mod leaks;
mod metrics;
mod nat;
mod peers;
mod ports;
mod processes;
mod request;
mod status;
mod sums;
mod text;
mod transfer;
mod view;

use std::sync::Arc;

use axum::{
    Router,
    extract::{FromRequestParts, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::{Semaphore, mpsc, oneshot};

use self::request::{Format, Params};
pub use self::{
    request::ApiError,
    status::signals,
    text::{printable, table},
};
use crate::{clock::Clock, node::Node, sweeper::Sweeper};

/// Looks at the state and sends what it saw.
pub type Ask = Box<dyn FnOnce(&Node, Clock) + Send>;

/// A question for the task that owns the state.
pub struct Question {
    pub ask: Ask,
    /// Whether the answer names owners, or sums what lives: then all sockets are looked at first, where that is cheap.
    pub about_owners: bool,
}

/// How HTTP reaches the owner of the state.
#[derive(Clone, Debug)]
pub struct Api {
    questions: mpsc::Sender<Question>,
    /// What is asked about is on this machine now, so the kernel can be asked too.
    live: bool,
    /// Who knows sockets' options.
    sweeper: Option<Sweeper>,
    /// Of [`FIRST_LOOKS`], those that are free.
    first_looks: Arc<Semaphore>,
}

/// What all connections had carried when they were first looked at is kept for so many questions at once, however many
/// are put.
const FIRST_LOOKS: usize = 4;

impl Api {
    pub fn new(questions: mpsc::Sender<Question>) -> Self {
        Self { questions, live: true, sweeper: None, first_looks: Arc::new(Semaphore::new(FIRST_LOOKS)) }
    }

    pub fn of_recording(questions: mpsc::Sender<Question>) -> Self {
        Self { live: false, ..Self::new(questions) }
    }

    #[must_use]
    pub fn with_sweeper(self, sweeper: Sweeper) -> Self {
        Self { sweeper: Some(sweeper), ..self }
    }

    async fn ask<T: Send + 'static>(
        &self,
        about_owners: bool,
        ask: impl FnOnce(&Node, Clock) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let ask = Box::new(move |node: &Node, clock: Clock| {
            // The asker may have hung up.
            let _ = reply.send(ask(node, clock));
        });
        self.questions.send(Question { ask, about_owners }).await.map_err(|_| ApiError::stopping())?;
        answer.await.map_err(|_| ApiError::stopping())
    }

    /// When nothing is answered any more.
    async fn stopped(&self) {
        self.questions.closed().await;
    }
}

/// All paths.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/", get(index::handle))
        .route("/leaks", get(leaks::handle))
        .route("/connections", get(connections::handle))
        .route("/connections/{id}", get(connection::handle))
        .route("/history", get(history::handle))
        .route("/processes", get(processes::handle))
        .route("/peers", get(peers::handle))
        .route("/ports", get(ports::handle))
        .route("/nat", get(nat::handle))
        .route("/transfer", get(transfer::handle))
        .route("/events", get(events::handle))
        .route("/status", get(status::handle))
        .route("/metrics", get(metrics::handle))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(unknown_path)
        .method_not_allowed_fallback(only_get)
        .with_state(api)
}

/// The parameters of a request and the form its answer should have.
struct Asked {
    format: Format,
    params: Params,
}

impl<S: Sync> FromRequestParts<S> for Asked {
    type Rejection = Response;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        _: &S,
    ) -> Result<Self, Self::Rejection> {
        let mut params = Params::parse(parts.uri.query().unwrap_or(""));
        let accept = parts.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        match Format::choose(&mut params, accept) {
            Ok(format) => Ok(Self { format, params }),
            Err(error) => Err(error.respond(Format::Text)),
        }
    }
}

/// An answer in both forms.
trait Answer: serde::Serialize {
    fn text(&self) -> String;
}

fn respond<A: Answer>(format: Format, answer: Result<A, ApiError>) -> Response {
    match (answer, format) {
        (Err(error), _) => error.respond(format),
        (Ok(answer), Format::Text) => text_response(StatusCode::OK, answer.text()),
        (Ok(answer), Format::Json) => json_response(StatusCode::OK, &answer),
    }
}

fn text_response(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

fn json_response(status: StatusCode, answer: &impl serde::Serialize) -> Response {
    match serde_json::to_vec_pretty(answer) {
        Ok(mut json) => {
            json.push(b'\n');
            (status, [(header::CONTENT_TYPE, "application/json")], json).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn healthz(asked: Asked) -> Response {
    match asked.params.finish(&[]) {
        Ok(()) => text_response(StatusCode::OK, "ok\n".to_owned()),
        Err(error) => error.respond(asked.format),
    }
}

async fn readyz(State(api): State<Api>, asked: Asked) -> Response {
    let answer = match asked.params.finish(&[]) {
        Ok(()) => api.ask(false, |node, _| node.waiting_for).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(None) => text_response(StatusCode::OK, "ready\n".to_owned()),
        Ok(Some(what)) => ApiError::not_ready(what).respond(asked.format),
        Err(error) => error.respond(asked.format),
    }
}

async fn unknown_path(uri: axum::http::Uri, asked: Asked) -> Response {
    ApiError::unknown_path(uri.path()).respond(asked.format)
}

async fn only_get(asked: Asked) -> Response {
    ApiError::only_get().respond(asked.format)
}
