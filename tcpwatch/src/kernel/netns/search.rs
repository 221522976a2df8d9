//! Looks for ways into network namespaces: in /proc and among names.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    fs::{read_dir, read_link, read_to_string},
    io,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use procfs::process::Process;
use rustix::thread::{CapabilitySet, capabilities};

use crate::kernel::{netns::inode, procfs::living_thread};

/// Folders of named namespaces: of `ip netns` and of Docker.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// The result of a search: a path into each namespace, by inode, and the reasons why there may be others.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) paths: HashMap<u32, PathBuf>,
    pub(super) hidden: Vec<String>,
}

impl Found {
    fn add(&mut self, inode: u32, path: impl FnOnce() -> PathBuf) {
        self.paths.entry(inode).or_insert_with(path);
    }

    /// Adds the namespace of this link of /proc, if it is one of a namespace.
    fn add_link(&mut self, link: PathBuf) {
        if let Some(inode) = read_link(&link).ok().and_then(|target| inode_of(&target)) {
            self.add(inode, || link);
        }
    }
}

/// The namespaces that processes are in by their main threads, and those that have a name.
pub(super) fn of_processes() -> Found {
    let mut found = Found::default();
    let mut refused = false;
    match procfs::process::all_processes() {
        Ok(processes) => {
            for process in processes.flatten() {
                let path = PathBuf::from(format!("/proc/{}/ns/net", process.pid));
                // A process that just ended, or whose main thread has ended, has none.
                match read_link(&path).map(|link| inode_of(&link)) {
                    Ok(Some(inode)) => found.add(inode, || path),
                    Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {}
                    // Linux 5.10 refuses with an empty link, and answers the same for a process that is gone.
                    Ok(None) | Err(_) => refused = refused || process.is_alive(),
                }
            }
        }
        Err(error) => found.hidden.push(format!("cannot list the processes: {error}")),
    }
    // With the capability only processes that are shielded from root refuse, such as the runtime of the container that
    // tcpwatch runs in.
    if refused && !holds(CapabilitySet::SYS_PTRACE) {
        found.hidden.push("CAP_SYS_PTRACE is missing to read every process's network namespace".to_owned());
    }
    for directory in NAMED {
        match read_dir(directory) {
            Ok(entries) => {
                for entry in entries.flatten() {
                    if let Ok(inode) = inode(&entry.path()) {
                        found.add(inode, || entry.path());
                    }
                }
            }
            // Nothing has named a namespace there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                found.hidden.push(format!("cannot list the namespaces named in {directory}: {error}"));
            }
        }
    }
    found
}

/// The namespaces that threads are in, whether or not their processes' main threads are.
pub(super) fn of_threads() -> Found {
    let mut found = Found::default();
    for thread in processes().flat_map(|process| process.tasks().into_iter().flatten()).flatten() {
        found.add_link(PathBuf::from(format!("/proc/{}/task/{}/ns/net", thread.pid, thread.tid)));
    }
    found
}

/// The namespaces that an open descriptor of a process keeps, or a mount in any mount namespace.
pub(super) fn of_files() -> Found {
    let mut found = Found::default();
    let mut seen = HashSet::new();
    for pid in processes().filter_map(|process| living_thread(process.pid)) {
        let process = PathBuf::from(format!("/proc/{pid}"));
        for descriptor in read_dir(process.join("fd")).into_iter().flatten().flatten() {
            found.add_link(descriptor.path());
        }
        if read_link(process.join("ns/mnt")).is_ok_and(|namespace| seen.insert(namespace)) {
            let root = process.join("root");
            for (inode, at) in mounts(&read_to_string(process.join("mountinfo")).unwrap_or_default()) {
                found.add(inode, || root.join(at));
            }
        }
    }
    found
}

fn processes() -> impl Iterator<Item = Process> {
    procfs::process::all_processes().into_iter().flatten().flatten()
}

/// The inode of each mounted network namespace, and where it is mounted, without the slash at the beginning.
///
/// A line is `36 25 0:4 net:[4026532177] /run/netns/a\040name rw shared:5 - nsfs nsfs rw` (proc_pid_mountinfo(5)).
fn mounts(mountinfo: &str) -> impl Iterator<Item = (u32, PathBuf)> {
    mountinfo.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        let inode = inode_of(Path::new(root))?;
        Some((inode, PathBuf::from(OsString::from_vec(unescaped(at.trim_start_matches('/'))))))
    })
}

/// Replaces `\040` by the byte with this octal number.
fn unescaped(text: &str) -> Vec<u8> {
    let mut parts = text.split('\\');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (number, rest) = part.split_at_checked(3).unwrap_or((part, ""));
        bytes.extend(u8::from_str_radix(number, 8));
        bytes.extend(rest.as_bytes());
    }
    bytes
}

pub(super) fn holds(capability: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// The number of `net:[4026531833]`.
fn inode_of(link: &Path) -> Option<u32> {
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounted_namespaces_are_found_wherever_they_are() {
        let mountinfo = "22 1 254:0 / / rw,relatime - ext4 /dev/root rw\n\
            36 25 0:4 net:[4026532177] /run/netns/a\\040name rw shared:5 - nsfs nsfs rw\n\
            37 25 0:4 mnt:[4026532178] /run/other rw - nsfs nsfs rw\n\
            38 25 0:4 net:[4026532179] /srv/\\134x rw - nsfs nsfs rw\n";
        let expected = [(4_026_532_177, "run/netns/a name"), (4_026_532_179, "srv/\\x")];
        assert!(mounts(mountinfo).eq(expected.map(|(inode, at)| (inode, at.into()))));
    }
}
