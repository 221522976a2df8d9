//! `/metrics`: everything as numbers, in the Prometheus text format.
//!
//! The families stand in one table. Which of them a scrape collects, its parameters say. What has a series for each label
//! set is written straight from the counts; the process and the requests are in a registry of the `prometheus` crate.

mod exposition;
pub mod families;
pub mod family;
mod own;
pub(crate) mod sums;

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use serde_json::{Value as Json, json};

pub(crate) use self::own::time_request;
pub use self::{families::FAMILIES, own::OwnMetrics};
use crate::{
    http::{
        Api, ApiError,
        metrics::family::{Collector, Scrape},
        parameters::{Field, Given, Parameter, Parameters, Place, Value},
        translations::{self, Nat},
    },
    kernel::local_ports::LocalPorts,
    node::SweepFirst,
};

pub(crate) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The collectors that a scrape asks for, as node_exporter understands the parameters: `collect[]` alone those,
/// `exclude[]` the default without those, not both.
pub(crate) struct Collect(Vec<Collector>);

const COLLECT: &str = "collect[]";
const EXCLUDE: &str = "exclude[]";

impl Parameters for Collect {
    fn declare() -> Vec<Parameter> {
        let default = Collector::DEFAULT.map(Collector::name).join("`, `");
        let one = |name, meaning| Parameter {
            name,
            place: Place::Query,
            meaning,
            schema: <Vec<Collector> as Field>::schema(),
        };
        vec![
            one(COLLECT, format!("a group of families to answer with, in place of `{default}`; repeatable")),
            one(
                EXCLUDE,
                "a group of families to leave out of those; repeatable, not with `collect[]`".to_owned(),
            ),
        ]
    }

    fn take(given: &mut Given) -> Result<Self, ApiError> {
        let collect: Vec<Collector> = Field::take(given, COLLECT)?;
        let exclude: Vec<Collector> = Field::take(given, EXCLUDE)?;
        if !collect.is_empty() && !exclude.is_empty() {
            return Err(ApiError::bad(EXCLUDE, "not together with `collect[]`"));
        }
        if !collect.is_empty() {
            return Ok(Self(collect));
        }
        let default = Collector::DEFAULT.into_iter();
        Ok(Self(default.filter(|collector| !exclude.contains(collector)).collect()))
    }
}

impl Value for Collector {
    fn parse(text: &str) -> Result<Self, String> {
        Self::named(text).ok_or_else(|| format!("is not one of {}", Self::ALL.map(Self::name).join(", ")))
    }

    fn schema() -> Json {
        json!({"type": "string", "enum": Self::ALL.map(Self::name)})
    }
}

impl Collect {
    fn with(self, nat: Nat) -> Vec<Collector> {
        let Self(mut collectors) = self;
        if nat.nat && !collectors.contains(&Collector::Nat) {
            collectors.push(Collector::Nat);
        }
        collectors
    }
}

pub(crate) async fn answer(api: Api, (collect, nat): (Collect, Nat)) -> Result<Response, ApiError> {
    let collectors = collect.with(nat);
    let translations = translations::ask(&api, collectors.contains(&Collector::Nat)).await?;
    if !translations.problems.is_empty() {
        tracing::debug!(problems = ?translations.problems, "what is translated is not in the metrics, or not all of it");
    }
    let local_ports = api.live.then(LocalPorts::read).and_then(Result::ok).map(|ports| ports.count() as u64);
    let with_own = collectors.contains(&Collector::Daemon);
    let mut text = api
        .ask_after(SweepFirst::IfCheap, move |node, clock| {
            let mut text = String::with_capacity(1 << 16);
            let scrape = Scrape { node, clock, translations: &translations, local_ports };
            exposition::write(&mut text, FAMILIES, &collectors, &scrape);
            text
        })
        .await?;
    if with_own {
        text += &api.own.text().map_err(|error| ApiError::internal(&error))?;
    }
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn collectors(query: &str) -> Result<Vec<&'static str>, ApiError> {
        let mut given = Given::new(VecDeque::new(), query);
        let (collect, nat) = <(Collect, Nat) as Parameters>::take(&mut given)?;
        given.finish(<(Collect, Nat) as Parameters>::declare)?;
        Ok(collect.with(nat).into_iter().map(Collector::name).collect())
    }

    #[test]
    fn a_scrape_collects_what_it_names_or_the_default_without_what_it_excludes() {
        for (query, expected) in [
            ("", &["summary", "daemon"][..]),
            ("collect[]=connects", &["connects"]),
            ("collect%5B%5D=connects&collect[]=states", &["connects", "states"]),
            ("exclude[]=daemon", &["summary"]),
            ("exclude[]=connects", &["summary", "daemon"]),
            ("nat=true", &["summary", "daemon", "nat"]),
            ("nat=true&collect[]=nat", &["nat"]),
        ] {
            assert_eq!(collectors(query).unwrap(), expected, "{query}");
        }
        for query in ["collect[]=cpu", "exclude[]=", "collect[]=states&exclude[]=daemon", "collect=states"] {
            assert!(collectors(query).is_err(), "{query}");
        }
    }
}
