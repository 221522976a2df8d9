//! One connection, from connect to close. In: addresses. Out: whether it succeeded.
//!
//! Sockets are blocking, with time limits: on loopback nearly everything has happened when the call returns, so a
//! poller would only add calls.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    libc::linger,
    sys::{
        socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, setsockopt, sockopt},
        time::TimeVal,
    },
};

use super::Close;

/// Time limit of each call. A lost SYN is sent again after 1, 3 and 7 s.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);
const LIMIT_TIMEVAL: TimeVal = TimeVal::new(10, 0);

/// All addresses of clients.
pub(crate) const SOURCES: &str = "127.1.0.0/16";
/// The addresses of listeners of workers that drive both ends.
pub(crate) const LISTENERS: &str = "127.2.0.0/16";

/// The listener's address of a worker; there are at most 253 workers.
pub(crate) fn listener(worker: usize) -> Option<Ipv4Addr> {
    let host = u8::try_from(worker + 1).ok().filter(|host| *host < 255)?;
    Some(Ipv4Addr::new(127, 2, 0, host))
}

/// Clients come from 127.1.0.1 and on, 64,516 addresses; each has some 28,000 ports toward one listener.
pub(crate) fn source(index: u64) -> Ipv4Addr {
    let (high, low) = (index / 254 % 254, index % 254);
    Ipv4Addr::new(127, 1, high as u8 + 1, low as u8 + 1)
}

/// A listener; its connections inherit the time limits.
pub(crate) fn listen(address: SocketAddrV4, limit: Duration) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
    let limit =
        TimeVal::new(i64::try_from(limit.as_secs()).unwrap_or(i64::MAX), limit.subsec_micros().into());
    setsockopt(&listener, sockopt::ReceiveTimeout, &limit).context("limiting how long to receive")?;
    setsockopt(&listener, sockopt::SendTimeout, &limit).context("limiting how long to send")?;
    Ok(listener)
}

pub(crate) fn address(listener: &TcpListener) -> Result<SocketAddrV4> {
    match listener.local_addr().context("asking where it listens")? {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(address) => bail!("listens on {address}, which is not IPv4"),
    }
}

pub(crate) fn connect(to: SocketAddrV4, source: Option<Ipv4Addr>) -> Result<TcpStream> {
    let socket = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .context("making a socket")?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &LIMIT_TIMEVAL).context("limiting how long to receive")?;
    setsockopt(&socket, sockopt::SendTimeout, &LIMIT_TIMEVAL).context("limiting how long to send")?;
    if let Some(source) = source {
        // Otherwise bind() chooses the port before the peer is known, and each port serves only one connection.
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).context("leaving the port to connect")?;
        let from = SockaddrIn::from(SocketAddrV4::new(source, 0));
        socket::bind(socket.as_raw_fd(), &from).with_context(|| format!("binding to {source}"))?;
    }
    socket::connect(socket.as_raw_fd(), &SockaddrIn::from(to))
        .with_context(|| format!("connecting to {to}"))?;
    Ok(socket.into())
}

/// Both ends of one connection.
pub(crate) fn pair(listener: &TcpListener, to: SocketAddrV4, source: Ipv4Addr) -> Result<[TcpStream; 2]> {
    let client = connect(to, Some(source))?;
    let (server, _) = listener.accept().context("accepting")?;
    Ok([client, server])
}

/// Empties the accept queue after a failure: a connection left in it would be taken for the next one.
pub(crate) fn forget_unaccepted(listener: &TcpListener) -> Result<()> {
    listener.set_nonblocking(true).context("making a listener wait for nobody")?;
    while listener.accept().is_ok() {}
    listener.set_nonblocking(false).context("making a listener wait")
}

/// Exchanges data; `bytes` is the buffer for sending and for receiving.
pub(crate) fn exchange([client, server]: &mut [TcpStream; 2], bytes: &mut [u8]) -> Result<()> {
    client.write_all(bytes).context("the client's write")?;
    server.read_exact(bytes).context("the server's read")?;
    server.write_all(bytes).context("the server's write")?;
    client.read_exact(bytes).context("the client's read")
}

/// The second closes without reading the first one's FIN, which is there already.
pub(crate) fn close([client, server]: [TcpStream; 2], how: Close) -> Result<()> {
    match how {
        Close::Client => drop((client, server)),
        Close::Server => drop((server, client)),
        Close::Reset => {
            reset_at_close(&client)?;
            drop((client, server));
        }
    }
    Ok(())
}

pub(crate) fn client(to: SocketAddrV4, source: Option<Ipv4Addr>, bytes: &mut [u8], how: Close) -> Result<()> {
    let mut client = connect(to, source)?;
    client.write_all(bytes).context("the client's write")?;
    client.read_exact(bytes).context("the client's read")?;
    match how {
        Close::Client => Ok(()),
        Close::Server => until_closed(&mut client).context("waiting for the server's close"),
        Close::Reset => reset_at_close(&client),
    }
}

/// `None` when nobody came within the listener's limit.
pub(crate) fn server(listener: &TcpListener, bytes: &mut [u8], how: Close) -> Result<Option<()>> {
    let mut server = match listener.accept() {
        Ok((server, _)) => server,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error).context("accepting"),
    };
    server.set_read_timeout(Some(LIMIT)).context("limiting how long to receive")?;
    server.set_write_timeout(Some(LIMIT)).context("limiting how long to send")?;
    server.read_exact(bytes).context("the server's read")?;
    server.write_all(bytes).context("the server's write")?;
    match how {
        Close::Client => until_closed(&mut server).context("waiting for the client's close")?,
        Close::Server => {}
        Close::Reset => match until_closed(&mut server) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => return Err(error).context("waiting for the client's reset"),
            Ok(()) => bail!("closed where a reset was to come"),
        },
    }
    Ok(Some(()))
}

fn until_closed(stream: &mut TcpStream) -> io::Result<()> {
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("more bytes than agreed")),
    }
}

fn reset_at_close(stream: &TcpStream) -> Result<()> {
    setsockopt(stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).context("making close a reset")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn sources_are_distinct_host_addresses() {
        let sources: HashSet<_> = (0..254 * 254).map(source).collect();
        assert_eq!(sources.len(), 254 * 254);
        let edge = |address: &Ipv4Addr| matches!(address.octets()[3], 0 | 255);
        assert!(!sources.iter().any(edge));
    }

    #[test]
    fn each_close_is_a_whole_unit() {
        let listener = listen(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), LIMIT).unwrap();
        let to = address(&listener).unwrap();
        for how in [Close::Client, Close::Server, Close::Reset] {
            let mut ends = pair(&listener, to, source(0)).unwrap();
            exchange(&mut ends, &mut [7; 64]).unwrap();
            close(ends, how).unwrap();
            std::thread::scope(|scope| {
                let server = scope.spawn(|| server(&listener, &mut [0; 64], how));
                client(to, None, &mut [7; 64], how).unwrap();
                assert_eq!(server.join().unwrap().unwrap(), Some(()));
            });
        }
    }
}
