//! Where HTTP is served: at a TCP address or a Unix socket.

use std::{
    fmt,
    fs::{self, Permissions},
    io,
    net::{IpAddr, SocketAddr},
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::Deserialize;

/// Who may connect to a Unix socket: its user and its group.
const UNIX_MODE: u32 = 0o660;

/// Where to listen: `ADDR:PORT` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("`unix:` lacks a path".to_owned()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                format!("`{text}` is neither an address with a port, such as 127.0.0.1:18279, nor unix:PATH")
            }),
        }
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket that listens. That of a Unix socket removes its path when dropped.
#[derive(Debug)]
pub enum Listener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener, PathBuf),
}

impl Listener {
    /// # Errors
    /// When the address is not to be had; with a Unix socket also when somebody answers at the path, or the path is that of
    /// something else.
    pub fn bind(listen: &Listen) -> io::Result<Self> {
        match listen {
            Listen::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(listener))
            }
            Listen::Unix(path) => {
                remove_abandoned(path)?;
                let listener = std::os::unix::net::UnixListener::bind(path)?;
                let listener = Self::Unix(listener, path.clone());
                fs::set_permissions(path, Permissions::from_mode(UNIX_MODE))?;
                if let Self::Unix(socket, _) = &listener {
                    socket.set_nonblocking(true)?;
                }
                Ok(listener)
            }
        }
    }

    /// What `curl` is given to ask here. `tls`: whether TCP is under TLS.
    ///
    /// # Errors
    /// When the kernel does not say the address.
    pub fn url(&self, tls: bool) -> io::Result<String> {
        let scheme = if tls { "https" } else { "http" };
        Ok(match self {
            Self::Tcp(listener) => format!("{scheme}://{}", listener.local_addr()?),
            Self::Unix(_, path) => format!("--unix-socket {} http://localhost", path.display()),
        })
    }

    /// Whether only this machine can reach it: then a browser on this machine is the only way in from elsewhere.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Tcp(listener) => listener.local_addr().is_ok_and(|address| is_loopback(address.ip())),
            Self::Unix(..) => true,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Another process may have replaced it, or the directory may be gone: nothing is to be done then.
            let _ = fs::remove_file(path);
        }
    }
}

pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Removes the socket of a process that is gone.
fn remove_abandoned(path: &Path) -> io::Result<()> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "a file that is not a socket has this path",
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody answers there")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn addresses_and_paths_are_read_and_shown_alike() {
        for text in ["127.0.0.1:18279", "[::1]:0", "unix:/run/tcpwatch.sock", "unix:relative"] {
            assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
        }
        for text in ["", "18279", "unix:", "localhost:1", "/run/tcpwatch.sock"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_unix_socket_replaces_an_abandoned_one_only_and_is_removed_at_the_end() {
        let path = std::env::temp_dir().join(format!("tcpwatch-listen-{}", std::process::id()));
        let listen = Listen::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&listen).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, UNIX_MODE);
        assert_eq!(Listener::bind(&listen).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert_eq!(Listener::bind(&listen).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
    }
}
