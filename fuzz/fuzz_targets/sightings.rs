//! Records of sweeps.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpwatch::events::seen;

fuzz_target!(|bytes: &[u8]| {
    let _ = seen::decode(bytes);
    if seen::is_list(bytes) {
        let _ = seen::decode_list(bytes);
    }
});
