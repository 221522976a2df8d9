//! Every TCP socket that a process holds open, in all network namespaces: the iterator task_file
//! (kernel/bpf/task_iter.c) visits each descriptor of each process. In: a process and one of its files. Out: one
//! record for each descriptor that is a TCP socket, and for a Multipath TCP socket the list of its subflows.
//! Deliberately absent: sockets without a descriptor (not yet accepted, orphaned, TIME_WAIT), which the iterator tcp
//! visits.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::bpf_sock_from_file;

use crate::{
    iter::{
        holder::Holder,
        seen_socket,
        seq::{self, TaskFileContext},
        socket_list,
    },
    read::{
        offsets::{
            self, OFF_FILE_INODE, OFF_FILE_PRIVATE_DATA, OFF_INODE_SB, OFF_MPTCP_CONN_LIST, OFF_SB_MAGIC,
            OFF_SK_PROTOCOL, OFF_SK_TYPE, OFF_SKC_FAMILY, OFF_SOCKET_SK,
        },
        pointer::{AF_INET, AF_INET6, BtfPtr, IPPROTO_MPTCP, KernelPtr, ProbedPtr, SOCK_STREAM},
    },
};

/// include/uapi/linux/magic.h
const SOCKFS_MAGIC: u64 = 0x534f_434b;

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn held_iter(ctx: *const TaskFileContext) -> i32 {
    // SAFETY: the kernel passes a context of this layout.
    let file = unsafe { (*ctx).file };
    if file.is_null() {
        return 0;
    }
    // SAFETY: a non-null file of the context.
    let socket = unsafe { bpf_sock_from_file(file.cast_mut()) };
    if let Some(sk) = BtfPtr::new(socket.cast()).and_then(|socket| socket.follow(&OFF_SOCKET_SK)) {
        held(ctx, sk);
    }
    0
}

/// The same for Linux 5.10, which has no `bpf_sock_from_file`: a file of sockfs is a socket.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn held_iter_probing(ctx: *const TaskFileContext) -> i32 {
    // SAFETY: the kernel passes a context of this layout.
    let Some(file) = BtfPtr::new(unsafe { (*ctx).file }.cast()) else { return 0 };
    let superblock = file.follow(&OFF_FILE_INODE).and_then(|inode| inode.follow(&OFF_INODE_SB));
    if superblock.is_none_or(|superblock| superblock.read::<u64>(&OFF_SB_MAGIC) != SOCKFS_MAGIC) {
        return 0;
    }
    let socket = ProbedPtr::new(file.read(&OFF_FILE_PRIVATE_DATA));
    if let Some(sk) = socket.and_then(|socket| socket.follow(&OFF_SOCKET_SK)) {
        held(ctx, sk);
    }
    0
}

#[inline(always)]
fn held(ctx: *const TaskFileContext, sk: impl KernelPtr) {
    // SAFETY: the kernel passes a context of this layout.
    let (meta, task, fd) = unsafe { ((*ctx).meta, (*ctx).task, (*ctx).fd as u32) };
    let Some(task) = BtfPtr::new(task.cast()) else { return };
    let family = sk.read::<u16>(&OFF_SKC_FAMILY);
    // The protocol's numbers mean something else in other families (a netlink socket's 6, say).
    if family != AF_INET && family != AF_INET6 {
        return;
    }
    let Some(holder) = Holder::of(task, fd) else { return };
    let mut room = MaybeUninit::uninit();
    if is_mptcp(sk) {
        socket_list::write_subflows(meta, sk, &holder, &mut room);
        return;
    }
    let Some(sk) = sk.tcp_sock() else { return };
    let record = seen_socket::zeroed(&mut room);
    seen_socket::fill_full_socket(record, sk);
    seen_socket::fill_flow(record, sk);
    holder.fill_socket(record);
    seen_socket::fill_listener(record);
    seq::write(meta, record);
}

/// Whether it is a Multipath TCP socket whose subflows can be found.
#[inline(always)]
fn is_mptcp(sk: impl KernelPtr) -> bool {
    offsets::value(&OFF_MPTCP_CONN_LIST) != 0
        && sk.read::<u16>(&OFF_SK_PROTOCOL) == IPPROTO_MPTCP
        && sk.read::<u16>(&OFF_SK_TYPE) == SOCK_STREAM
}
