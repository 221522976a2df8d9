//! Ways into a network namespace.
//!
//! None of them is kept open: a descriptor of a namespace would keep it from ending.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::PathBuf,
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::kernel::netns::syscalls;

/// PIDFD_THREAD (include/uapi/linux/pidfd.h, Linux 6.9): of a thread that does not lead its process.
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL.cast_unsigned());

/// A way into a namespace, which may have closed since it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// Of a process or thread in it, or of an open descriptor, in /proc; or a name.
    Path(PathBuf),
    /// Its cookie, by which Linux 6.18 and later open it.
    Cookie(u64),
    /// A socket in it that a process elsewhere holds.
    Socket { pid: u32, fd: u32 },
}

impl Entrance {
    /// Moves the calling thread into the namespace, if the entrance still leads to the one with `inode`.
    ///
    /// # Errors
    /// Why it may not be entered.
    pub(super) fn enter(&self, inode: u32) -> io::Result<bool> {
        let Some(namespace) = self.open(inode)? else { return Ok(false) };
        if namespace.metadata()?.ino() != u64::from(inode) {
            return Ok(false);
        }
        match move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)) {
            Ok(()) => Ok(true),
            // The name of a namespace that is gone.
            Err(Errno::INVAL) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn open(&self, inode: u32) -> io::Result<Option<File>> {
        match self {
            Self::Path(path) => match File::open(path) {
                Ok(file) => Ok(Some(file)),
                // The process ended, or the name was removed; while a process ends the kernel answers EACCES.
                Err(error) if error.kind() == io::ErrorKind::NotFound || path.symlink_metadata().is_err() => {
                    Ok(None)
                }
                Err(error) => Err(error),
            },
            // An older kernel has other errors for this; each means that there is no such way.
            Self::Cookie(cookie) => Ok(syscalls::namespace_by_cookie(*cookie, inode).ok()),
            Self::Socket { pid, fd } => {
                match socket(*pid, *fd).and_then(|socket| syscalls::namespace_of(&socket)) {
                    Ok(namespace) => Ok(Some(namespace)),
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
                    // The process ended, or closed it.
                    Err(_) => Ok(None),
                }
            }
        }
    }
}

/// A descriptor of the socket. While it is open, the process's own close() does not end the connection, so it is closed at
/// once.
fn socket(pid: u32, fd: u32) -> io::Result<OwnedFd> {
    let of_task = |id: u32, flags| {
        let id = Pid::from_raw(id.cast_signed()).ok_or(Errno::SRCH)?;
        let fd = fd.cast_signed();
        Ok(pidfd_getfd(pidfd_open(id, flags)?, fd, PidfdGetfdFlags::empty())?)
    };
    of_task(pid, PidfdFlags::empty()).or_else(|error| {
        // A thread with descriptors of its own, or one that has outlived the thread that led it.
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
        let ids = threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok());
        ids.into_iter().find_map(|id| of_task(id, PIDFD_THREAD).ok()).ok_or(error)
    })
}
