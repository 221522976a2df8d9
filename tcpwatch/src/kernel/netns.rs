//! Network namespaces: finds them, and moves threads into them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::thread::{CapabilitySet, LinkNameSpaceType, capabilities, move_into_link_name_space};
use tokio::sync::{Semaphore, oneshot};

/// Folders of named namespaces: of `ip netns` and of Docker.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// Inode of the calling thread's namespace.
pub fn own() -> Option<u32> {
    inode(Path::new("/proc/thread-self/ns/net")).ok()
}

/// Moves the calling thread into the namespace with this inode; `pid` is a process that may be in it. `false` when it
/// cannot be found.
///
/// # Errors
/// Why it may not be entered; a message for the user.
pub fn enter_by_inode(inode: u32, pid: Option<u32>) -> Result<bool, String> {
    if own() == Some(inode) {
        return Ok(true);
    }
    let path = pid.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")));
    if path.is_some_and(|path| enter_at(&path, inode).unwrap_or(false)) {
        return Ok(true);
    }
    find_and_enter(inode)
}

/// Moves the calling thread into the namespace with this inode, which was found at `path` a while ago. `false` when it
/// is gone.
///
/// # Errors
/// Why it may not be entered; a message for the user.
pub fn enter_found(path: &Path, inode: u32) -> Result<bool, String> {
    // Staying needs no capability.
    if own() == Some(inode) || enter_at(path, inode)? {
        return Ok(true);
    }
    find_and_enter(inode)
}

/// Attempts to find a namespace: the process that leads to it may end before it is entered.
const ATTEMPTS: usize = 3;

fn find_and_enter(inode: u32) -> Result<bool, String> {
    for _ in 0..ATTEMPTS {
        let Some(path) = find().0.remove(&inode) else { return Ok(false) };
        if enter_at(&path, inode)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Limits the threads that run at once, however many requests there are.
static THREADS: Semaphore = Semaphore::const_new(4);

/// Runs `run` on a thread of its own: entering a namespace changes the whole thread.
///
/// # Errors
/// When no thread can be started; a message for the user.
pub async fn on_own_thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    // Never closed, so never an error.
    let _permit = THREADS.acquire().await;
    let (reply, answer) = oneshot::channel();
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            // The requester may be gone.
            let _ = reply.send(run());
        })
        .map_err(|error| format!("cannot start a thread to ask the kernel: {error}"))?;
    answer.await.map_err(|_| "the thread that asks the kernel has ended".to_owned())
}

/// A result for each namespace, by inode, or the reason why there is none.
pub type OfEach<T> = HashMap<u32, Result<T, String>>;

/// Calls `ask` for each namespace in turn: inode, and a process that may be in it. `ask` enters it.
///
/// # Errors
/// When no thread can be started; a message for the user.
pub async fn of_each<T: Send + 'static>(
    namespaces: BTreeMap<u32, Option<u32>>,
    ask: fn(u32, Option<u32>) -> Result<T, String>,
) -> Result<OfEach<T>, String> {
    on_own_thread(move || namespaces.into_iter().map(|(inode, pid)| (inode, ask(inode, pid))).collect()).await
}

/// The network namespaces, by inode, with a path to each; and the reasons why there may be others.
pub fn find() -> (HashMap<u32, PathBuf>, Vec<String>) {
    let mut found = HashMap::new();
    let mut hidden = Vec::new();
    let mut seen = HashSet::new();
    let mut refused = false;
    match procfs::process::all_processes() {
        Ok(processes) => {
            for process in processes.flatten() {
                let path = PathBuf::from(format!("/proc/{}/ns/net", process.pid));
                // A process that just ended, or a zombie, has none.
                match std::fs::read_link(&path).map(|link| inode_of(&link)) {
                    Ok(Some(inode)) => {
                        if seen.insert(inode) {
                            found.insert(inode, path);
                        }
                    }
                    Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {}
                    // Linux 5.10 refuses with an empty link, and answers the same for a process that is gone.
                    Ok(None) | Err(_) => refused = refused || process.is_alive(),
                }
            }
        }
        Err(error) => hidden.push(format!("cannot list the processes: {error}")),
    }
    // With the capability only processes that are shielded from root refuse, such as the runtime of the container that
    // tcpwatch runs in.
    if refused && !may_read_every_process() {
        hidden.push("CAP_SYS_PTRACE is missing to read every process's network namespace".to_owned());
    }
    for directory in NAMED {
        match std::fs::read_dir(directory) {
            Ok(entries) => {
                for entry in entries.flatten() {
                    if let Ok(inode) = inode(&entry.path()) {
                        found.entry(inode).or_insert_with(|| entry.path());
                    }
                }
            }
            // Nothing has named a namespace there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => hidden.push(format!("cannot list the namespaces named in {directory}: {error}")),
        }
    }
    (found, hidden)
}

fn may_read_every_process() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_PTRACE))
}

/// Moves the calling thread into the namespace at `path`, if it still is the one with `inode`.
fn enter_at(path: &Path, inode: u32) -> Result<bool, String> {
    open_and_enter(path, inode).map_err(|error| format!("cannot enter network namespace {inode}: {error}"))
}

fn open_and_enter(path: &Path, inode: u32) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        // The process ended, or the name was removed; while a process ends the kernel answers EACCES.
        Err(error) if error.kind() == io::ErrorKind::NotFound || path.symlink_metadata().is_err() => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    if file.metadata()?.ino() != u64::from(inode) {
        return Ok(false);
    }
    match move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)) {
        Ok(()) => Ok(true),
        // The name of a namespace that is gone.
        Err(rustix::io::Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The number of `net:[4026531833]`.
fn inode_of(link: &Path) -> Option<u32> {
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

fn inode(path: &Path) -> io::Result<u32> {
    u32::try_from(std::fs::metadata(path)?.ino()).map_err(io::Error::other)
}
