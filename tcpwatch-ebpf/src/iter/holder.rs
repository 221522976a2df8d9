//! The process that holds a socket. In: a task and the number of one of its descriptors. Out: the fields by which both
//! records that name a holder do so. Deliberately absent: whether the descriptor is a socket.

use tcpwatch_common::{SeenSocket, SocketList};

use crate::read::{
    offsets::{OFF_TASK_COMM, OFF_TASK_GROUP_LEADER, OFF_TASK_START_BOOTTIME, OFF_TASK_TGID},
    pointer::{BtfPtr, KernelPtr as _, bytes},
    process,
};

pub struct Holder {
    tgid: u32,
    fd: u32,
    start_ns: u64,
    comm: [u8; 16],
    exec_id: u32,
    stack: u32,
}

impl Holder {
    #[inline(always)]
    pub fn of(task: BtfPtr, fd: u32) -> Option<Self> {
        let leader = task.follow(&OFF_TASK_GROUP_LEADER)?;
        Some(Self {
            tgid: task.read(&OFF_TASK_TGID),
            fd,
            start_ns: leader.read(&OFF_TASK_START_BOOTTIME),
            comm: bytes(leader.read_16_bytes(&OFF_TASK_COMM)),
            exec_id: process::exec_id(task),
            stack: process::stack(task),
        })
    }

    #[inline(always)]
    pub fn fill_socket(&self, seen: &mut SeenSocket) {
        seen.tgid = self.tgid;
        seen.fd = self.fd;
        seen.start_ns = self.start_ns;
        seen.comm = self.comm;
        seen.exec_id = self.exec_id;
        seen.stack = self.stack;
    }

    #[inline(always)]
    pub fn fill_list(&self, list: &mut SocketList) {
        list.tgid = self.tgid;
        list.fd = self.fd;
        list.start_ns = self.start_ns;
        list.comm = self.comm;
        list.exec_id = self.exec_id;
        list.stack = self.stack;
    }
}
