//! The kernel's types.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpwatch::kernel::btf::Btf;

fuzz_target!(|bytes: &[u8]| {
    let Ok(btf) = Btf::parse(bytes) else { return };
    for (name, path) in [("sock", "a"), ("sock", "a.b"), ("sock", "bits:5"), ("tcp_sock", "inet_conn.a.b")] {
        let _ = btf.offset_of(name, path);
        let _ = btf.bit_offset_of(name, path);
    }
    let _ = btf.parameters("tcp_close");
    let _ = btf.tracepoint_parameters("tcp_send_reset");
});
