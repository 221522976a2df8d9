//! Where the fields of a tracepoint's record lie: its `format` file in tracefs.

use std::{io, path::Path};

/// Where tracefs is mounted.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// Global of the BPF object (`tcpwatch-ebpf/src/format.rs`), category and name of the tracepoint, field.
const FIELDS: &[(&str, &str, &str)] = &[
    ("TP_STATE_SKADDR", "sock/inet_sock_set_state", "skaddr"),
    ("TP_STATE_OLDSTATE", "sock/inet_sock_set_state", "oldstate"),
    ("TP_STATE_NEWSTATE", "sock/inet_sock_set_state", "newstate"),
    ("TP_STATE_PROTOCOL", "sock/inet_sock_set_state", "protocol"),
    ("TP_STATE_SPORT", "sock/inet_sock_set_state", "sport"),
    ("TP_STATE_DPORT", "sock/inet_sock_set_state", "dport"),
    ("TP_STATE_SADDR_V6", "sock/inet_sock_set_state", "saddr_v6"),
    ("TP_STATE_DADDR_V6", "sock/inet_sock_set_state", "daddr_v6"),
    ("TP_RETRANSMIT_SKADDR", "tcp/tcp_retransmit_skb", "skaddr"),
    ("TP_RETRANSMIT_STATE", "tcp/tcp_retransmit_skb", "state"),
    ("TP_RETRANSMIT_SPORT", "tcp/tcp_retransmit_skb", "sport"),
    ("TP_RETRANSMIT_DPORT", "tcp/tcp_retransmit_skb", "dport"),
    ("TP_RETRANSMIT_SADDR_V6", "tcp/tcp_retransmit_skb", "saddr_v6"),
    ("TP_RETRANSMIT_DADDR_V6", "tcp/tcp_retransmit_skb", "daddr_v6"),
    ("TP_SYNACK_SKADDR", "tcp/tcp_retransmit_synack", "skaddr"),
    ("TP_SYNACK_SPORT", "tcp/tcp_retransmit_synack", "sport"),
    ("TP_SYNACK_SADDR_V6", "tcp/tcp_retransmit_synack", "saddr_v6"),
];

#[derive(Debug, Default)]
pub(crate) struct Formats {
    /// Value of each `TP_*` global.
    pub(crate) globals: Vec<(&'static str, u32)>,
    /// What stands in the way of a tracepoint (`category:name`).
    pub(crate) problems: Vec<(String, String)>,
}

/// Reads what this kernel's tracepoints look like.
pub(crate) fn resolve() -> Formats {
    let mut formats = Formats::default();
    for (global, tracepoint, field) in FIELDS {
        match offset(tracepoint, field) {
            Ok(offset) => formats.globals.push((*global, offset)),
            Err(problem) => formats.problems.push((tracepoint.replace('/', ":"), problem)),
        }
    }
    formats
}

fn offset(tracepoint: &str, field: &str) -> Result<u32, String> {
    let path = |mount: &str| Path::new(mount).join("events").join(tracepoint).join("format");
    let mut refused = Vec::new();
    for mount in TRACEFS {
        match std::fs::read_to_string(path(mount)) {
            Ok(format) => {
                return offset_in(&format, field)
                    .ok_or_else(|| format!("its record has no field {field} on this kernel"));
            }
            Err(error) => refused.push((path(mount), error)),
        }
    }
    // A mount that refuses says more than one that is not there.
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match refused.iter().find(|(_, error)| !absent(error)) {
        Some((path, error)) => Err(format!("cannot read {}: {error}", path.display())),
        None => Err(format!("tracefs is not mounted, or has no events: no {}", path(TRACEFS[0]).display())),
    }
}

/// A line such as `field:__u16 sport; offset:24; size:2; signed:0;`, with tabs between.
fn offset_in(format: &str, field: &str) -> Option<u32> {
    let line = format.lines().find(|line| {
        let declaration = line.trim().strip_prefix("field:").and_then(|rest| rest.split(';').next());
        let name = declaration.and_then(|declaration| declaration.rsplit([' ', '*']).next());
        name.is_some_and(|name| name.split('[').next() == Some(field))
    })?;
    let (_, offset) = line.split_once("offset:")?;
    offset.split(';').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name_whatever_their_type() {
        let format = "name: inet_sock_set_state\nID: 1397\nformat:\n\
            \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
            \tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;\n\
            \tfield:int oldstate;\toffset:16;\tsize:4;\tsigned:1;\n\
            \tfield:__u8 saddr[4];\toffset:32;\tsize:4;\tsigned:0;\n\
            \tfield:__u8 saddr_v6[16];\toffset:40;\tsize:16;\tsigned:0;\n\n\
            print fmt: \"family=%s\", __print_symbolic(REC->family)\n";
        for (field, offset) in [
            ("skaddr", Some(8)),
            ("oldstate", Some(16)),
            ("saddr", Some(32)),
            ("saddr_v6", Some(40)),
            ("x", None),
        ] {
            assert_eq!(offset_in(format, field), offset, "{field}");
        }
    }
}
