//! Reads the options of a live connection's socket, on request.
//!
//! The kernel reports them only to the socket's holder, so an iterator searches the sockets of its network namespace.

use std::{
    fs::File,
    io::{self, Read as _},
};

use tcpwatch_common::{AskedOptions, SocketOptions as Record};

use crate::{
    events::decode,
    kernel::{netns, probes::Probes, sock_diag::Target},
};

/// Reads them, moving the calling thread into the connection's namespace. `None` when the socket is gone.
///
/// # Errors
/// Why they cannot be read; a message for the user.
pub fn ask(probes: &mut Probes, target: &Target) -> Result<Option<Record>, String> {
    netns::enter_existing(target.netns, &target.ways)?;
    let file = probes.socket_options(target.identity)?;
    let asked = read(file).map_err(|error| format!("cannot ask the kernel (iterator tcp): {error}"))?;
    // Where sockets are identified by their address, another socket may have it by now.
    let ends = (target.local.port, target.remote.port);
    Ok(asked.filter(|asked| (asked.sport, asked.dport) == ends).map(|asked| asked.options))
}

/// The one record of the file, `None` of an empty file.
fn read(mut file: File) -> io::Result<Option<AskedOptions>> {
    let mut bytes = [0; size_of::<AskedOptions>()];
    loop {
        match file.read_exact(&mut bytes) {
            Ok(()) => return decode::asked_options(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            // After a million sockets (MAX_ITER_OBJECTS, kernel/bpf/bpf_iter.c); the next read continues from there.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
