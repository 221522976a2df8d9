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
    sync::{OnceLock, mpsc},
    time::{Duration, Instant},
};

use rustix::thread::CapabilitySet;
use tokio::sync::{Semaphore, oneshot};

pub use self::entrance::Entrance;
use crate::kernel::capabilities::{self, Thread};

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
    if enter_known(inode, hints) {
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

/// Moves the calling thread into the namespace with this inode by a way that is known. `false` where none leads there.
pub(super) fn enter_known(inode: u32, hints: &Hints) -> bool {
    // Staying needs no capability.
    if own() == Some(inode) {
        return true;
    }
    let of_process = hints.pid.map(|pid| Entrance::Path(PathBuf::from(format!("/proc/{pid}/ns/net"))));
    let known = hints.entrance.as_ref().and_then(|entrance| entrance.as_ref().ok());
    of_process.iter().chain(known).any(|entrance| entrance.enter(inode).unwrap_or(false))
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

/// Threads at once, however many questions there are.
const MAX_THREADS: usize = 4;
static THREADS: Semaphore = Semaphore::const_new(MAX_THREADS);

/// Limit for an answer, from the wait for a free place on.
const ANSWER_LIMIT: Duration = Duration::from_secs(8);
/// Limit for the question to one namespace after the other, so that those which have answered are not lost at
/// `ANSWER_LIMIT`.
const OF_EACH_LIMIT: Duration = Duration::from_secs(5);

/// What a thread of its own does.
type Job = Box<dyn FnOnce() + Send>;

/// Leads to the thread that starts the others.
static STARTER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();

/// Starts the thread from which those of [`on_own_thread`] inherit their capabilities: who reads requests has none. To be
/// called once; without it, they inherit those of the caller.
///
/// # Errors
/// When no thread can be started.
pub fn start() -> io::Result<()> {
    let (starter, jobs) = mpsc::channel();
    thread().spawn(move || {
        if let Err(error) = capabilities::become_thread(Thread::Netns) {
            tracing::error!(%error, "the threads that ask the kernel keep more capabilities than they need");
        }
        for job in jobs {
            // The job is dropped with its reply, so whoever waits for it hears of it.
            if let Err(error) = thread().spawn(job) {
                tracing::warn!(%error, "no thread can be started to ask the kernel");
            }
        }
    })?;
    // The first one stays.
    let _ = STARTER.set(starter);
    Ok(())
}

fn thread() -> std::thread::Builder {
    std::thread::Builder::new().name("netns".into())
}

/// Runs `run` on a thread of its own: entering a namespace changes the whole thread.
///
/// # Errors
/// When no thread can be started, or there is no answer in time; a message for the user.
pub async fn on_own_thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let answer = tokio::time::timeout(ANSWER_LIMIT, on_own_thread_without_limit(run)).await;
    answer.unwrap_or_else(|_| {
        Err(format!("no answer within {ANSWER_LIMIT:?}: there are many questions, or the kernel is slow"))
    })
}

/// The same for an answer that may take as long as it needs.
///
/// # Errors
/// When no thread can be started; a message for the user.
pub async fn on_own_thread_without_limit<T: Send + 'static>(
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    // Never closed, so never an error.
    let place = THREADS.acquire().await;
    let (reply, answer) = oneshot::channel();
    let job: Job = Box::new(move || {
        // The thread's, not the requester's, who may be gone before it ends.
        let _place = place;
        let _ = reply.send(run());
    });
    match STARTER.get() {
        Some(starter) => starter.send(job).map_err(|error| error.to_string()),
        None => thread().spawn(job).map(drop).map_err(|error| error.to_string()),
    }
    .map_err(|error| format!("cannot start a thread to ask the kernel: {error}"))?;
    answer.await.map_err(|_| "the thread that asks the kernel could not be started, or has ended".to_owned())
}

/// A result for each namespace, by inode, or the reason why there is none.
pub type OfEach<T> = HashMap<u32, Result<T, String>>;

/// Calls `ask` for each namespace in turn, with its inode. `ask` enters it.
///
/// # Errors
/// When no thread can be started, or there is no answer in time; a message for the user.
pub async fn of_each<T: Send + 'static>(
    namespaces: BTreeMap<u32, Hints>,
    ask: fn(u32, &Hints) -> Result<T, String>,
) -> Result<OfEach<T>, String> {
    on_own_thread(move || {
        let end = Instant::now() + OF_EACH_LIMIT;
        let one = |(inode, hints)| {
            let late = || Err(format!("network namespace {inode} was not asked within {OF_EACH_LIMIT:?}"));
            (inode, if Instant::now() < end { ask(inode, &hints) } else { late() })
        };
        namespaces.into_iter().map(one).collect()
    })
    .await
}

fn inode(path: &Path) -> io::Result<u32> {
    u32::try_from(std::fs::metadata(path)?.ino()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;

    #[tokio::test]
    async fn threads_are_few_also_when_those_who_asked_have_hung_up() {
        const QUESTIONS: usize = 3 * MAX_THREADS;
        let running = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let (began, begun) = mpsc::channel();
        for _ in 0..QUESTIONS {
            let (running, gate, began) = (Arc::clone(&running), Arc::clone(&gate), began.clone());
            let run = move || {
                began.send(running.fetch_add(1, Ordering::SeqCst) + 1).unwrap();
                let shut = gate.0.lock().unwrap();
                drop(gate.1.wait_while(shut, |open| !*open).unwrap());
                running.fetch_sub(1, Ordering::SeqCst);
            };
            // Polled once and dropped: with a place the thread runs on, without one nothing has begun.
            let question = on_own_thread(run);
            tokio::select! {
                biased;
                _ = question => panic!("answered before the gate opened"),
                () = std::future::ready(()) => {}
            }
        }
        drop(began);
        let most = begun.iter().take(MAX_THREADS).max();
        assert_eq!(most, Some(MAX_THREADS));
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        // The rest had no place and was dropped with its question.
        assert_eq!(begun.iter().count(), 0);
    }
}
