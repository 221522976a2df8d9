//! Records of the BPF programs: any bytes are a record or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpwatch::events::decode;

fuzz_target!(|bytes: &[u8]| {
    let _ = decode::record(bytes);
    let _ = decode::asked_options(bytes);
});
