//! The kernel's counts of a network namespace, as /proc/net/netstat has them.

use std::{collections::BTreeMap, fs};

use crate::kernel::netns::{self, Hints, OfEach};

/// How often a full accept queue refused a connection or a SYN in the namespace of this thread; `None` where that cannot
/// be read.
pub(super) fn listen_overflows() -> Option<u64> {
    count(&fs::read_to_string("/proc/thread-self/net/netstat").ok()?, "TcpExt:", "ListenOverflows")
}

/// How many TCP segments with a wrong checksum came to each of these network namespaces since it began.
///
/// # Errors
/// When no namespace can be queried; a message for the user.
pub async fn checksum_errors(namespaces: BTreeMap<u32, Hints>) -> Result<OfEach<u64>, String> {
    netns::of_each(namespaces, |inode, ways| {
        netns::enter_existing(inode, ways)?;
        let text = fs::read_to_string("/proc/thread-self/net/snmp").map_err(|error| error.to_string());
        let found = text.map(|text| count(&text, "Tcp:", "InCsumErrors"))?;
        found.ok_or_else(|| format!("network namespace {inode} does not count checksum errors"))
    })
    .await
}

/// A line of names is followed by a line of values, both behind the same word.
fn count(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group));
    let (names, values) = (lines.next()?, lines.next()?);
    let index = names.split_whitespace().position(|one| one == name)?;
    values.split_whitespace().nth(index)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_stands_below_its_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 46 50\nIpExt: ListenOverflows\nIpExt: 7\n";
        assert_eq!(count(text, "TcpExt:", "ListenOverflows"), Some(46));
        assert_eq!(count(text, "TcpExt:", "Nothing"), None);
        assert_eq!(count("TcpExt: ListenOverflows\n", "TcpExt:", "ListenOverflows"), None);
    }
}
