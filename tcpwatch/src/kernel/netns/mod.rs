//! Network namespaces: finds them, and moves threads into them.

mod entrance;
mod search;
mod syscalls;
pub mod ways;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::thread::CapabilitySet;
use tokio::sync::{Semaphore, oneshot};

pub use self::entrance::Entrance;

/// What is known of the ways into a namespace.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// A process that may be in it.
    pub pid: Option<u32>,
    /// The way by which the latest sweep entered it, or the reason why it could not; `None` where it is newer, or gone.
    pub entrance: Option<Result<Entrance, String>>,
}

/// Inode of the calling thread's namespace.
pub fn own() -> Option<u32> {
    inode(Path::new("/proc/thread-self/ns/net")).ok()
}

/// The namespace of the main thread, which stays where it was started.
const HOME: &str = "/proc/self/ns/net";

/// Moves the calling thread back: a namespace lives as long as a thread is in it.
pub fn leave() {
    if let Ok(home) = inode(Path::new(HOME))
        && own() != Some(home)
    {
        // Whoever may leave home may also return.
        let _ = Entrance::Path(HOME.into()).enter(home);
    }
}

/// Moves the calling thread into the namespace with this inode. `false` when it is gone.
///
/// # Errors
/// Why it cannot be entered; a message for the user.
pub fn enter_by_inode(inode: u32, hints: &Hints) -> Result<bool, String> {
    // Staying needs no capability.
    if own() == Some(inode) {
        return Ok(true);
    }
    let of_process = hints.pid.map(|pid| Entrance::Path(PathBuf::from(format!("/proc/{pid}/ns/net"))));
    let known = hints.entrance.as_ref().and_then(|entrance| entrance.as_ref().ok());
    if of_process.iter().chain(known).any(|entrance| entrance.enter(inode).unwrap_or(false)) {
        return Ok(true);
    }
    if let Some(Err(why)) = &hints.entrance {
        return Err(cannot_enter(&[inode], why));
    }
    for _ in 0..ATTEMPTS {
        let Some(path) = search::of_processes().paths.remove(&inode) else { break };
        if Entrance::Path(path).enter(inode).map_err(|error| cannot_enter(&[inode], &error.to_string()))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Moves the calling thread into the namespace with this inode, which has connections.
///
/// # Errors
/// Why it cannot be entered; a message for the user.
pub fn enter_existing(inode: u32, hints: &Hints) -> Result<(), String> {
    let entered = enter_by_inode(inode, hints)?;
    entered.then_some(()).ok_or_else(|| format!("network namespace {inode} is gone"))
}

/// Attempts to find a namespace: the process that leads to it may end before it is entered.
const ATTEMPTS: usize = 3;

/// Namespaces that a message lists by their inodes.
const LISTED: usize = 10;

fn cannot_enter(inodes: &[u32], why: &str) -> String {
    let listed: Vec<_> = inodes.iter().take(LISTED).map(u32::to_string).collect();
    let others = match inodes.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} others"),
    };
    format!("cannot enter network namespace {}{others}: {why}", listed.join(", "))
}

fn may_enter() -> bool {
    search::holds(CapabilitySet::SYS_ADMIN)
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

/// Calls `ask` for each namespace in turn, with its inode. `ask` enters it.
///
/// # Errors
/// When no thread can be started; a message for the user.
pub async fn of_each<T: Send + 'static>(
    namespaces: BTreeMap<u32, Hints>,
    ask: fn(u32, &Hints) -> Result<T, String>,
) -> Result<OfEach<T>, String> {
    on_own_thread(move || namespaces.into_iter().map(|(inode, hints)| (inode, ask(inode, &hints))).collect())
        .await
}

fn inode(path: &Path) -> io::Result<u32> {
    u32::try_from(std::fs::metadata(path)?.ino()).map_err(io::Error::other)
}
