//! Names of the errnos that a TCP socket or connect() can end with.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

/// Numbers and names of include/uapi/asm-generic/errno-base.h and errno.h, all that Linux TCP and what sits on it (TLS,
/// cgroup programs, packet filters, memory limits) leave on a socket.
const NAMES: [(u8, &str); 37] = [
    (1, "EPERM"),
    (4, "EINTR"),
    (5, "EIO"),
    (11, "EAGAIN"),
    (12, "ENOMEM"),
    (13, "EACCES"),
    (14, "EFAULT"),
    (16, "EBUSY"),
    (19, "ENODEV"),
    (22, "EINVAL"),
    (32, "EPIPE"),
    (64, "ENONET"),
    (71, "EPROTO"),
    (74, "EBADMSG"),
    (88, "ENOTSOCK"),
    (89, "EDESTADDRREQ"),
    (90, "EMSGSIZE"),
    (92, "ENOPROTOOPT"),
    (93, "EPROTONOSUPPORT"),
    (95, "EOPNOTSUPP"),
    (97, "EAFNOSUPPORT"),
    (98, "EADDRINUSE"),
    (99, "EADDRNOTAVAIL"),
    (100, "ENETDOWN"),
    (101, "ENETUNREACH"),
    (102, "ENETRESET"),
    (103, "ECONNABORTED"),
    (104, "ECONNRESET"),
    (105, "ENOBUFS"),
    (106, "EISCONN"),
    (107, "ENOTCONN"),
    (110, "ETIMEDOUT"),
    (111, "ECONNREFUSED"),
    (112, "EHOSTDOWN"),
    (113, "EHOSTUNREACH"),
    (114, "EALREADY"),
    (115, "EINPROGRESS"),
];

/// An errno other than 0; JSON has its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(u8);

impl Errno {
    /// `None` for 0, which is no error.
    pub fn of(errno: u8) -> Option<Self> {
        (errno != 0).then_some(Self(errno))
    }

    /// `ECONNRESET`; `None` for one that TCP does not leave.
    pub fn name(self) -> Option<&'static str> {
        NAMES.binary_search_by_key(&self.0, |(errno, _)| *errno).ok().map(|at| NAMES[at].1)
    }

    /// The name, or `errno 123` for one that TCP does not leave.
    pub fn text(self) -> Cow<'static, str> {
        self.name().map_or_else(|| format!("errno {}", self.0).into(), Cow::Borrowed)
    }
}

impl JsonSchema for Errno {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Errno".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "examples": ["ECONNRESET"]})
    }
}

impl Serialize for Errno {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::connect_outcome::errno;

    #[test]
    fn an_errno_is_its_name_and_a_strange_one_its_number() {
        assert!(NAMES.is_sorted_by_key(|(errno, _)| *errno), "or none is found");
        for (number, name) in NAMES {
            assert_eq!(Errno::of(number).unwrap().text(), name);
        }
        assert_eq!(Errno::of(0), None);
        assert_eq!(Errno::of(255).unwrap().text(), "errno 255");
        assert_eq!(serde_json::to_string(&Errno::of(104)).unwrap(), r#""ECONNRESET""#);
        assert_eq!(serde_json::to_string(&Errno::of(0)).unwrap(), "null");
    }

    #[test]
    fn the_names_are_those_of_the_numbers_that_decisions_use() {
        for (number, name) in [
            (errno::EACCES, "EACCES"),
            (errno::ENONET, "ENONET"),
            (errno::EPROTO, "EPROTO"),
            (errno::ENOPROTOOPT, "ENOPROTOOPT"),
            (errno::EOPNOTSUPP, "EOPNOTSUPP"),
            (errno::ENETUNREACH, "ENETUNREACH"),
            (errno::ECONNABORTED, "ECONNABORTED"),
            (errno::ECONNRESET, "ECONNRESET"),
            (errno::ETIMEDOUT, "ETIMEDOUT"),
            (errno::ECONNREFUSED, "ECONNREFUSED"),
            (errno::EHOSTDOWN, "EHOSTDOWN"),
            (errno::EHOSTUNREACH, "EHOSTUNREACH"),
        ] {
            assert_eq!(Errno::of(number).unwrap().name(), Some(name));
        }
    }
}
