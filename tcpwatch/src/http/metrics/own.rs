//! The registry of the `prometheus` crate: the process, and the HTTP requests. Built once.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};
use prometheus::{
    Counter, HistogramOpts, HistogramVec, Registry, TextEncoder,
    core::{Collector, Desc},
    process_collector::ProcessCollector,
    proto::MetricFamily,
};

use crate::{
    http::metrics::families::{CPU_HELP, HTTP_HELP},
    kernel::procfs,
};

/// Seconds; an answer about a million connections takes some tenths of one.
const REQUEST_BUCKETS: [f64; 8] = [0.0005, 0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0];

const CPU: &str = "process_cpu_seconds_total";

/// What is measured where requests are answered.
#[derive(Debug)]
pub struct OwnMetrics {
    registry: Registry,
    requests: Option<HistogramVec>,
}

impl Default for OwnMetrics {
    fn default() -> Self {
        let registry = Registry::new();
        // What could not be registered costs its metrics and nothing else; a test misses it.
        let requests = registered(&registry, request_durations());
        registered(&registry, Ok(Process::new()));
        Self { registry, requests }
    }
}

fn request_durations() -> Result<HistogramVec, prometheus::Error> {
    let options = HistogramOpts::new("tcpwatch_http_request_duration_seconds", HTTP_HELP);
    HistogramVec::new(options.buckets(REQUEST_BUCKETS.to_vec()), &["path"])
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: Result<C, prometheus::Error>,
) -> Option<C> {
    let collector = collector.and_then(|collector| {
        registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    });
    collector.inspect_err(|error| tracing::error!(%error, "metrics of tcpwatch itself are missing")).ok()
}

impl OwnMetrics {
    pub(crate) fn text(&self) -> Result<String, prometheus::Error> {
        let mut text = String::new();
        TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    /// A request of this path was answered.
    pub fn observe(&self, path: &str, took: Duration) {
        if let Some(requests) = &self.requests {
            requests.with_label_values(&[path]).observe(took.as_secs_f64());
        }
    }

    /// What is registered and has a value.
    pub fn families(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }
}

/// Times each request, by the path of its endpoint.
pub(crate) async fn time_request(
    State(own): State<Arc<OwnMetrics>>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let began = Instant::now();
    let response = next.run(request).await;
    let path = path.as_ref().map_or("other", MatchedPath::as_str);
    own.observe(path, began.elapsed());
    response
}

/// The process collector with processor time to a tick of the clock: its own has whole seconds, of which tcpwatch may use
/// few an hour.
#[derive(Clone)]
struct Process(Arc<ProcessCollector>);

impl Process {
    fn new() -> Self {
        Self(Arc::new(ProcessCollector::for_self()))
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.0.collect();
        families.retain(|family| family.name() != CPU);
        if let (Ok(usage), Ok(cpu)) = (procfs::own_usage(), Counter::new(CPU, CPU_HELP)) {
            cpu.inc_by(usage.cpu_seconds);
            families.extend(cpu.collect());
        }
        families
    }
}
