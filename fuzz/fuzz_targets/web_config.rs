//! The web configuration file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpwatch::http::web_config::File;

fuzz_target!(|text: &str| {
    let _ = text.parse::<File>();
});
