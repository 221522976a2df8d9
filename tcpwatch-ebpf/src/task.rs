//! The process in whose context a program runs, told to the reader once.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf},
    macros::map,
    maps::Array,
};
use tcpwatch_common::{KIND_TASK, TaskEvent};

use crate::{
    field::{
        Kernel, OFF_TASK_COMM, OFF_TASK_FLAGS, OFF_TASK_GROUP_LEADER, OFF_TASK_START_BOOTTIME, Raw, Typed,
    },
    fill, queue, ring,
};

/// include/linux/sched.h: PF_KTHREAD. The kernel closes sockets from its own threads when the last
/// reference was dropped where closing is not allowed; that thread is nobody's owner.
const PF_KTHREAD: u32 = 0x0020_0000;

/// include/linux/sched.h: PF_EXITING.
const PF_EXITING: u32 = 0x4;

/// What the reader was told of a process.
#[derive(Clone, Copy)]
#[repr(C)]
struct Told {
    /// Of the record that told.
    time_ns: u64,
    start_ns: u64,
    comm: [u64; 2],
}

/// One for each of the lower bits of a tgid: two processes that share them are told in turn, each time one record.
const TOLD_COUNT: u32 = 4096;

/// First what was told through the queues, then what was told through the ring: the reader may see one before the
/// other, so each tells of the processes that its own records name.
#[map]
static TOLD: Array<Told> = Array::with_max_entries(2 * TOLD_COUNT, 0);

/// The way that the record goes which names the process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    Queue,
    Ring,
}

/// The current process, after the reader was told who it is. 0 for a kernel thread, or when the ring had
/// no room to tell: a pid whose process the reader cannot know may name the wrong one. `lost`: as for `ring::reserve`.
///
/// `time_ns` of the record that names the process becomes that of the one that told of it, if it is earlier: a thread
/// on another processor may have told after this program began.
#[inline(always)]
pub fn current_tgid(time_ns: &mut u64, by: By, lost: u32) -> u32 {
    // Kernels without cookies (before 5.12) have no typed current task either (5.11).
    let told = if fill::by_address() {
        // SAFETY: no arguments.
        tell(Raw::new(unsafe { bpf_get_current_task() } as *const u8), time_ns, by, lost)
    } else {
        // SAFETY: no arguments.
        tell(Typed::new(unsafe { bpf_get_current_task_btf() }.cast()), time_ns, by, lost)
    };
    told.unwrap_or(0)
}

/// Whether the current process exits, and the kernel closes what it had open.
#[inline(always)]
pub fn exits() -> bool {
    let flags = if fill::by_address() {
        // SAFETY: no arguments.
        Raw::new(unsafe { bpf_get_current_task() } as *const u8).map(|task| task.read::<u32>(&OFF_TASK_FLAGS))
    } else {
        // SAFETY: no arguments.
        Typed::new(unsafe { bpf_get_current_task_btf() }.cast()).map(|task| task.read::<u32>(&OFF_TASK_FLAGS))
    };
    flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

#[inline(always)]
fn tell(task: Option<impl Kernel>, time_ns: &mut u64, by: By, lost: u32) -> Option<u32> {
    let task = task?;
    if task.read::<u32>(&OFF_TASK_FLAGS) & PF_KTHREAD != 0 {
        return None;
    }
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // A thread may carry a name of its own; the process is called what its leader is called.
    let leader = task.follow(&OFF_TASK_GROUP_LEADER)?;
    let start_ns = leader.read::<u64>(&OFF_TASK_START_BOOTTIME);
    let comm = leader.read_16_bytes(&OFF_TASK_COMM);
    let told = TOLD.get_ptr_mut(tgid % TOLD_COUNT + by as u32 * TOLD_COUNT)?;
    // SAFETY: a value of the map; what another processor writes meanwhile can only make it be told again, as a
    // start is no other process's.
    let known = unsafe { *told };
    if known.start_ns == start_ns && known.comm == comm {
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
        comm: fill::bytes(comm),
    };
    // Woken at once: a short-lived process leaves /proc with its executable and cgroup unread.
    match by {
        By::Queue => {
            if !queue::push(&record, lost) {
                return None;
            }
            ring::wake();
        }
        By::Ring => {
            let mut entry = ring::reserve::<TaskEvent>(lost)?;
            entry.write(record);
            ring::submit_and_wake(entry);
        }
    }
    // SAFETY: as above.
    unsafe { *told = Told { time_ns: *time_ns, start_ns, comm } };
    Some(tgid)
}
