//! The router, how a question reaches the owner of the state, and how an answer leaves.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{StatusCode, header},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tower_http::compression::CompressionLayer;

use crate::{
    http::{
        endpoints::{Asked, Endpoint, endpoints},
        metrics::{self, OwnMetrics},
        page::Page,
        render::text::harmless,
        request::{ApiError, Format},
    },
    kernel::sweeper::Sweeper,
    node::{Node, Question, SweepFirst},
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
    /// Of [`FOLLOWERS`], those that are free.
    pub(crate) followers: Arc<Semaphore>,
    /// Of [`LARGE_ANSWERS`], those that are free.
    large_answers: Arc<Semaphore>,
    /// What is measured here, not by the owner of the state.
    pub(crate) own: Arc<OwnMetrics>,
}

/// What all connections had carried when they were first looked at is kept for so many questions at once, however many
/// are put.
const FIRST_LOOKS: usize = 4;

/// Clients that follow `/events` at once: each costs the owner of the state time for each record.
pub(crate) const FOLLOWERS: usize = 16;

/// Rows of an answer that is small. They take some hundred bytes each, and more than that while they are made.
const SMALL_ROWS: usize = 1000;
/// Answers with more rows in memory at once, until their clients have read them.
const LARGE_ANSWERS: usize = 2;

/// Limit for the answer of the owner of the state, who is asked one question at a time.
const DEADLINE: Duration = Duration::from_secs(10);

impl Api {
    pub fn new(questions: mpsc::Sender<Question>) -> Self {
        Self {
            questions,
            live: true,
            sweeper: None,
            first_looks: Arc::new(Semaphore::new(FIRST_LOOKS)),
            followers: Arc::new(Semaphore::new(FOLLOWERS)),
            large_answers: Arc::new(Semaphore::new(LARGE_ANSWERS)),
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
        self.ask_after(if about_owners { SweepFirst::Yes } else { SweepFirst::No }, ask).await
    }

    pub(crate) async fn ask_after<T: Send + 'static>(
        &self,
        sweep_first: SweepFirst,
        ask: impl FnOnce(&Node, Clock) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let ask = Box::new(move |node: &Node, clock: Clock| {
            // A question changes nothing, so what it leaves behind when it panics is whole.
            let answer = catch_unwind(AssertUnwindSafe(|| ask(node, clock)));
            // The asker may have hung up.
            let _ = reply.send(answer);
        });
        let answered = async {
            let question = Question { ask, sweep_first };
            self.questions.send(question).await.map_err(|_| ApiError::stopping())?;
            let answer = answer.await.map_err(|_| ApiError::stopping())?;
            answer.map_err(|_| ApiError::internal(&"making it panicked, at the place in the line before"))
        };
        tokio::time::timeout(DEADLINE, answered).await.unwrap_or_else(|_| Err(ApiError::late(DEADLINE)))
    }

    /// Waits until an answer with so many rows may be made. What is returned is to be held until it was sent.
    pub(crate) async fn place_for(&self, rows: usize) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        if rows <= SMALL_ROWS {
            return Ok(None);
        }
        let place = Arc::clone(&self.large_answers).acquire_owned();
        match tokio::time::timeout(DEADLINE, place).await {
            Ok(place) => Ok(place.ok()),
            Err(_) => Err(ApiError::too_many_large(LARGE_ANSWERS, SMALL_ROWS)),
        }
    }

    /// When nothing is answered any more.
    pub(crate) async fn stopped(&self) {
        self.questions.closed().await;
    }
}

/// All paths of the table.
pub fn router(api: Api) -> Router {
    routed(api, |_| true)
}

/// What an orchestrator and Prometheus ask for, and nothing that names a connection.
pub fn probes_router(api: Api) -> Router {
    routed(api, |path| matches!(path, "/metrics" | "/healthz" | "/readyz"))
}

fn routed(api: Api, wanted: impl Fn(&str) -> bool) -> Router {
    let route = |router: Router<Api>, endpoint: &Endpoint| router.route(endpoint.path, endpoint.route());
    endpoints()
        .iter()
        .filter(|endpoint| wanted(endpoint.path))
        .fold(Router::new(), route)
        .layer(CompressionLayer::new())
        .fallback(unknown_path)
        .method_not_allowed_fallback(only_get)
        .layer(from_fn_with_state(Arc::clone(&api.own), metrics::time_request))
        .with_state(api)
}

/// An answer with a text form and a JSON form.
pub(crate) trait Render: Serialize + JsonSchema {
    fn text(&self) -> String;
}

/// An answer that is a list.
pub(crate) trait List: Render + Send + 'static {
    type Row: Serialize + JsonSchema + Send + 'static;

    /// Rows that are asked for at once where all are wanted: what makes a page is done by the task that owns the state.
    /// A list of sums is made as a whole in any case.
    const AT_ONCE: usize;

    /// The rows, and where the next page begins.
    fn into_rows(self) -> (Vec<Self::Row>, Option<String>);
}

pub(crate) fn respond(format: Format, answer: &impl Render) -> Response {
    match format {
        Format::Text => text_response(StatusCode::OK, answer.text()),
        Format::Json | Format::Ndjson => json_response(StatusCode::OK, answer),
    }
}

/// All rows of a list, a line each, a page after the other.
pub(crate) async fn ndjson<L: List, F: Future<Output = Result<L, ApiError>> + Send + 'static>(
    ask: impl Fn(Page) -> F + Send + Sync + 'static,
    page: Page,
) -> Response {
    let left = page.explicit_limit().unwrap_or(usize::MAX);
    let first = match ask(page.with_limit(left.min(L::AT_ONCE))).await {
        Ok(first) => first,
        Err(error) => return error.respond(Format::Ndjson),
    };
    let begin = (Some(first), None::<String>, left, ask);
    let pages = stream::try_unfold(begin, |(ready, cursor, left, ask)| async move {
        let page = match (ready, cursor) {
            (Some(page), _) => page,
            (None, Some(cursor)) if left > 0 => {
                // Whoever reads sees that the list is not at its end.
                ask(Page::behind(left.min(L::AT_ONCE), cursor)).await.map_err(io::Error::other)?
            }
            _ => return Ok::<_, io::Error>(None),
        };
        let (rows, cursor) = page.into_rows();
        let mut lines = Vec::new();
        for row in &rows {
            serde_json::to_writer(&mut lines, row)?;
            lines.push(b'\n');
        }
        Ok(Some((Bytes::from(lines), (None, cursor, left - rows.len(), ask))))
    });
    let content_type = [(header::CONTENT_TYPE, Format::Ndjson.media_type())];
    (content_type, Body::from_stream(pages)).into_response()
}

pub(crate) fn text_response(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, Format::Text.media_type())], harmless(text)).into_response()
}

pub(crate) fn json_response(status: StatusCode, answer: &impl Serialize) -> Response {
    match serde_json::to_vec_pretty(answer) {
        Ok(mut json) => {
            json.push(b'\n');
            (status, [(header::CONTENT_TYPE, Format::Json.media_type())], json).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

pub(crate) async fn healthz(_: Api, (): ()) -> Result<Response, ApiError> {
    Ok(text_response(StatusCode::OK, "ok\n".to_owned()))
}

pub(crate) async fn readyz(api: Api, (): ()) -> Result<Response, ApiError> {
    match api.ask(false, |node, _| node.waiting_for).await? {
        None => Ok(text_response(StatusCode::OK, "ready\n".to_owned())),
        Some(what) => Err(ApiError::not_ready(what)),
    }
}

async fn unknown_path(uri: axum::http::Uri, asked: Asked) -> Response {
    ApiError::unknown_path(uri.path()).respond(asked.format())
}

async fn only_get(asked: Asked) -> Response {
    ApiError::only_get().respond(asked.format())
}

#[cfg(test)]
mod tests {
    use std::{future::ready, time::SystemTime};

    use axum::body::to_bytes;

    use super::*;
    use crate::http::page::Cut;

    /// Some of the numbers below ten, two at once.
    #[derive(Debug, Serialize, JsonSchema)]
    struct Numbers(Cut<u64>);

    impl Render for Numbers {
        fn text(&self) -> String {
            format!("{:?}", self.0.rows)
        }
    }

    impl List for Numbers {
        type Row = u64;

        const AT_ONCE: usize = 2;

        fn into_rows(self) -> (Vec<u64>, Option<String>) {
            (self.0.rows, self.0.extent.next_cursor)
        }
    }

    fn numbers(page: &Page, failing_from: Option<u64>) -> Result<Numbers, ApiError> {
        let cut = page.cut("size", (0..10).collect(), |number| *number)?;
        match failing_from {
            Some(number) if cut.rows.contains(&number) => Err(ApiError::stopping()),
            _ => Ok(Numbers(cut)),
        }
    }

    async fn body(failing_from: Option<u64>) -> (StatusCode, Option<Bytes>) {
        let answer = ndjson(move |page| ready(numbers(&page, failing_from)), Page::default()).await;
        let status = answer.status();
        (status, to_bytes(answer.into_body(), usize::MAX).await.ok())
    }

    #[tokio::test]
    async fn a_view_that_panics_is_an_error_and_the_next_one_is_answered() {
        let (questions, mut asked) = mpsc::channel::<Question>(1);
        tokio::spawn(async move {
            let clock = Clock { now_ns: 0, wall: SystemTime::UNIX_EPOCH };
            let node = Node::empty();
            while let Some(question) = asked.recv().await {
                (question.ask)(&node, clock);
            }
        });
        let api = Api::new(questions);
        let error = api.ask(false, |_, _| -> u8 { panic!("on purpose") }).await.unwrap_err();
        assert_eq!(error.respond(Format::Text).status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(api.ask(false, |_, _| 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_large_answer_waits_for_another_and_small_ones_never_do() {
        use futures_util::FutureExt as _;

        let api = Api::new(mpsc::channel(1).0);
        let mut large = Vec::new();
        for _ in 0..LARGE_ANSWERS {
            large.push(api.place_for(SMALL_ROWS + 1).await.unwrap());
        }
        assert!(api.place_for(SMALL_ROWS).await.unwrap().is_none());
        assert!(api.place_for(SMALL_ROWS + 1).now_or_never().is_none());
        drop(large.pop());
        assert!(api.place_for(SMALL_ROWS + 1).now_or_never().unwrap().unwrap().is_some());
    }

    #[tokio::test]
    async fn lines_are_asked_for_in_pages_until_the_end() {
        let lines = (0..10).fold(String::new(), |lines, number| lines + &number.to_string() + "\n");
        assert_eq!(body(None).await, (StatusCode::OK, Some(lines.into())));
    }

    #[tokio::test]
    async fn lines_that_break_off_do_not_look_like_the_whole_list() {
        assert_eq!(body(Some(4)).await, (StatusCode::OK, None), "the status was sent before");
        let (status, error) = body(Some(0)).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(error.is_some());
    }
}
