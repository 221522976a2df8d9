//! How an answer is asked for and how a question fails, the same for every path.

use std::{fmt::Display, time::Duration};

use axum::{http::StatusCode, response::Response};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::http::parameters::{Given, Parameter, Place};

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// For people; may change.
    Text,
    Json,
    /// All rows of a list, each a JSON object on a line of its own.
    Ndjson,
}

impl Format {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Ndjson => "ndjson",
        }
    }

    pub(crate) const fn media_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; charset=utf-8",
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
        }
    }

    /// `format=` decides, else `Accept`, else it is text.
    ///
    /// # Errors
    /// When `format` is not one of `formats` or given twice; then with the format of the error.
    pub(crate) fn choose(
        formats: &[Self],
        given: &mut Given,
        accept: Option<&str>,
    ) -> Result<Self, (Self, ApiError)> {
        let accepts = |format: &&Self| accept.is_some_and(|accept| accept.contains(format.media_type()));
        let accepted = *formats.iter().find(accepts).unwrap_or(&Self::Text);
        let wanted = given.take("format").map_err(|error| (accepted, error))?;
        wanted.map_or(Ok(accepted), |wanted| {
            let found = formats.iter().find(|format| format.name() == wanted);
            found.copied().ok_or_else(|| {
                let names: Vec<_> = formats.iter().map(|format| format.name()).collect();
                let error = format!("`{wanted}` is not one of {}", names.join(", "));
                (accepted, ApiError::bad("format", error))
            })
        })
    }

    /// `format` as the documents show it. `of_errors`: the answer itself has one form only.
    pub(crate) fn declare(formats: &[Self], of_errors: bool) -> Parameter {
        let meaning = if of_errors {
            "the form of an error; the answer itself has one form only"
        } else {
            "the form of the answer; it wins over the header `Accept`"
        };
        Parameter {
            name: "format",
            place: Place::Query,
            meaning: meaning.to_owned(),
            schema: json!({"type": "string", "enum": formats, "default": Self::Text}),
        }
    }
}

/// What is answered instead: in JSON an object with `error` and, where one is to blame, `parameter`; in text one line.
#[derive(Debug, Serialize, JsonSchema, thiserror::Error)]
#[error("{error}")]
#[schemars(rename = "Error")]
pub struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    /// What is wrong.
    error: String,
    /// The parameter that is to blame; absent where none is.
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
        Self::new(StatusCode::NOT_FOUND, format!("no such path: {path} (`/help` lists them)"))
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

    pub(crate) fn too_many_followers(limit: usize) -> Self {
        let reason = format!("{limit} clients follow already; ask again when one of them hangs up");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "a name and its password are needed (basic authentication)")
    }

    pub(crate) fn too_many_passwords() -> Self {
        let reason = "too many passwords are being checked; ask again later";
        Self::new(StatusCode::TOO_MANY_REQUESTS, reason)
    }

    pub(crate) fn too_many_large(answers: usize, rows: usize) -> Self {
        let reason = format!(
            "{answers} answers with more than {rows} rows are being read; ask again, or for fewer rows"
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason)
    }

    pub(crate) fn late(limit: Duration) -> Self {
        let reason =
            format!("no answer within {limit:?}: too many questions, or a processor that is too busy");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason)
    }

    pub(crate) fn unknown_host(host: &str) -> Self {
        let error = format!(
            "`{host}` is not a name of this machine: ask localhost, or add the name with --allow-host NAME"
        );
        Self::new(StatusCode::FORBIDDEN, error)
    }

    pub(crate) fn cross_site() -> Self {
        Self::new(StatusCode::FORBIDDEN, "a browser asks on behalf of another site")
    }

    pub(crate) fn with_body() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "a question has no body")
    }

    pub fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "tcpwatch is stopping")
    }

    /// JSON for those who asked for it in any form, else a line of text.
    pub(crate) fn respond(&self, format: Format) -> Response {
        match (format, &self.parameter) {
            (Format::Json | Format::Ndjson, _) => crate::http::json_response(self.status, self),
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
