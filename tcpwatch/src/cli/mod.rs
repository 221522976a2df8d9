//! How do I start it? Options, and the commands beside `run`.

pub mod ask;
pub mod check;
mod client;
pub mod explain;
pub mod options;
pub mod replay;
pub mod trace;
