//! What is answered? What people and programs ask over HTTP: a file for each answer.
//!
//! [`endpoints`] is the table of what is served.
//!
//! Answers are text for people, JSON with `?format=json` or `Accept: application/json`. A question runs on
//! the task that owns the state and gets a consistent view of it.

pub(crate) mod api;
mod endpoints;
pub(crate) mod filter;
mod guard;
mod held;
pub mod listen;
pub mod metrics;
pub mod openapi;
pub(crate) mod page;
pub(crate) mod parameters;
pub(crate) mod render;
pub(crate) mod request;
mod serve;
mod server;
pub(crate) mod translations;
pub mod web_config;
pub mod webhook;

pub(crate) use self::server::{List, Render, json_response, text_response};
pub use self::{
    api::status::signals,
    endpoints::{Endpoint, endpoints},
    parameters::{Parameter, Place},
    render::text::{printable, table},
    request::ApiError,
    serve::{Access, serve},
    server::{Api, probes_router, router},
};
