//! Formats of tracepoints. The first line is the name of the field.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tcpwatch::kernel::probes::field_offset;

fuzz_target!(|text: &str| {
    let (field, format) = text.split_once('\n').unwrap_or(("skaddr", text));
    let _ = field_offset(format, field);
});
