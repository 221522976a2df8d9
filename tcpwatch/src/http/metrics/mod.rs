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
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};

pub(crate) use self::own::time_request;
pub use self::{families::FAMILIES, own::OwnMetrics};
use crate::{
    http::{
        Api, ApiError, Asked,
        metrics::family::{Collector, Scrape},
        request::Params,
        translations,
    },
    kernel::local_ports::LocalPorts,
};

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(crate) async fn handle(State(api): State<Api>, mut asked: Asked) -> Response {
    let answer = match parse(&mut asked.params) {
        Ok(collectors) => answer(&api, collectors).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => error.respond(asked.format),
    }
}

/// The collectors that the parameters name, as node_exporter understands them: `collect[]` alone those, `exclude[]` the
/// default without those, not both.
fn parse(params: &mut Params) -> Result<Vec<Collector>, ApiError> {
    let [collect, exclude] = ["collect[]", "exclude[]"].map(|name| {
        let names = params.take_all(name);
        names.iter().map(|value| named(name, value)).collect::<Result<Vec<_>, _>>()
    });
    let (mut collectors, exclude) = (collect?, exclude?);
    if !collectors.is_empty() && !exclude.is_empty() {
        return Err(ApiError::bad("exclude[]", "not together with `collect[]`"));
    }
    if collectors.is_empty() {
        collectors = Collector::DEFAULT.to_vec();
        collectors.retain(|collector| !exclude.contains(collector));
    }
    if translations::take(params)? && !collectors.contains(&Collector::Nat) {
        collectors.push(Collector::Nat);
    }
    params.finish(&["collect[]", "exclude[]", "nat"])?;
    Ok(collectors)
}

fn named(parameter: &str, name: &str) -> Result<Collector, ApiError> {
    Collector::named(name).ok_or_else(|| {
        let names = Collector::ALL.map(Collector::name).join(", ");
        ApiError::bad(parameter, format!("`{name}` is not one of {names}"))
    })
}

async fn answer(api: &Api, collectors: Vec<Collector>) -> Result<String, ApiError> {
    let translations = translations::ask(api, collectors.contains(&Collector::Nat)).await?;
    if !translations.problems.is_empty() {
        tracing::debug!(problems = ?translations.problems, "what is translated is not in the metrics, or not all of it");
    }
    let local_ports = api.live.then(LocalPorts::read).and_then(Result::ok).map(|ports| ports.count() as u64);
    let with_own = collectors.contains(&Collector::Daemon);
    let mut text = api
        .ask(false, move |node, clock| {
            let mut text = String::with_capacity(1 << 16);
            let scrape = Scrape { node, clock, translations: &translations, local_ports };
            exposition::write(&mut text, FAMILIES, &collectors, &scrape);
            text
        })
        .await?;
    if with_own {
        text += &api.own.text().map_err(|error| ApiError::internal(&error))?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collectors(query: &str) -> Result<Vec<&'static str>, ApiError> {
        parse(&mut Params::parse(query)).map(|collectors| collectors.iter().map(|one| one.name()).collect())
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
