//! What the kernel passes to an iterator program, and the way out of one. In: a context. Out: a record to the reader.
//! Deliberately absent: what is in the record.

use aya_ebpf::{
    bindings::{file, seq_file, task_struct},
    helpers::bpf_seq_write,
};

/// `struct bpf_iter_meta` (include/linux/bpf.h), as far as it is used.
#[repr(C)]
pub struct Meta {
    seq: *mut seq_file,
}

/// `struct bpf_iter__task_file` (kernel/bpf/task_iter.c): each member takes eight bytes.
#[repr(C)]
pub struct TaskFileContext {
    pub meta: *const Meta,
    /// This and `file` are null once, after the last descriptor.
    pub task: *const task_struct,
    pub fd: u64,
    pub file: *const file,
}

/// `struct bpf_iter__tcp` (net/ipv4/tcp_ipv4.c), without its last member.
#[repr(C)]
pub struct TcpContext {
    pub meta: *const Meta,
    /// Null once, after the last socket.
    pub sk_common: *const u8,
}

/// `struct bpf_iter__bpf_map` (kernel/bpf/map_iter.c).
#[repr(C)]
pub struct MapContext {
    pub meta: *const Meta,
    /// Null once, after the last map.
    pub map: *const u8,
}

/// Writes the record to the reader of the iterator.
#[inline(always)]
pub fn write<T>(meta: *const Meta, record: &T) {
    // SAFETY: the iterator's own seq_file. Where its buffer is full the kernel discards the partial record,
    // grows the buffer or hands it out, and calls the program again for the same element.
    unsafe {
        bpf_seq_write((*meta).seq, core::ptr::from_ref(record).cast_mut().cast(), size_of::<T>() as u32);
    }
}
