//! The record about the process that other records name. In: the process in whose context a program runs. Out: its
//! id, after a [`TaskEvent`] where the reader does not know it yet. Deliberately absent: whether it owns the socket,
//! which depends on the hook.

use aya_ebpf::{helpers::bpf_get_current_comm, macros::map, maps::Array};
use tcpwatch_common::{KIND_TASK, TaskEvent};

use crate::{
    out::{queue, ring},
    read::{
        pointer::bytes,
        process::{self, Process},
    },
};

/// The last [`TaskEvent`] about a process.
#[derive(Clone, Copy)]
#[repr(C)]
struct ReportedTask {
    time_ns: u64,
    start_ns: u64,
    comm: [u64; 2],
    exec_id: u64,
}

/// Entries for each way, one for each value of a tgid's lower 12 bits. Never full: two processes that share an entry
/// replace each other in it, each time at the cost of one record.
const REPORTED_COUNT: u32 = 4096;

/// First the processes reported through the queues, then those reported through the ring: the reader may read one
/// before the other, so each reports the processes that its own records name.
#[map(name = "TOLD")]
static REPORTED_TASKS: Array<ReportedTask> = Array::with_max_entries(2 * REPORTED_COUNT, 0);

/// The way by which the record leaves that names the process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    Queue,
    Ring,
}

/// Id of the current process, which the reader knows after this. 0 for a kernel thread, or when there was no room for
/// the `TaskEvent`: an id whose process the reader cannot know may name the wrong one. `lost`: as for
/// `ring::reserve`.
///
/// `time_ns`, of the record that names the process, is raised to that of the `TaskEvent` if it is earlier: a thread
/// on another processor may have written that after this program began.
#[inline(always)]
pub fn current_tgid(time_ns: &mut u64, by: By, lost: u32) -> u32 {
    Process::current().and_then(|process| report(&process, time_ns, by, lost)).unwrap_or(0)
}

#[inline(always)]
fn report(process: &Process, time_ns: &mut u64, by: By, lost: u32) -> Option<u32> {
    let Process { tgid, start_ns, comm, exec_id } = *process;
    let exec = u64::from(exec_id);
    let reported = REPORTED_TASKS.get_ptr_mut(tgid % REPORTED_COUNT + by as u32 * REPORTED_COUNT)?;
    // SAFETY: a value of the map; what another processor writes meanwhile can only cause one more report, as no two
    // processes have the same start.
    let known = unsafe { *reported };
    if known.start_ns == start_ns && known.comm == comm && known.exec_id == exec {
        if known.time_ns > *time_ns {
            *time_ns = known.time_ns;
        }
        return Some(tgid);
    }
    let record = TaskEvent {
        kind: KIND_TASK,
        zero: [0; 3],
        tgid,
        time_ns: *time_ns,
        start_ns,
        comm: bytes(comm),
        exec_id,
        stack: process::current_stack(),
    };
    // The reader is woken at once: when a short-lived process ends, its executable and cgroup vanish from /proc.
    let written = match by {
        By::Queue => {
            let pushed = queue::push(&record, lost);
            if pushed {
                ring::wake();
            }
            pushed
        }
        By::Ring => ring::emit_and_wake(record, lost),
    };
    if !written {
        return None;
    }
    // SAFETY: as above.
    unsafe { *reported = ReportedTask { time_ns: *time_ns, start_ns, comm, exec_id: exec } };
    forget_other_way(process, by);
    Some(tgid)
}

/// Makes the other way report the process again, unless it has reported the same: the reader takes a process to be as it
/// was reported last, by either way, and a name may change back.
#[inline(always)]
fn forget_other_way(process: &Process, by: By) {
    let other = if by == By::Queue { By::Ring } else { By::Queue };
    let entry = process.tgid % REPORTED_COUNT + other as u32 * REPORTED_COUNT;
    if let Some(reported) = REPORTED_TASKS.get_ptr_mut(entry) {
        // SAFETY: as above.
        let known = unsafe { *reported };
        let same = known.comm == process.comm && known.exec_id == u64::from(process.exec_id);
        if known.start_ns == process.start_ns && !same {
            // SAFETY: as above.
            unsafe { (*reported).start_ns = 0 };
        }
    }
}

/// Id of the current process where the kernel's types are not known: reported each time, because without its start a
/// process cannot be compared with the one reported before. `None` when there was no room.
#[inline(always)]
pub fn current_tgid_without_start(time_ns: u64, lost: u32) -> Option<u32> {
    let tgid = process::current_tgid();
    let comm = bpf_get_current_comm().ok()?;
    let record =
        TaskEvent { kind: KIND_TASK, zero: [0; 3], tgid, time_ns, start_ns: 0, comm, exec_id: 0, stack: 0 };
    queue::push(&record, lost).then_some(tgid)
}
