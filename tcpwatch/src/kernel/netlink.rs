//! Netlink requests to the kernel, in the calling thread's network namespace.

use std::{fmt::Debug, io, time::Duration};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// Larger than any answer about one connection, and than one part of a dump (32 KiB, netlink_dump in
/// net/netlink/af_netlink.c).
const ANSWER_BYTES: usize = 65536;
/// Limit for each message of an answer: a thread that waits for ever would keep one of the few places.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Requests one object; `None` where the kernel does not have it.
///
/// # Errors
/// When the kernel cannot be asked, or refuses.
pub(crate) fn exchange<M>(protocol: isize, question: M) -> io::Result<Option<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable + Debug,
{
    let socket = ask(protocol, question, NLM_F_REQUEST)?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES);
    socket.recv(&mut answer, 0)?;
    match read::<M>(&answer)?.payload {
        NetlinkPayload::InnerMessage(answer) => Ok(Some(answer)),
        NetlinkPayload::Error(error) if error.raw_code() == -libc::ENOENT => Ok(None),
        NetlinkPayload::Error(error) => Err(refusal(error.raw_code())),
        other => Err(io::Error::other(format!("unexpected answer: {other:?}"))),
    }
}

/// Requests all objects that match; `each` returns whether to go on.
///
/// # Errors
/// When the kernel cannot be asked, or refuses.
pub(crate) fn dump<M>(protocol: isize, question: M, mut each: impl FnMut(M) -> bool) -> io::Result<()>
where
    M: NetlinkSerializable + NetlinkDeserializable + Debug,
{
    let socket = ask(protocol, question, NLM_F_REQUEST | NLM_F_DUMP)?;
    let mut answers = Vec::with_capacity(ANSWER_BYTES);
    loop {
        answers.clear();
        socket.recv(&mut answers, 0)?;
        if !read_all(&answers, &mut each)? {
            return Ok(());
        }
    }
}

/// Calls `each` for each object in the bytes of one answer; it returns whether to go on. Whether another answer follows.
///
/// # Errors
/// When the bytes are no netlink messages, or the kernel refuses.
pub fn read_all<M>(mut rest: &[u8], each: &mut impl FnMut(M) -> bool) -> io::Result<bool>
where
    M: NetlinkDeserializable + Debug,
{
    while !rest.is_empty() {
        let message = read::<M>(rest)?;
        // Each begins at a multiple of four bytes (NLMSG_ALIGN).
        let length = (message.header.length as usize).next_multiple_of(4);
        let goes_on = match message.payload {
            NetlinkPayload::Done(_) => false,
            NetlinkPayload::Error(error) => return Err(refusal(error.raw_code())),
            NetlinkPayload::InnerMessage(answer) => each(answer),
            _ => true,
        };
        if !goes_on {
            return Ok(false);
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(true)
}

fn ask<M: NetlinkSerializable>(protocol: isize, question: M, flags: u16) -> io::Result<Socket> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_LIMIT))?;
    socket.send(&bytes, 0)?;
    Ok(socket)
}

/// The kernel sends an errno as a negative number.
fn refusal(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code.saturating_neg())
}

fn read<M: NetlinkDeserializable + Debug>(bytes: &[u8]) -> io::Result<NetlinkMessage<M>> {
    NetlinkMessage::deserialize(bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use netlink_packet_sock_diag::SockDiagMessage;

    use super::*;

    /// A message of type NLMSG_ERROR with this code.
    fn error(code: i32) -> Vec<u8> {
        let words = [36_u32, 2, 1, 0, code.cast_unsigned()];
        words.iter().flat_map(|word| word.to_ne_bytes()).chain([0; 16]).collect()
    }

    #[test]
    fn what_the_kernel_refuses_is_an_error_whatever_its_code() {
        let read = |code| read_all(&error(code), &mut |_: SockDiagMessage| true).unwrap_err().raw_os_error();
        assert_eq!(read(-libc::EPERM), Some(libc::EPERM));
        assert_eq!(read(i32::MIN), Some(i32::MAX));
    }
}
