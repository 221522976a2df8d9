//! System calls that have no other name in Rust.

#![allow(unsafe_code, reason = "system calls that have no other name in Rust")]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// include/uapi/linux/sockios.h: the network namespace of a socket.
const SIOCGSKNS: libc::Ioctl = 0x894c;

/// A handle of nsfs: `struct file_handle` (include/linux/fs.h) and `struct nsfs_file_handle` (include/uapi/linux/nsfs.h).
#[repr(C)]
struct NamespaceHandle {
    handle_bytes: u32,
    handle_type: i32,
    ns_id: u64,
    ns_type: u32,
    ns_inum: u32,
}

/// include/linux/exportfs.h
const FILEID_NSFS: i32 = 0xf1;

/// The namespace with this cookie and inode, whatever keeps it (Linux 6.18).
///
/// # Errors
/// When there is none, or the kernel does not open namespaces so.
pub(super) fn namespace_by_cookie(cookie: u64, inode: u32) -> io::Result<File> {
    // Any file of the same file system.
    let of_nsfs = File::open("/proc/self/ns/net")?;
    let mut handle = NamespaceHandle {
        handle_bytes: 16,
        handle_type: FILEID_NSFS,
        ns_id: cookie,
        ns_type: libc::CLONE_NEWNET.cast_unsigned(),
        ns_inum: inode,
    };
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: the handle has as many bytes behind its first two fields as it says.
    let opened =
        unsafe { libc::syscall(libc::SYS_open_by_handle_at, of_nsfs.as_raw_fd(), &raw mut handle, flags) };
    // SAFETY: what the kernel has just returned, unless it is an error.
    file_of(opened, |fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The network namespace of a socket.
///
/// # Errors
/// When it may not be opened.
pub(super) fn namespace_of(socket: &OwnedFd) -> io::Result<File> {
    // SAFETY: takes no argument.
    let opened = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
    // SAFETY: as above.
    file_of(opened.into(), |fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn file_of(opened: i64, own: impl FnOnce(i32) -> OwnedFd) -> io::Result<File> {
    if opened < 0 { Err(io::Error::last_os_error()) } else { Ok(own(opened as i32).into()) }
}
