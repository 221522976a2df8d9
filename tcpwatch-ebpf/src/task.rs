//! The process in whose context a program runs, told to the reader once.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task},
    macros::map,
    maps::LruHashMap,
};
use tcpwatch_common::{KIND_TASK, TaskEvent};

use crate::{
    field::{Kernel, OFF_TASK_COMM, OFF_TASK_FLAGS, OFF_TASK_GROUP_LEADER, OFF_TASK_START_BOOTTIME, Raw},
    fill, ring,
};

/// include/linux/sched.h: PF_KTHREAD. The kernel closes sockets from its own threads when the last
/// reference was dropped where closing is not allowed; that thread is nobody's owner.
const PF_KTHREAD: u32 = 0x0020_0000;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Told {
    start_ns: u64,
    comm: [u64; 2],
}

/// What the reader was told of each tgid. LRU: a forgotten process is told again, which costs one record.
#[map]
static TOLD: LruHashMap<u32, Told> = LruHashMap::with_max_entries(8192, 0);

/// The current process, after the reader was told who it is. 0 for a kernel thread, or when the ring had
/// no room to tell: a pid whose process the reader cannot know may name the wrong one. `lost`: as for `ring::reserve`.
#[inline(always)]
pub fn current_tgid(lost: u32) -> u32 {
    tell_current(lost).unwrap_or(0)
}

#[inline(always)]
fn tell_current(lost: u32) -> Option<u32> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // SAFETY: no arguments. Always a task_struct, but a plain number to the verifier.
    let task = Raw::new(unsafe { bpf_get_current_task() } as *const u8)?;
    if task.read::<u32>(&OFF_TASK_FLAGS) & PF_KTHREAD != 0 {
        return None;
    }
    // A thread may carry a name of its own; the process is called what its leader is called.
    let leader = task.follow(&OFF_TASK_GROUP_LEADER)?;
    let now =
        Told { start_ns: leader.read(&OFF_TASK_START_BOOTTIME), comm: leader.read_16_bytes(&OFF_TASK_COMM) };
    // SAFETY: the value is copied out at once; a torn read only tells the process again.
    if unsafe { TOLD.get(tgid) }.is_some_and(|told| *told == now) {
        return Some(tgid);
    }
    let mut entry = ring::reserve::<TaskEvent>(lost)?;
    let comm = fill::bytes(now.comm);
    entry.write(TaskEvent { kind: KIND_TASK, zero: [0; 3], tgid, start_ns: now.start_ns, comm });
    // Woken at once: a short-lived process leaves /proc with its executable and cgroup unread.
    ring::submit_and_wake(entry);
    // A full map evicts, an error would only tell the process again.
    let _ = TOLD.insert(tgid, now, 0);
    Some(tgid)
}
