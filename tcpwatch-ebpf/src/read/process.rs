//! The process in whose context a program runs. Out: its id, start and name, which program it runs, and whether it exits.
//! Deliberately absent: executable and cgroup, which the daemon reads in /proc.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf};

use crate::read::{
    identity,
    offsets::{
        self, OFF_MM_START_STACK, OFF_TASK_COMM, OFF_TASK_FLAGS, OFF_TASK_GROUP_LEADER, OFF_TASK_MM,
        OFF_TASK_SELF_EXEC_ID, OFF_TASK_START_BOOTTIME,
    },
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
    pub exec_id: u32,
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
            exec_id: exec_id(task),
        })
    }
}

/// `TaskEvent::exec_id` of a thread's process.
#[inline(always)]
pub fn exec_id(task: impl KernelPtr) -> u32 {
    // Without a branch at run time: the verifier knows the offset. A kernel before 5.7 has 32 bits there, others 64.
    if offsets::value(&OFF_TASK_SELF_EXEC_ID) == 0 { 0 } else { task.read(&OFF_TASK_SELF_EXEC_ID) }
}

/// `TaskEvent::stack` of a thread's process. All threads have the same memory, also those that outlive their leader.
#[inline(always)]
pub fn stack(task: impl KernelPtr) -> u32 {
    if offsets::value(&OFF_TASK_MM) == 0 || offsets::value(&OFF_MM_START_STACK) == 0 {
        return 0;
    }
    task.follow(&OFF_TASK_MM).map_or(0, |memory| (memory.read::<u64>(&OFF_MM_START_STACK) >> 4) as u32)
}

/// The same of the current process.
#[inline(always)]
pub fn current_stack() -> u32 {
    let found = if identity::is_address() {
        // SAFETY: no arguments.
        ProbedPtr::new(unsafe { bpf_get_current_task() } as *const u8).map(stack)
    } else {
        // SAFETY: no arguments.
        BtfPtr::new(unsafe { bpf_get_current_task_btf() }.cast()).map(stack)
    };
    found.unwrap_or(0)
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
