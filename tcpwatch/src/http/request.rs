//! Parameters, formats and errors, the same for every path.

use std::{collections::VecDeque, fmt::Display, str::FromStr};

use axum::{http::StatusCode, response::Response};
use serde::Serialize;

/// Rows of a list unless `limit` says otherwise.
pub(crate) const DEFAULT_LIMIT: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

impl Format {
    /// `format=` decides; else JSON for whoever accepts it by name.
    pub fn choose(params: &mut Params, accept: Option<&str>) -> Result<Self, ApiError> {
        match params.take("format")?.as_deref() {
            Some("json") => Ok(Self::Json),
            Some("text") => Ok(Self::Text),
            Some(other) => Err(ApiError::bad("format", format!("`{other}` is not one of json, text"))),
            None if accept.is_some_and(|accept| accept.contains("application/json")) => Ok(Self::Json),
            None => Ok(Self::Text),
        }
    }
}

/// The parameters not yet understood.
#[derive(Debug)]
pub struct Params(VecDeque<(String, String)>);

impl Params {
    pub fn parse(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// # Errors
    /// When it is given twice.
    pub fn take(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        let mut found = None;
        for _ in 0..self.0.len() {
            let Some((key, value)) = self.0.pop_front() else { break };
            if key != name {
                self.0.push_back((key, value));
            } else if found.replace(value).is_some() {
                return Err(ApiError::bad(name, "given more than once"));
            }
        }
        Ok(found)
    }

    /// All values of a parameter that may be repeated, in their order.
    pub fn take_all(&mut self, name: &str) -> Vec<String> {
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(|(key, _)| key == name);
        self.0 = left;
        let taken: VecDeque<(String, String)> = taken;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    /// # Errors
    /// When the value does not parse.
    pub fn take_as<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        self.take(name)?
            .map(|value| {
                value.parse().map_err(|error| ApiError::bad(name, format!("`{value}` is not valid: {error}")))
            })
            .transpose()
    }

    /// `limit`, where 0 means all.
    ///
    /// # Errors
    /// When it is not a number.
    pub fn take_limit(&mut self, default: usize) -> Result<usize, ApiError> {
        Ok(match self.take_as("limit")? {
            None => default,
            Some(0) => usize::MAX,
            Some(limit) => limit,
        })
    }

    /// # Errors
    /// When something is left that no one knows.
    pub fn finish(&self, known: &[&str]) -> Result<(), ApiError> {
        match self.0.front() {
            None => Ok(()),
            Some((name, _)) => {
                let known: Vec<_> = known.iter().chain(&["format"]).copied().collect();
                Err(ApiError::bad(name, format!("unknown parameter; known here: {}", known.join(", "))))
            }
        }
    }
}

/// What is answered instead: `{"error", "parameter"}` or one line of text.
#[derive(Debug, Serialize)]
pub struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameter: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), parameter: None }
    }

    pub fn bad(parameter: &str, error: impl Into<String>) -> Self {
        Self { parameter: Some(parameter.to_owned()), ..Self::new(StatusCode::BAD_REQUEST, error) }
    }

    pub fn unknown_path(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("no such path: {path} (`/` lists them)"))
    }

    pub fn not_found(error: String) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }

    pub fn only_get() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are understood here")
    }

    pub fn not_ready(what: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: waiting for {what}"))
    }

    /// Hides the reason, which goes to the log.
    pub fn internal(reason: &dyn Display) -> Self {
        tracing::error!(%reason, "an answer could not be made");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error; see the log of tcpwatch")
    }

    pub fn busy() -> Self {
        let reason = "too many questions with `seconds` are being answered; ask again when one of them is";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason)
    }

    pub fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "tcpwatch is stopping")
    }

    pub fn respond(&self, format: Format) -> Response {
        match (format, &self.parameter) {
            (Format::Json, _) => crate::http::json_response(self.status, self),
            (Format::Text, Some(parameter)) => crate::http::text_response(
                self.status,
                format!("error: parameter {parameter}: {}\n", self.error),
            ),
            (Format::Text, None) => {
                crate::http::text_response(self.status, format!("error: {}\n", self.error))
            }
        }
    }
}
