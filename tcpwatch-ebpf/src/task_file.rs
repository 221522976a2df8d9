//! Every TCP socket that a process holds open, in all network namespaces: the iterator task_file
//! (kernel/bpf/task_iter.c) visits each descriptor of each process; one record for each that is a TCP socket.
//! Read by the daemon at start, after a loss, and when somebody asks who holds what.
//!
//! Not seen: sockets without a descriptor (not yet accepted, orphaned, TIME_WAIT); those the iterator tcp has.

use aya_ebpf::{
    bindings::{file, task_struct},
    helpers::bpf_sock_from_file,
};
use tcpwatch_common::SeenSocket;

use crate::{
    field::{
        KernelPtr, OFF_SKC_FAMILY, OFF_SOCKET_SK, OFF_TASK_COMM, OFF_TASK_GROUP_LEADER,
        OFF_TASK_START_BOOTTIME, OFF_TASK_TGID,
    },
    fill::{self, AF_INET, AF_INET6},
    iter::{self, Meta},
};

/// `struct bpf_iter__task_file` (kernel/bpf/task_iter.c): each member takes eight bytes.
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    task: *const task_struct,
    fd: u64,
    file: *const file,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn task_file(ctx: *const Context) -> i32 {
    // SAFETY: the kernel passes a context of this layout.
    let (meta, task, fd, file) = unsafe { ((*ctx).meta, (*ctx).task, (*ctx).fd as u32, (*ctx).file) };
    // Task and file are null once, after the last one.
    let Some(task) = KernelPtr::new(task.cast()) else { return 0 };
    if file.is_null() {
        return 0;
    }
    // SAFETY: a non-null file of the context.
    let socket = unsafe { bpf_sock_from_file(file.cast_mut()) };
    let Some(socket) = KernelPtr::new(socket.cast()) else { return 0 };
    let Some(sk) = socket.follow(&OFF_SOCKET_SK) else { return 0 };
    let family = sk.read::<u16>(&OFF_SKC_FAMILY);
    // The protocol's numbers mean something else in other families (a netlink socket's 6, say).
    if family != AF_INET && family != AF_INET6 {
        return 0;
    }
    let Some(sk) = fill::tcp_sock(sk) else { return 0 };
    let Some(leader) = task.follow(&OFF_TASK_GROUP_LEADER) else { return 0 };
    let record = SeenSocket {
        start_ns: leader.read(&OFF_TASK_START_BOOTTIME),
        tgid: task.read(&OFF_TASK_TGID),
        fd,
        comm: fill::bytes(leader.read_16_bytes(&OFF_TASK_COMM)),
        ..iter::full_socket(sk)
    };
    iter::write(meta, &record);
    0
}
