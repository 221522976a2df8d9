//! Offsets of the fields of a tracepoint's record, from its `format` file in tracefs.

use std::{fmt, io, path::Path};

use crate::kernel::btf::offsets::Global;

/// Mount points of tracefs.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// A tracepoint, and the fields of its record that a program reads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tracepoint {
    pub(crate) category: &'static str,
    pub(crate) name: &'static str,
    /// Global of the BPF object that carries the field's offset, and the field.
    pub(crate) fields: &'static [(&'static str, &'static str)],
}

impl fmt::Display for Tracepoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.category, self.name)
    }
}

impl Tracepoint {
    /// Resolves the fields on the running kernel: appends the value of each global to `globals`.
    ///
    /// # Errors
    /// Why a field's offset is unknown; those of the others are resolved all the same.
    pub(crate) fn resolve(&self, globals: &mut Vec<Global>) -> Result<(), String> {
        let format = self.read_format()?;
        let mut missing = None;
        for (global, field) in self.fields {
            match field_offset(&format, field) {
                Some(offset) => globals.push((*global, offset)),
                None => missing = missing.or(Some(field)),
            }
        }
        missing.map_or(Ok(()), |field| Err(format!("its record has no field {field} on this kernel")))
    }

    fn read_format(&self) -> Result<String, String> {
        let path =
            |mount: &str| Path::new(mount).join("events").join(self.category).join(self.name).join("format");
        let mut refused = Vec::new();
        for mount in TRACEFS {
            match std::fs::read_to_string(path(mount)) {
                Ok(format) => return Ok(format),
                Err(error) => refused.push((path(mount), error)),
            }
        }
        // A mount that refuses explains more than one that does not exist.
        let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match refused.iter().find(|(_, error)| !absent(error)) {
            Some((path, error)) => Err(format!("cannot read {}: {error}", path.display())),
            None => {
                Err(format!("tracefs is not mounted, or has no events: no {}", path(TRACEFS[0]).display()))
            }
        }
    }
}

/// The offset from a line such as `field:__u16 sport; offset:24; size:2; signed:0;`, with tabs between.
pub fn field_offset(format: &str, field: &str) -> Option<u32> {
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
            assert_eq!(field_offset(format, field), offset, "{field}");
        }
    }
}
