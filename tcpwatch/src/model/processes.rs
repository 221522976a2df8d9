//! The processes that own, or owned, connections.
//!
//! The table has *identities*: a process under one name, between two execs. An exec or another name makes a new identity
//! of the same process, and what names the earlier one keeps its name, executable and cgroup. A process is its pid and its
//! start time, as a pid is used again. What the records lack (executable, cgroup) the pipeline reads from /proc and passes
//! in. No I/O here.

use std::{collections::VecDeque, sync::Arc};

use rustc_hash::FxHashMap;
use schemars::JsonSchema;
use serde::Serialize;
use slab::Slab;

use crate::{
    events::{
        decode::{Identity, TaskRecord},
        frame::ProcDetails,
    },
    model::{
        container::{Container, from_cgroup},
        dense_index::DenseIndex,
        workload::Workload,
    },
};

/// Identities kept at once. At the limit those without a connection are dropped; when all have one, new ones stay unknown
/// and are counted in `refused`. The BPF programs report a dropped process again only after they reported another one
/// with the same lower 12 bits of the pid; a sweep reports it with each socket that it holds.
const MAX_PROCESSES: usize = 65_536;

/// The place of an identity in the table, valid while a connection names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId(DenseIndex);

impl ProcessId {
    /// For tables beside this one.
    #[inline]
    pub(crate) const fn index(self) -> usize {
        self.0.get()
    }
}

/// A process as answers show it: as it was when it did what they say it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Process {
    /// Id, as the node's initial pid namespace counts.
    pub pid: u32,
    /// CLOCK_BOOTTIME.
    #[serde(skip)]
    pub start_ns: u64,
    /// See [`Identity::exec_id`].
    #[serde(skip)]
    pub exec_id: u32,
    /// Name, at most 15 bytes. A backslash in it is doubled, a `~` at its beginning too; bytes that are not UTF-8, control
    /// characters and what is not visible stand as `\xff`; `~empty` is a name without a byte. The same in text, metric
    /// labels and filters.
    pub comm: Arc<str>,
    /// Path of the executable; `null` when the process was gone, or ran another program, before it could be read, and
    /// where it has none.
    pub exe: Option<Arc<str>>,
    /// Whether the file of the executable had been deleted or replaced by then: `exe` is the path that it had. `null`
    /// where that is not known.
    pub exe_deleted: Option<bool>,
    /// Path in the cgroup hierarchy.
    pub cgroup: Option<Arc<str>>,
    /// The container that the cgroup path names.
    pub container: Option<Arc<Container>>,
}

impl Process {
    /// For people: a space, and the path of the executable behind `deleted` where its file was; nothing where it is not
    /// known. A path begins with a slash, so that the word is no part of it.
    pub fn exe_text(&self) -> String {
        let deleted = if self.exe_deleted == Some(true) { " deleted" } else { "" };
        self.exe.as_deref().map_or(String::new(), |exe| format!("{deleted} {exe}"))
    }
}

/// What the connections of a process did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Connections that reached ESTABLISHED.
    pub opened: u32,
    /// Connects that failed by no wish of the application.
    pub failed_connects: u32,
    /// Resets sent and received.
    pub resets: u32,
    /// Segments retransmitted.
    pub retransmits: u32,
}

impl Activity {
    pub(crate) const RESET: Self = Self { opened: 0, failed_connects: 0, resets: 1, retransmits: 0 };

    pub(crate) fn retransmits(segments: u64) -> Self {
        Self { retransmits: u32::try_from(segments).unwrap_or(u32::MAX), ..Self::default() }
    }

    pub fn add(&mut self, other: Self) {
        let pairs = [
            (&mut self.opened, other.opened),
            (&mut self.failed_connects, other.failed_connects),
            (&mut self.resets, other.resets),
            (&mut self.retransmits, other.retransmits),
        ];
        for (mine, theirs) in pairs {
            *mine = mine.saturating_add(theirs);
        }
    }
}

struct Entry {
    process: Process,
    workload: Workload,
    /// Since it was taken last.
    activity: Activity,
    task: TaskRecord,
    /// Number of connections that name it.
    users: u32,
}

#[derive(Default)]
pub struct ProcessTable {
    entries: Slab<Entry>,
    by_identity: FxHashMap<Identity, ProcessId>,
    /// As last reported by a record: what a record that names only a pid means.
    by_pid: FxHashMap<u32, ProcessId>,
    /// Entries without a user.
    idle: usize,
    /// Those whose /proc is still to be read.
    unread: VecDeque<TaskRecord>,
    /// Of what has no known process.
    unowned_activity: Activity,
    /// Of processes that were forgotten since activity was taken last.
    forgotten_activity: FxHashMap<Workload, Activity>,
    /// Where `next_held` goes on.
    looked_at: usize,
    /// Number of processes for which there was no room.
    pub refused: u64,
}

impl ProcessTable {
    /// A record reports the process: records that name its pid mean this identity from now on. `None` when the table is
    /// full.
    pub fn learn(&mut self, task: &TaskRecord) -> Option<ProcessId> {
        let id = self.place(task);
        match id {
            Some(id) => self.by_pid.insert(task.pid, id),
            None => self.by_pid.remove(&task.pid),
        };
        id
    }

    /// A sweep found the process. What a record reported before or after the sighting stays what records mean: the
    /// programs do not report it again.
    pub fn see(&mut self, task: &TaskRecord) -> Option<ProcessId> {
        let id = self.place(task)?;
        self.by_pid.entry(task.pid).or_insert(id);
        Some(id)
    }

    fn place(&mut self, task: &TaskRecord) -> Option<ProcessId> {
        let identity = task.identity();
        if let Some(id) = self.by_identity.get(&identity) {
            return Some(*id);
        }
        if self.entries.len() >= MAX_PROCESSES && self.idle > 0 {
            self.forget_idle();
        }
        if self.entries.len() >= MAX_PROCESSES {
            self.refused += 1;
            return None;
        }
        let comm: Arc<str> = task.comm.text().into();
        let before = self.by_pid(task.pid).map(|id| &self.entries[id.0.get()]);
        let process = match before.filter(|before| before.task.identity().is_same_program(&identity)) {
            // Only the name is another.
            Some(before) => Process { comm, ..before.process.clone() },
            None => Process {
                pid: task.pid,
                start_ns: task.start_ns,
                exec_id: task.exec_id,
                comm,
                exe: None,
                exe_deleted: None,
                cgroup: None,
                container: None,
            },
        };
        let workload = Workload::of(&process);
        let entry = Entry { process, workload, activity: Activity::default(), task: *task, users: 0 };
        let id = ProcessId(DenseIndex::new(self.entries.insert(entry)));
        self.by_identity.insert(identity, id);
        self.idle += 1;
        self.unread.push_back(*task);
        Some(id)
    }

    /// The identity that a record reported last with this pid.
    pub fn by_pid(&self, pid: u32) -> Option<ProcessId> {
        self.by_pid.get(&pid).copied()
    }

    pub fn get(&self, id: ProcessId) -> &Process {
        &self.entries[id.0.get()].process
    }

    /// Whether both are identities of one process.
    pub fn is_same_process(&self, one: ProcessId, other: ProcessId) -> bool {
        let [one, other] = [one, other].map(|id| self.get(id));
        (one.pid, one.start_ns) == (other.pid, other.start_ns)
    }

    /// Removes and returns those whose /proc is still to be read, at most `count`, the oldest first.
    pub fn take_unread(&mut self, count: usize) -> Vec<TaskRecord> {
        let count = count.min(self.unread.len());
        self.unread.drain(..count).collect()
    }

    /// Number of those whose /proc is still to be read.
    pub fn unread(&self) -> usize {
        self.unread.len()
    }

    /// The next of those that connections name and whose executable was not deleted, at most `count` at a time: it may be
    /// by now.
    pub fn next_held(&mut self, count: usize) -> Vec<TaskRecord> {
        let Self { entries, looked_at, .. } = self;
        let is_wanted = |entry: &Entry| entry.users > 0 && entry.process.exe_deleted == Some(false);
        let ahead = entries.iter().filter(|(key, _)| *key >= *looked_at);
        let found: Vec<_> = ahead.filter(|(_, entry)| is_wanted(entry)).take(count).collect();
        *looked_at = if found.len() < count { 0 } else { found.last().map_or(0, |(key, _)| key + 1) };
        found.into_iter().map(|(_, entry)| entry.task).collect()
    }

    /// Adds the details from /proc, read while the process had this identity; ignored when that is not in the table any
    /// more.
    pub fn describe(&mut self, identity: &Identity, details: &ProcDetails) {
        let Some(id) = self.by_identity.get(identity) else { return };
        let Entry { process, workload, .. } = &mut self.entries[id.0.get()];
        process.exe = details.exe.as_deref().map(Into::into);
        process.exe_deleted = details.exe_deleted;
        process.cgroup = details.cgroup.as_deref().map(Into::into);
        process.container = details.cgroup.as_deref().and_then(from_cgroup).map(Arc::new);
        *workload = Workload::of(process);
    }

    /// What the process belongs to.
    pub fn workload(&self, id: ProcessId) -> &Workload {
        &self.entries[id.0.get()].workload
    }

    /// Counts what a connection of the process did. `None`: its process is not known.
    pub(crate) fn count(&mut self, process: Option<ProcessId>, activity: Activity) {
        let mine = match process {
            Some(id) => &mut self.entries[id.0.get()].activity,
            None => &mut self.unowned_activity,
        };
        mine.add(activity);
    }

    /// What was counted since this was called last, of each process, of each workload of which a process was forgotten
    /// meanwhile, and of no known process. Without an id, the workload has no connection by that process.
    pub(crate) fn take_activity(
        &mut self,
        mut each: impl FnMut(Option<ProcessId>, Option<&Workload>, Activity),
    ) {
        for (key, entry) in &mut self.entries {
            let id = ProcessId(DenseIndex::new(key));
            each(Some(id), Some(&entry.workload), std::mem::take(&mut entry.activity));
        }
        for (workload, activity) in self.forgotten_activity.drain() {
            each(None, Some(&workload), activity);
        }
        each(None, None, std::mem::take(&mut self.unowned_activity));
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

    /// Makes `place` name this process, and counts both what it names now and what it named.
    pub(crate) fn set_user(&mut self, place: &mut Option<ProcessId>, process: Option<ProcessId>) {
        // In this order a process that stays is never without a user.
        if let Some(id) = process {
            self.add_user(id);
        }
        if let Some(old) = std::mem::replace(place, process) {
            self.drop_user(old);
        }
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
        let Self { entries, by_identity, by_pid, unread, forgotten_activity, .. } = self;
        entries.retain(|key, entry| {
            if entry.users == 0 {
                by_identity.remove(&entry.task.identity());
                if entry.activity != Activity::default() {
                    forgotten_activity.entry(entry.workload.clone()).or_default().add(entry.activity);
                }
                if by_pid.get(&entry.process.pid) == Some(&ProcessId(DenseIndex::new(key))) {
                    by_pid.remove(&entry.process.pid);
                }
            }
            entry.users > 0
        });
        unread.retain(|task| by_identity.contains_key(&task.identity()));
        self.idle = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(pid: u32, start_ns: u64, comm: &str) -> TaskRecord {
        TaskRecord { pid, start_ns, exec_id: 1, stack: 1, comm: comm.into() }
    }

    fn exec_of(task: TaskRecord, comm: &str) -> TaskRecord {
        TaskRecord { exec_id: task.exec_id + 1, stack: task.stack + 1, comm: comm.into(), ..task }
    }

    fn details(exe: &str) -> ProcDetails {
        ProcDetails { exe: Some(exe.into()), exe_deleted: Some(false), cgroup: Some("/a".into()) }
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
        table.describe(&task(7, 100, "old").identity(), &details("/old"));
        assert_eq!(table.get(second).exe, None);
    }

    #[test]
    fn an_exec_makes_another_identity_of_the_process_even_where_it_keeps_the_name() {
        for name in ["curl", "sh"] {
            let mut table = ProcessTable::default();
            let before = task(7, 100, "sh");
            let after = exec_of(before, name);
            let first = table.learn(&before).unwrap();
            table.describe(&before.identity(), &details("/bin/sh"));
            assert_eq!(table.take_unread(9), [before]);
            let second = table.learn(&after).unwrap();
            assert!(first != second && table.is_same_process(first, second));
            assert_eq!((&*table.get(first).comm, table.get(first).exe.as_deref()), ("sh", Some("/bin/sh")));
            assert_eq!((&*table.get(second).comm, table.get(second).exe.as_deref()), (name, None));
            assert_eq!(table.take_unread(9), [after]);
            table.describe(&after.identity(), &details("/bin/curl"));
            assert_eq!(table.get(first).exe.as_deref(), Some("/bin/sh"));
        }
    }

    #[test]
    fn processes_are_read_in_turn_and_not_those_that_are_forgotten() {
        let mut table = ProcessTable::default();
        for pid in 0..MAX_PROCESSES as u32 {
            let id = table.learn(&task(pid, 1, "p")).unwrap();
            if pid < 5 {
                table.add_user(id);
            }
        }
        let pids = |tasks: Vec<TaskRecord>| tasks.iter().map(|task| task.pid).collect::<Vec<_>>();
        assert_eq!(pids(table.take_unread(2)), [0, 1]);
        let new = MAX_PROCESSES as u32;
        table.learn(&task(new, 1, "p"));
        assert_eq!(table.unread(), 4);
        assert_eq!(pids(table.take_unread(9)), [2, 3, 4, new]);
    }

    #[test]
    fn another_name_is_another_identity_of_the_same_program() {
        let mut table = ProcessTable::default();
        let (idle, busy) = (task(7, 100, "idle"), task(7, 100, "busy"));
        let first = table.learn(&idle).unwrap();
        table.describe(&idle.identity(), &details("/bin/x"));
        let second = table.learn(&busy).unwrap();
        assert_eq!(&*table.get(first).comm, "idle");
        assert_eq!((&*table.get(second).comm, table.get(second).exe.as_deref()), ("busy", Some("/bin/x")));
        assert_eq!(table.learn(&idle), Some(first), "a name that comes back is no new entry");
        assert_eq!((table.by_pid(7), table.len()), (Some(first), 2));
    }

    #[test]
    fn a_sighting_does_not_change_what_records_mean() {
        let mut table = ProcessTable::default();
        let (before, after) = (task(7, 100, "sh"), exec_of(task(7, 100, "sh"), "curl"));
        let second = table.learn(&after).unwrap();
        let first = table.see(&before).unwrap();
        assert_eq!((table.by_pid(7), &*table.get(first).comm), (Some(second), "sh"));
        // Of a process that no record has reported, or that was forgotten.
        let seen = table.see(&task(8, 100, "nc")).unwrap();
        assert_eq!(table.by_pid(8), Some(seen));
    }

    #[test]
    fn executables_are_looked_at_again_in_turn_while_they_are_not_deleted() {
        let mut table = ProcessTable::default();
        for pid in 0..5 {
            let one = task(pid, 1, "p");
            let id = table.learn(&one).unwrap();
            table.add_user(id);
            let exe_deleted = Some(pid == 1);
            table.describe(&one.identity(), &ProcDetails { exe_deleted, ..details("/p") });
        }
        let mut pids = || table.next_held(2).iter().map(|task| task.pid).collect::<Vec<_>>();
        assert_eq!([pids(), pids(), pids(), pids()], [vec![0, 2], vec![3, 4], vec![], vec![0, 2]]);
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
