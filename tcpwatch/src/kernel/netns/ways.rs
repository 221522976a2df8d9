//! The ways into all network namespaces of the machine, as sweeps find them.
//!
//! A way that led into a namespace is tried first in the next sweep, so that nothing is searched for while nothing changes.
//! What was searched for everywhere in vain is searched for again later and later.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;
use tcpwatch_common::SeenNamespace;

use crate::kernel::netns::{self, Entrance, HOME, cannot_enter, may_enter, search};

/// For each namespace, by inode, the way by which the latest sweep entered it, or the reason why it could not.
pub type Entrances = HashMap<u32, Result<Entrance, String>>;

/// How long threads, descriptors and mounts are not searched after a search in vain for one namespace. Twice as long each
/// time.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// The ways that are known.
#[derive(Debug, Default)]
pub struct Ways {
    namespaces: HashMap<u32, Known>,
    /// Why this sweep's search may have missed some.
    hidden: Vec<String>,
}

#[derive(Debug)]
struct Known {
    namespace: SeenNamespace,
    entrance: Option<Entrance>,
    entered: bool,
    /// Why it may not be entered.
    error: Option<String>,
    search_after: Instant,
    pause: Duration,
}

/// Where a search looks for ways, in the order of what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Processes,
    Threads,
    /// Descriptors and mounts.
    Files,
}

impl Ways {
    /// Begins a sweep of these namespaces.
    pub fn begin(&mut self, listed: &[SeenNamespace]) {
        self.hidden.clear();
        let mut before = std::mem::take(&mut self.namespaces);
        for namespace in listed {
            let known = before.remove(&namespace.inode);
            let same = known.filter(|known| known.namespace.identity == namespace.identity);
            let known = same.unwrap_or_else(|| Known::new(*namespace));
            let known = Known { namespace: *namespace, entered: false, error: None, ..known };
            self.namespaces.insert(namespace.inode, known);
        }
    }

    /// The namespaces of processes and names, where the kernel does not list all.
    pub fn listed_by_processes() -> (Vec<SeenNamespace>, Vec<String>) {
        let found = search::of_processes();
        let unlisted = |inode| SeenNamespace { cookie: 0, inode, identity: 0 };
        (found.paths.into_keys().map(unlisted).collect(), found.hidden)
    }

    /// Those that were not entered yet.
    pub fn left(&self) -> Vec<u32> {
        let left = self.namespaces.iter().filter(|(_, known)| !known.entered);
        left.map(|(inode, _)| *inode).collect()
    }

    /// Moves the calling thread into the namespace, if a known way leads there.
    pub fn enter(&mut self, inode: u32) -> bool {
        self.namespaces.get_mut(&inode).is_some_and(Known::enter)
    }

    /// Searches for ways into those that are left, and returns for which it found one.
    pub fn search(&mut self, place: Place) -> Vec<u32> {
        let now = Instant::now();
        let is_due = |known: &Known| place == Place::Processes || known.search_after <= now;
        let mut wanted = self.left();
        wanted.retain(|inode| may_enter() && is_due(&self.namespaces[inode]));
        if wanted.is_empty() {
            return wanted;
        }
        let found = match place {
            Place::Processes => search::of_processes(),
            Place::Threads => search::of_threads(),
            Place::Files => search::of_files(),
        };
        let mut paths = found.paths;
        self.hidden.extend(found.hidden);
        wanted.retain(|inode| {
            let Some(known) = self.namespaces.get_mut(inode) else { return false };
            if place == Place::Files {
                known.search_after = now + known.pause;
                known.pause = (known.pause * 2).min(LONGEST_PAUSE);
            }
            known.entrance = paths.remove(inode).map(Entrance::Path);
            known.entrance.is_some()
        });
        wanted
    }

    /// Notes a socket of the namespace that a process holds.
    pub fn note_socket(&mut self, inode: u32, pid: u32, fd: u32) {
        if let Some(known) = self.namespaces.get_mut(&inode).filter(|known| !known.entered) {
            known.entrance = Some(Entrance::Socket { pid, fd });
        }
    }

    /// Ends the sweep. Returns the ways, and the problems: which namespaces it could not enter, and why.
    ///
    /// `listed`: those that exist now; `None` where the kernel does not list them.
    pub fn end(&mut self, listed: Option<&FxHashMap<u32, u32>>) -> (Entrances, Vec<String>) {
        if let Some(listed) = listed {
            self.namespaces.retain(|inode, known| listed.get(inode) == Some(&known.namespace.identity));
        }
        let mut reasons: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        let mut entrances = Entrances::new();
        for (inode, known) in &self.namespaces {
            let entrance = match (&known.entrance, known.entered) {
                (Some(entrance), true) => Ok(entrance.clone()),
                _ => Err(known.error.clone().unwrap_or_else(|| self.why_not_found())),
            };
            if let Err(why) = &entrance {
                reasons.entry(why.clone()).or_default().push(*inode);
            }
            entrances.insert(*inode, entrance);
        }
        let problems = reasons.into_iter().map(|(why, mut inodes)| {
            inodes.sort_unstable();
            let problem = cannot_enter(&inodes, &why);
            format!(
                "{problem}; what no process holds there (TIME_WAIT, orphaned and un-accepted connections) is known \
                 from records only"
            )
        });
        (entrances, problems.collect())
    }

    fn why_not_found(&self) -> String {
        if self.hidden.is_empty() {
            "no process is in it, and no file or socket leads to it".to_owned()
        } else {
            self.hidden.join("; ")
        }
    }
}

impl Known {
    fn new(namespace: SeenNamespace) -> Self {
        Self {
            namespace,
            entrance: None,
            entered: false,
            error: None,
            search_after: Instant::now(),
            pause: FIRST_PAUSE,
        }
    }

    fn enter(&mut self) -> bool {
        let SeenNamespace { cookie, inode, .. } = self.namespace;
        if netns::own() == Some(inode) {
            self.entered = true;
            self.entrance.get_or_insert_with(|| Entrance::Path(HOME.into()));
        } else if may_enter() {
            let by_cookie = (cookie != 0).then_some(Entrance::Cookie(cookie));
            let ways = self.entrance.take().into_iter().chain(by_cookie);
            for entrance in ways {
                match entrance.enter(inode) {
                    Ok(true) => {
                        (self.entrance, self.entered, self.pause) = (Some(entrance), true, FIRST_PAUSE);
                        break;
                    }
                    // It is gone, or something else by now.
                    Ok(false) => {}
                    Err(error) => self.error = Some(error.to_string()),
                }
            }
        } else {
            self.error = Some("CAP_SYS_ADMIN is missing".to_owned());
        }
        self.entered
    }
}
