//! The ephemeral ports of each network namespace: those that the kernel chooses from when a socket connects.

use std::{collections::BTreeMap, fs, io, ops::RangeInclusive};

use crate::kernel::netns::{self, Hints, OfEach};

/// Both files belong to the reader's namespace; the range holds for IPv6 too.
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPorts {
    range: RangeInclusive<u16>,
    reserved: Vec<RangeInclusive<u16>>,
}

impl LocalPorts {
    /// Reads those of the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel's files cannot be read or parsed.
    pub fn read() -> io::Result<Self> {
        let (range, reserved) = (fs::read_to_string(RANGE)?, fs::read_to_string(RESERVED)?);
        Self::parse(&range, &reserved).ok_or_else(|| {
            io::Error::other(format!("unexpected content: {range:?} in {RANGE}, {reserved:?} in {RESERVED}"))
        })
    }

    /// Parses `32768\t60999` and `8080,9148-9151`.
    fn parse(range: &str, reserved: &str) -> Option<Self> {
        let (first, last) = range.trim().split_once(char::is_whitespace)?;
        let span = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            Some(first.parse().ok()?..=last.parse().ok()?)
        };
        let spans = reserved.trim().split(',').filter(|text| !text.is_empty()).map(span);
        Some(Self {
            range: first.parse().ok()?..=last.trim().parse().ok()?,
            reserved: spans.collect::<Option<_>>()?,
        })
    }

    /// The first and last of the range.
    pub(super) fn span(&self) -> (u16, u16) {
        (*self.range.start(), *self.range.end())
    }

    /// The same of each part of it that is reserved.
    pub(super) fn reserved_spans(&self) -> Vec<(u16, u16)> {
        self.reserved.iter().map(|span| (*span.start(), *span.end())).collect()
    }

    pub fn contains(&self, port: u16) -> bool {
        self.range.contains(&port) && !self.reserved.iter().any(|span| span.contains(&port))
    }

    pub fn count(&self) -> usize {
        self.range.clone().filter(|port| self.contains(*port)).count()
    }
}

/// The ephemeral ports of each namespace, `None` of one that is gone, or the reason why they are unknown. `namespaces`:
/// inodes, and the ways into each.
///
/// # Errors
/// When no namespace can be queried; a message for the user.
pub async fn ask(namespaces: BTreeMap<u32, Hints>) -> Result<OfEach<Option<LocalPorts>>, String> {
    netns::of_each(namespaces, of_namespace).await
}

fn of_namespace(inode: u32, ways: &Hints) -> Result<Option<LocalPorts>, String> {
    if !netns::enter_by_inode(inode, ways)? {
        return Ok(None);
    }
    LocalPorts::read().map(Some).map_err(|error| format!("of network namespace {inode}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_are_not_available() {
        let ports = LocalPorts::parse("32768\t60999\n", "8080,40000-40009\n").unwrap();
        assert_eq!(ports.count(), 28_232 - 10);
        assert_eq!(
            [32_767, 32_768, 40_000, 60_999, 61_000].map(|port| ports.contains(port)),
            [false, true, false, true, false]
        );
        assert_eq!(LocalPorts::parse("1024 65535", "\n").unwrap().count(), 64_512);
        assert_eq!(LocalPorts::parse("many", ""), None);
    }
}
