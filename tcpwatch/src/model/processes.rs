//! The processes that own, or owned, connections.
//!
//! A process is identified by pid and start time, as a pid is used again. What the records lack (executable, cgroup)
//! the pipeline reads from /proc and passes in. No I/O here.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use schemars::JsonSchema;
use serde::Serialize;
use slab::Slab;

use crate::{
    events::{
        decode::{Comm, TaskRecord},
        frame::ProcDetails,
    },
    model::{
        container::{Container, from_cgroup},
        dense_index::DenseIndex,
    },
};

/// Processes kept at once. At the limit those without a connection are dropped; when all have one, new processes stay
/// unknown and are counted in `refused`. The BPF programs report a dropped process again only after they reported
/// another one with the same lower 12 bits of the pid; a sweep reports it with each socket that it holds.
const MAX_PROCESSES: usize = 65_536;

/// The place of a process in the table, valid while a connection names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId(DenseIndex);

/// A process as answers show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Process {
    /// Id, as the node's initial pid namespace counts.
    pub pid: u32,
    /// CLOCK_BOOTTIME.
    #[serde(skip)]
    pub start_ns: u64,
    /// Name, at most 15 bytes.
    pub comm: Arc<str>,
    /// Path of the executable; `null` when the process was gone before it could be read, or has none.
    pub exe: Option<Arc<str>>,
    /// Path in the cgroup hierarchy.
    pub cgroup: Option<Arc<str>>,
    /// The container that the cgroup path names.
    pub container: Option<Arc<Container>>,
}

struct Entry {
    process: Process,
    /// As last reported; `Process::comm` is its text.
    comm: Comm,
    /// Number of connections that name it.
    users: u32,
}

#[derive(Default)]
pub struct ProcessTable {
    entries: Slab<Entry>,
    by_pid: FxHashMap<u32, ProcessId>,
    /// Entries without a user.
    idle: usize,
    /// Pid and start time of processes whose /proc is still to be read.
    unread: Vec<(u32, u64)>,
    /// Number of processes for which there was no room.
    pub refused: u64,
}

impl ProcessTable {
    /// Adds a process, or gives it a new name (after exec). `None` when the table is full.
    pub fn learn(&mut self, task: &TaskRecord) -> Option<ProcessId> {
        if let Some(id) = self.by_pid.get(&task.pid).copied() {
            let known = &mut self.entries[id.0.get()];
            if known.process.start_ns == task.start_ns {
                if known.comm != task.comm {
                    known.comm = task.comm;
                    known.process.comm = task.comm.text().into();
                    self.unread.push((task.pid, task.start_ns));
                }
                return Some(id);
            }
        }
        if self.entries.len() >= MAX_PROCESSES && self.idle > 0 {
            self.forget_idle();
        }
        if self.entries.len() >= MAX_PROCESSES {
            self.refused += 1;
            self.by_pid.remove(&task.pid);
            return None;
        }
        let process = Process {
            pid: task.pid,
            start_ns: task.start_ns,
            comm: task.comm.text().into(),
            exe: None,
            cgroup: None,
            container: None,
        };
        let id =
            ProcessId(DenseIndex::new(self.entries.insert(Entry { process, comm: task.comm, users: 0 })));
        self.by_pid.insert(task.pid, id);
        self.idle += 1;
        self.unread.push((task.pid, task.start_ns));
        Some(id)
    }

    /// The process that was last reported with this pid.
    pub fn by_pid(&self, pid: u32) -> Option<ProcessId> {
        self.by_pid.get(&pid).copied()
    }

    pub fn get(&self, id: ProcessId) -> &Process {
        &self.entries[id.0.get()].process
    }

    /// Removes and returns the processes whose /proc is still to be read, by pid and start time.
    pub fn take_unread(&mut self) -> Vec<(u32, u64)> {
        std::mem::take(&mut self.unread)
    }

    /// Adds the details from /proc; ignored when the process is not in the table any more.
    pub fn describe(&mut self, pid: u32, start_ns: u64, details: &ProcDetails) {
        let Some(id) = self.by_pid(pid) else { return };
        let process = &mut self.entries[id.0.get()].process;
        if process.start_ns == start_ns {
            process.exe = details.exe.as_deref().map(Into::into);
            process.cgroup = details.cgroup.as_deref().map(Into::into);
            process.container = details.cgroup.as_deref().and_then(from_cgroup).map(Arc::new);
        }
    }

    pub(crate) fn add_user(&mut self, id: ProcessId) {
        let entry = &mut self.entries[id.0.get()];
        self.idle -= usize::from(entry.users == 0);
        entry.users += 1;
    }

    pub(crate) fn drop_user(&mut self, id: ProcessId) {
        let entry = &mut self.entries[id.0.get()];
        entry.users -= 1;
        self.idle += usize::from(entry.users == 0);
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Number of processes that a connection names.
    pub fn named(&self) -> usize {
        self.entries.iter().filter(|(_, entry)| entry.users > 0).count()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn forget_idle(&mut self) {
        let by_pid = &mut self.by_pid;
        self.entries.retain(|key, entry| {
            if entry.users == 0 && by_pid.get(&entry.process.pid) == Some(&ProcessId(DenseIndex::new(key))) {
                by_pid.remove(&entry.process.pid);
            }
            entry.users > 0
        });
        self.idle = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(pid: u32, start_ns: u64, comm: &str) -> TaskRecord {
        TaskRecord { pid, start_ns, comm: comm.into() }
    }

    #[test]
    fn a_pid_used_again_is_another_process() {
        let mut table = ProcessTable::default();
        let first = table.learn(&task(7, 100, "old")).unwrap();
        table.add_user(first);
        let second = table.learn(&task(7, 200, "new")).unwrap();
        assert_ne!(first, second);
        assert_eq!(table.by_pid(7), Some(second));
        assert_eq!(&*table.get(first).comm, "old");
        // Details of the first that come late must not describe the second.
        table.describe(7, 100, &ProcDetails { exe: Some("/old".into()), cgroup: None });
        assert_eq!(table.get(second).exe, None);
    }

    #[test]
    fn exec_changes_the_name_and_makes_proc_be_read_again() {
        let mut table = ProcessTable::default();
        let id = table.learn(&task(7, 100, "sh")).unwrap();
        table.take_unread();
        assert_eq!(table.learn(&task(7, 100, "curl")), Some(id));
        assert_eq!(&*table.get(id).comm, "curl");
        assert_eq!(table.take_unread(), [(7, 100)]);
    }

    #[test]
    fn a_full_table_drops_unused_processes_first_and_then_refuses_new_ones() {
        let mut table = ProcessTable::default();
        let limit = MAX_PROCESSES as u32;
        for pid in 0..limit {
            let id = table.learn(&task(pid, 1, "p")).unwrap();
            if pid % 2 == 0 {
                table.add_user(id);
            }
        }
        for pid in limit..limit + limit / 2 {
            let id = table.learn(&task(pid, 1, "p")).unwrap();
            table.add_user(id);
        }
        assert_eq!((table.len(), table.refused), (MAX_PROCESSES, 0));
        assert_eq!(table.by_pid(1), None);
        assert_eq!(table.learn(&task(limit * 2, 1, "late")), None);
        assert_eq!(table.refused, 1);
    }
}
