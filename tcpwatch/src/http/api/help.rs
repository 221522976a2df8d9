//! `/help`: what can be asked.

use axum::{http::StatusCode, response::Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::http::{Api, ApiError, Render, endpoints, json_response, openapi};

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Help")]
pub(crate) struct Help {
    /// Version of tcpwatch.
    version: &'static str,
    /// What is served.
    paths: Vec<Path>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Path {
    /// The path; a segment in braces is a parameter.
    path: &'static str,
    /// What it answers.
    answers: &'static str,
    /// Names of the parameters that it takes beside `format`.
    parameters: Vec<&'static str>,
}

pub(crate) async fn answer(_: Api, (): ()) -> Result<Help, ApiError> {
    let paths = endpoints().iter().map(|endpoint| Path {
        path: endpoint.path,
        answers: endpoint.summary,
        parameters: endpoint.query().collect(),
    });
    Ok(Help { version: env!("CARGO_PKG_VERSION"), paths: paths.collect() })
}

pub(crate) async fn openapi(_: Api, (): ()) -> Result<Response, ApiError> {
    Ok(json_response(StatusCode::OK, &openapi::document()))
}

impl Render for Help {
    fn text(&self) -> String {
        let mut text = format!("tcpwatch {}\n\n", self.version);
        for path in &self.paths {
            text += &format!("{:<19}{}\n", path.path, path.answers);
            if !path.parameters.is_empty() {
                text += &format!("{:<19}?{}=\n", "", path.parameters.join("= "));
            }
        }
        text += "\nAdd ?format=json for JSON, and ?format=ndjson for all rows of a list.\n";
        text
    }
}
