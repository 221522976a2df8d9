//! The documents that come from tables in the code: each is rendered and compared with the committed file.
//!
//! `cargo xtask docs` writes them anew: it runs these tests with `TCPWATCH_WRITE_DOCUMENTS=1`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "../fixtures/mod.rs"]
#[allow(dead_code, reason = "of the fixture, what other tests use")]
mod fixture;
mod http_api;
mod metrics;
mod options;
mod reliability;
mod signals;
mod thresholds;

use std::path::Path;

/// Compares what the code renders with the committed document, whose path is relative to the repository.
fn assert_document(path: &str, rendered: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if std::env::var_os("TCPWATCH_WRITE_DOCUMENTS").is_some() {
        std::fs::write(&file, rendered).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{path}: {error}"));
    for (number, (committed, rendered)) in committed.lines().zip(rendered.lines()).enumerate() {
        assert_eq!(committed, rendered, "{path}, line {}: write it anew with `cargo xtask docs`", number + 1);
    }
    assert_eq!(committed.len(), rendered.len(), "{path}: write it anew with `cargo xtask docs`");
}
