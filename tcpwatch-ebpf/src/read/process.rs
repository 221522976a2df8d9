//! The process in whose context a program runs. Out: its id, start and name, and whether it exits. Deliberately absent:
//! executable and cgroup, which the daemon reads in /proc.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf};

use crate::read::{
    identity,
    offsets::{OFF_TASK_COMM, OFF_TASK_FLAGS, OFF_TASK_GROUP_LEADER, OFF_TASK_START_BOOTTIME},
    pointer::{BtfPtr, KernelPtr, ProbedPtr},
};

/// include/linux/sched.h: PF_KTHREAD. The kernel closes sockets from its own threads when the last
/// reference was dropped where closing is not allowed; that thread owns no socket.
const PF_KTHREAD: u32 = 0x0020_0000;

/// include/linux/sched.h: PF_EXITING.
const PF_EXITING: u32 = 0x4;

/// A process, as `TaskEvent` has it.
pub struct Process {
    /// In the initial pid namespace.
    pub tgid: u32,
    /// Nanoseconds of CLOCK_BOOTTIME.
    pub start_ns: u64,
    /// NUL-terminated.
    pub comm: [u64; 2],
}

impl Process {
    /// The current process; `None` for a kernel thread.
    #[inline(always)]
    pub fn current() -> Option<Self> {
        // Kernels without cookies (before 5.12) have no typed current task either (5.11).
        if identity::is_address() {
            // SAFETY: no arguments.
            Self::of(ProbedPtr::new(unsafe { bpf_get_current_task() } as *const u8)?)
        } else {
            // SAFETY: no arguments.
            Self::of(BtfPtr::new(unsafe { bpf_get_current_task_btf() }.cast())?)
        }
    }

    #[inline(always)]
    fn of(task: impl KernelPtr) -> Option<Self> {
        if task.read::<u32>(&OFF_TASK_FLAGS) & PF_KTHREAD != 0 {
            return None;
        }
        // A thread may carry a name of its own; the process is called what its leader is called.
        let leader = task.follow(&OFF_TASK_GROUP_LEADER)?;
        Some(Self {
            tgid: current_tgid(),
            start_ns: leader.read(&OFF_TASK_START_BOOTTIME),
            comm: leader.read_16_bytes(&OFF_TASK_COMM),
        })
    }
}

/// Id of the current process in the initial pid namespace.
#[inline(always)]
pub fn current_tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Whether the current process exits, and the kernel closes what it had open.
#[inline(always)]
pub fn exits() -> bool {
    let flags = if identity::is_address() {
        // SAFETY: no arguments.
        ProbedPtr::new(unsafe { bpf_get_current_task() } as *const u8).map(task_flags)
    } else {
        // SAFETY: no arguments.
        BtfPtr::new(unsafe { bpf_get_current_task_btf() }.cast()).map(task_flags)
    };
    flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

#[inline(always)]
fn task_flags(task: impl KernelPtr) -> u32 {
    task.read(&OFF_TASK_FLAGS)
}
