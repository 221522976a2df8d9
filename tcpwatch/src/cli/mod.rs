//! How do I start it? Options, and the commands beside `run`.

pub mod check;
mod client;
pub mod options;
pub mod replay;
pub mod trace;
