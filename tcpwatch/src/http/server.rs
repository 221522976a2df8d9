//! The router, how a question reaches the owner of the state, and how an answer leaves.

use std::sync::Arc;

use axum::{
    Router,
    extract::{FromRequestParts, State},
    http::{StatusCode, header},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tower_http::compression::CompressionLayer;

use crate::{
    http::{
        api,
        metrics::{self, OwnMetrics},
        request::{ApiError, Format, Params},
    },
    kernel::sweeper::Sweeper,
    node::{Node, Question},
    tcp::time::Clock,
};

/// How HTTP reaches the owner of the state.
#[derive(Clone, Debug)]
pub struct Api {
    questions: mpsc::Sender<Question>,
    /// What is asked about is on this machine now, so the kernel can be asked too.
    pub(crate) live: bool,
    /// Who knows sockets' options.
    pub(crate) sweeper: Option<Sweeper>,
    /// Of [`FIRST_LOOKS`], those that are free.
    pub(crate) first_looks: Arc<Semaphore>,
    /// What is measured here, not by the owner of the state.
    pub(crate) own: Arc<OwnMetrics>,
}

/// What all connections had carried when they were first looked at is kept for so many questions at once, however many
/// are put.
const FIRST_LOOKS: usize = 4;

impl Api {
    pub fn new(questions: mpsc::Sender<Question>) -> Self {
        Self {
            questions,
            live: true,
            sweeper: None,
            first_looks: Arc::new(Semaphore::new(FIRST_LOOKS)),
            own: Arc::default(),
        }
    }

    pub fn of_recording(questions: mpsc::Sender<Question>) -> Self {
        Self { live: false, ..Self::new(questions) }
    }

    #[must_use]
    pub fn with_sweeper(self, sweeper: Sweeper) -> Self {
        Self { sweeper: Some(sweeper), ..self }
    }

    pub(crate) async fn ask<T: Send + 'static>(
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
    pub(crate) async fn stopped(&self) {
        self.questions.closed().await;
    }
}

/// All paths.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/", get(api::index::handle))
        .route("/leaks", get(api::leaks::handle))
        .route("/connections", get(api::connections::handle))
        .route("/connections/{id}", get(api::connection::handle))
        .route("/history", get(api::history::handle))
        .route("/processes", get(api::processes::handle))
        .route("/peers", get(api::peers::handle))
        .route("/ports", get(api::ports::handle))
        .route("/nat", get(api::nat::handle))
        .route("/transfer", get(api::transfer::handle))
        .route("/events", get(api::events::handle))
        .route("/status", get(api::status::handle))
        .route("/metrics", get(metrics::handle).layer(CompressionLayer::new()))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(unknown_path)
        .method_not_allowed_fallback(only_get)
        .layer(from_fn_with_state(Arc::clone(&api.own), metrics::time_request))
        .with_state(api)
}

/// The parameters of a request and the form its answer should have.
pub(crate) struct Asked {
    pub(crate) format: Format,
    pub(crate) params: Params,
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
pub(crate) trait Render: serde::Serialize {
    fn text(&self) -> String;
}

pub(crate) fn respond<A: Render>(format: Format, answer: Result<A, ApiError>) -> Response {
    match (answer, format) {
        (Err(error), _) => error.respond(format),
        (Ok(answer), Format::Text) => text_response(StatusCode::OK, answer.text()),
        (Ok(answer), Format::Json) => json_response(StatusCode::OK, &answer),
    }
}

pub(crate) fn text_response(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

pub(crate) fn json_response(status: StatusCode, answer: &impl serde::Serialize) -> Response {
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
