//! Every TCP socket that a process holds open, in all network namespaces: the iterator task_file
//! (kernel/bpf/task_iter.c) visits each descriptor of each process; one `HeldSocket` for each that is a TCP
//! socket. Read by the daemon at start, after a loss, and when somebody asks who holds what.
//!
//! Not seen: sockets without a descriptor (not yet accepted, orphaned, TIME_WAIT).

use aya_ebpf::{
    bindings::{file, seq_file, task_struct},
    helpers::{bpf_ktime_get_ns, bpf_seq_write, bpf_sock_from_file},
};
use tcpwatch_common::HeldSocket;

use crate::{
    field::{
        KernelPtr, OFF_SK_ACK_BACKLOG, OFF_SK_MAX_ACK_BACKLOG, OFF_SKC_FAMILY, OFF_SKC_STATE, OFF_SOCKET_SK,
        OFF_TASK_COMM, OFF_TASK_GROUP_LEADER, OFF_TASK_START_BOOTTIME, OFF_TASK_TGID, OFF_TOTAL_RETRANS,
    },
    fill::{self, AF_INET, AF_INET6},
};

/// `struct bpf_iter__task_file` (kernel/bpf/task_iter.c): each member takes eight bytes.
#[repr(C)]
pub struct Context {
    meta: *const Meta,
    task: *const task_struct,
    fd: u64,
    file: *const file,
}

/// `struct bpf_iter_meta` (include/linux/bpf.h), as far as it is used.
#[repr(C)]
pub struct Meta {
    seq: *mut seq_file,
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
    let flags = fill::flags(sk);
    let (saddr, daddr) = fill::addresses(sk);
    let (sport, dport) = fill::ports(sk);
    let record = HeldSocket {
        state: sk.read(&OFF_SKC_STATE),
        flags,
        zero: [0; 2],
        netns: fill::netns(sk),
        // SAFETY: no arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        cookie: fill::cookie(sk),
        start_ns: leader.read(&OFF_TASK_START_BOOTTIME),
        tgid: task.read(&OFF_TASK_TGID),
        fd,
        unread_bytes: fill::unread_bytes(sk, flags),
        total_retrans: sk.read(&OFF_TOTAL_RETRANS),
        queue: sk.read(&OFF_SK_ACK_BACKLOG),
        queue_limit: sk.read(&OFF_SK_MAX_ACK_BACKLOG),
        comm: fill::bytes(leader.read_16_bytes(&OFF_TASK_COMM)),
        sport,
        dport,
        zero2: 0,
        saddr: fill::bytes(saddr),
        daddr: fill::bytes(daddr),
    };
    // SAFETY: the iterator's own seq_file. Where its buffer is full the kernel discards the partial record,
    // grows the buffer or hands it out, and calls again for the same descriptor.
    unsafe {
        bpf_seq_write((*meta).seq, (&raw const record).cast_mut().cast(), size_of::<HeldSocket>() as u32);
    }
    0
}
