//! The table of endpoints: what is served, with which parameters and answers. The router, the list at `/help`, the error
//! messages, the OpenAPI document, docs/http-api.md and the generic tests come from it.

use std::{convert::Infallible, sync::LazyLock};

use axum::{
    body::Body,
    extract::{FromRequestParts, RawPathParams, State},
    http::{StatusCode, header, request::Parts},
    response::Response,
    routing::{MethodRouter, get},
};

use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::{
    http::{
        Api, ApiError, api,
        guard::refusals,
        held::Held,
        metrics,
        page::Page,
        parameters::{Given, Parameter, Parameters, Place},
        request::Format,
        server::{self, List, Render},
    },
    model::transition::Transition,
};

/// A JSON object that is described elsewhere.
type AnyObject = serde_json::Map<String, serde_json::Value>;

/// One path that is served.
pub struct Endpoint {
    /// As OpenAPI and the router write it: a segment in braces is a parameter.
    pub path: &'static str,
    pub summary: &'static str,
    pub parameters: Vec<Parameter>,
    /// What a good answer has in it, in each of its forms.
    pub content: Vec<Content>,
    /// Statuses of other answers, and when they are given.
    pub failures: Vec<(StatusCode, &'static str)>,
    route: MethodRouter<Api>,
}

/// A form of a good answer.
pub struct Content {
    pub media_type: &'static str,
    /// What is in it; `None` for text.
    pub schema: Option<fn(&mut SchemaGenerator) -> Schema>,
}

impl Content {
    fn text(media_type: &'static str) -> Self {
        Self { media_type, schema: None }
    }

    fn of<T: JsonSchema>(media_type: &'static str) -> Self {
        Self { media_type, schema: Some(SchemaGenerator::subschema_for::<T>) }
    }
}

const RENDERED: &[Format] = &[Format::Text, Format::Json];
const LISTED: &[Format] = &[Format::Text, Format::Json, Format::Ndjson];

/// All paths, in the order in which they are listed.
pub fn endpoints() -> &'static [Endpoint] {
    static ENDPOINTS: LazyLock<Vec<Endpoint>> =
        LazyLock::new(|| about_connections().into_iter().chain(for_programs()).collect());
    &ENDPOINTS
}

fn about_connections() -> Vec<Endpoint> {
    vec![
        Endpoint::rendered(
            "/",
            "what is wrong now, what was looked at, and what there is beside what there was",
            api::overview::answer,
        ),
        Endpoint::rendered("/help", "what can be asked", api::help::answer),
        Endpoint::rendered(
            "/findings",
            "what is wrong: causes before effects, with numbers and what to do",
            api::findings::answer,
        ),
        Endpoint::rendered("/findings/{id}", "one finding, open or ended", api::findings::one)
            .fails(StatusCode::NOT_FOUND, "no finding has this id, neither now nor in the last day"),
        Endpoint::rendered(
            "/leaks",
            "connections that stand too long in a state that should be short, and whose they are",
            api::leaks::answer,
        ),
        Endpoint::list("/connections", "every connection now", api::connections::answer),
        Endpoint::rendered(
            "/connections/{id}",
            "one connection, now or ended: every state, how long, caused by whom",
            api::connection::answer,
        )
        .fails(StatusCode::NOT_FOUND, "no connection has this id, neither now nor among the last that ended"),
        Endpoint::rendered(
            "/network",
            "whether TCP delivered everything between a process and a peer, once, in order and without delay",
            api::network::answer,
        ),
        Endpoint::list("/history", "the connections that ended last", api::history::answer),
        Endpoint::list(
            "/processes",
            "who has how many connections, and counts since the start",
            api::processes::answer,
        ),
        Endpoint::list("/peers", "the same by the server's side of the connections", api::peers::answer),
        Endpoint::list(
            "/ports",
            "local ports in use toward each destination, and how many there are",
            api::ports::answer,
        ),
        Endpoint::list(
            "/nat",
            "whom connections dialled and whom they reached, where addresses are translated",
            api::nat::answer,
        ),
        Endpoint::list(
            "/transfer",
            "how the data of live connections goes, by process and peer",
            api::transfer::answer,
        ),
        Endpoint::rendered(
            "/series",
            "what there was in the last minutes and hours, by workload and in total",
            api::series::answer,
        ),
    ]
}

/// And about tcpwatch itself.
fn for_programs() -> Vec<Endpoint> {
    vec![
        Endpoint::raw(
            "/openapi.json",
            "this table as an OpenAPI 3.1 document",
            Content::of::<AnyObject>(Format::Json.media_type()),
            api::help::openapi,
        ),
        Endpoint::raw(
            "/events",
            "every transition as it happens, as server-sent events",
            Content::of::<Transition>("text/event-stream"),
            api::events::answer,
        )
        .fails(StatusCode::SERVICE_UNAVAILABLE, "too many clients follow already, or tcpwatch is stopping"),
        Endpoint::rendered(
            "/status",
            "how tcpwatch itself is doing: hooks, records, states, own cost",
            api::status::answer,
        ),
        Endpoint::raw(
            "/metrics",
            "the same as numbers for Prometheus",
            Content::text(metrics::MEDIA_TYPE),
            metrics::answer,
        ),
        Endpoint::raw(
            "/healthz",
            "200 while tcpwatch is alive",
            Content::text(Format::Text.media_type()),
            server::healthz,
        ),
        Endpoint::raw(
            "/readyz",
            "200 once all hooks are attached and all open sockets are known, else 503",
            Content::text(Format::Text.media_type()),
            server::readyz,
        ),
    ]
}

impl Endpoint {
    /// An answer with a text form and a JSON form.
    fn rendered<P: Parameters, A: Render, F: Future<Output = Result<A, ApiError>> + Send + 'static>(
        path: &'static str,
        summary: &'static str,
        answer: fn(Api, P) -> F,
    ) -> Self {
        let respond = move |api, format, parameters| async move {
            match answer(api, parameters).await {
                Ok(answer) => server::respond(format, &answer),
                Err(error) => error.respond(format),
            }
        };
        let content =
            vec![Content::text(Format::Text.media_type()), Content::of::<A>(Format::Json.media_type())];
        Self::new(path, summary, RENDERED, content, respond)
    }

    /// A list: the same, and each row on a line of its own. Its pages are asked for one after another.
    fn list<
        P: Parameters + Clone + Sync,
        L: List,
        F: Future<Output = Result<L, ApiError>> + Send + 'static,
    >(
        path: &'static str,
        summary: &'static str,
        answer: fn(Api, P, Page) -> F,
    ) -> Self {
        let respond = move |api: Api, format, (parameters, page): (P, Page)| async move {
            let rows = if format == Format::Ndjson {
                page.explicit_limit().unwrap_or(L::AT_ONCE)
            } else {
                page.limit()
            };
            let place = match api.place_for(rows).await {
                Ok(place) => place,
                Err(error) => return error.respond(format),
            };
            let answer = move |page| answer(api.clone(), parameters.clone(), page);
            let response = match format {
                Format::Ndjson => server::ndjson(answer, page).await,
                format => match answer(page).await {
                    Ok(answer) => server::respond(format, &answer),
                    Err(error) => error.respond(format),
                },
            };
            response.map(|body| Body::new(Held { body, _until_sent: place }))
        };
        let content = vec![
            Content::text(Format::Text.media_type()),
            Content::of::<L>(Format::Json.media_type()),
            Content::of::<L::Row>(Format::Ndjson.media_type()),
        ];
        Self::new(path, summary, LISTED, content, respond)
    }

    /// An answer of one media type, which the handler makes.
    fn raw<P: Parameters, F: Future<Output = Result<Response, ApiError>> + Send + 'static>(
        path: &'static str,
        summary: &'static str,
        content: Content,
        answer: fn(Api, P) -> F,
    ) -> Self {
        let respond = move |api, format, parameters| async move {
            answer(api, parameters).await.unwrap_or_else(|error| error.respond(format))
        };
        Self::new(path, summary, RENDERED, vec![content], respond)
    }

    fn new<P: Parameters, F: Future<Output = Response> + Send>(
        path: &'static str,
        summary: &'static str,
        formats: &'static [Format],
        content: Vec<Content>,
        respond: impl Fn(Api, Format, P) -> F + Clone + Send + Sync + 'static,
    ) -> Self {
        let of_errors = content.len() < formats.len();
        let declared = move || {
            let mut parameters = P::declare();
            parameters.push(Format::declare(formats, of_errors));
            parameters
        };
        let route = get(move |State(api): State<Api>, asked: Asked| {
            let respond = respond.clone();
            async move {
                match asked.parse(formats, declared) {
                    Ok((format, parameters)) => respond(api, format, parameters).await,
                    Err((format, error)) => error.respond(format),
                }
            }
        });
        let mut failures = vec![
            (StatusCode::BAD_REQUEST, "an unknown, malformed or repeated parameter"),
            (StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be made; the reason is in the log"),
            (StatusCode::SERVICE_UNAVAILABLE, "there was no answer in time, or tcpwatch is stopping"),
        ];
        failures.extend(refusals(path));
        Self { path, summary, parameters: declared(), content, failures, route }
    }

    fn fails(mut self, status: StatusCode, when: &'static str) -> Self {
        self.failures.retain(|(other, _)| *other != status);
        self.failures.push((status, when));
        self
    }

    pub(crate) fn route(&self) -> MethodRouter<Api> {
        self.route.clone()
    }

    /// The names of the parameters of the query without `format`, which all have.
    pub fn query(&self) -> impl Iterator<Item = &'static str> {
        let named = self.parameters.iter().filter(|one| one.place == Place::Query && one.name != "format");
        named.map(|one| one.name)
    }
}

/// A request as far as it matters to an answer.
pub(crate) struct Asked {
    given: Given,
    accept: Option<String>,
}

impl Asked {
    /// # Errors
    /// When a parameter is unknown, malformed or repeated; then with the form of the error.
    pub(crate) fn parse<P: Parameters>(
        mut self,
        formats: &[Format],
        declared: impl Fn() -> Vec<Parameter>,
    ) -> Result<(Format, P), (Format, ApiError)> {
        let format = Format::choose(formats, &mut self.given, self.accept.as_deref())?;
        let parsed = P::take(&mut self.given);
        let parsed = parsed.and_then(|parameters| self.given.finish(declared).map(|()| parameters));
        parsed.map(|parameters| (format, parameters)).map_err(|error| (format, error))
    }

    /// The form of an error where nothing else is answered.
    pub(crate) fn format(mut self) -> Format {
        Format::choose(RENDERED, &mut self.given, self.accept.as_deref()).unwrap_or_else(|(format, _)| format)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        // A segment that is not UTF-8 is no value: it is missing, and so malformed.
        let path = RawPathParams::from_request_parts(parts, state).await;
        let path = path.iter().flatten().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let accept = parts.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        Ok(Self {
            given: Given::new(path, parts.uri.query().unwrap_or_default()),
            accept: accept.map(ToOwned::to_owned),
        })
    }
}
