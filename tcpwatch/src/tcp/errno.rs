//! Names of the errnos that a TCP socket or connect() can end with.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};
use tcpwatch_common::errno::NAMES;

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

    #[test]
    fn an_errno_is_its_name_and_a_strange_one_its_number() {
        assert!(NAMES.is_sorted_by_key(|(errno, _)| *errno), "or none is found");
        for (number, name) in NAMES.iter().copied() {
            assert_eq!(Errno::of(number).unwrap().text(), name);
        }
        assert_eq!(Errno::of(0), None);
        assert_eq!(Errno::of(255).unwrap().text(), "errno 255");
        assert_eq!(serde_json::to_string(&Errno::of(104)).unwrap(), r#""ECONNRESET""#);
        assert_eq!(serde_json::to_string(&Errno::of(0)).unwrap(), "null");
    }
}
