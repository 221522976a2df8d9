//! Asks a running tcpwatch over HTTP.

use std::io;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
    rt::{Read, Write},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpStream, UnixStream},
    runtime::{Builder, Runtime},
};

use crate::http::listen::Listen;

/// An answer, whose body is read line by line while it comes.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    body: Incoming,
    /// Read and not yet returned.
    rest: Vec<u8>,
    // Drives the connection while a line is awaited.
    runtime: Runtime,
}

/// Asks for a path with its query.
///
/// # Errors
/// When nobody answers.
pub(super) fn get(connect: &Listen, path: &str) -> anyhow::Result<Answer> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let asked = async {
        match connect {
            Listen::Tcp(address) => {
                request(TcpStream::connect(address).await?, &address.to_string(), path).await
            }
            Listen::Unix(socket) => request(UnixStream::connect(socket).await?, "localhost", path).await,
        }
    };
    let response = runtime.block_on(asked).with_context(|| {
        format!(
            "no tcpwatch answers at {connect}: start one with `tcpwatch run`, or name another with --connect"
        )
    })?;
    Ok(Answer { status: response.status(), body: response.into_body(), rest: Vec::new(), runtime })
}

async fn request<S>(stream: S, host: &str, path: &str) -> anyhow::Result<hyper::Response<Incoming>>
where
    TokioIo<S>: Read + Write,
    S: Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its errors are those of the body.
    tokio::spawn(connection);
    let request = Request::get(path).header(header::HOST, host).body(Empty::<Bytes>::new())?;
    Ok(sender.send_request(request).await?)
}

impl Answer {
    /// The next line without its end; `None` after the last.
    pub(super) fn line(&mut self) -> Option<io::Result<String>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(Ok(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            match self.runtime.block_on(self.body.frame()) {
                Some(Ok(frame)) => self.rest.extend(frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Some(Err(io::Error::other(error))),
                None if self.rest.is_empty() => return None,
                None => {
                    return Some(Ok(String::from_utf8_lossy(&std::mem::take(&mut self.rest)).into_owned()));
                }
            }
        }
    }
}
