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

pub(crate) mod api;
pub(crate) mod filter;
pub mod metrics;
pub(crate) mod render;
pub(crate) mod request;
mod server;
pub(crate) mod translations;

pub(crate) use self::server::{Asked, Render, json_response, respond, text_response};
pub use self::{
    api::status::signals,
    render::text::{printable, table},
    request::ApiError,
    server::{Api, router},
};
