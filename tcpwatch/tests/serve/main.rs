//! HTTP over real sockets: clients that hang, clients in great number, clients that should not ask.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use axum::Router;
use tcpwatch::{
    cli::replay::Replayed,
    http::{
        Access, Api,
        listen::{Listen, Listener},
        probes_router, router, serve,
    },
    node::Question,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

mod web_config;

#[path = "../fixtures/mod.rs"]
#[allow(dead_code, reason = "of the fixture, what other tests use")]
mod fixture;

/// As long as nothing is wrong no test waits so long.
const LIMIT: Duration = Duration::from_secs(20);

/// A server over the recorded run.
struct Server {
    runtime: Runtime,
    url: String,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<io::Result<()>>,
}

impl Server {
    fn start(listen: &str, router: fn(Api) -> Router, hosts: &[&str]) -> Self {
        let allowed_hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        Self::with(listen, router, Access { allowed_hosts, web_config: None })
    }

    fn with(listen: &str, router: fn(Api) -> Router, access: Access) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (sender, mut questions) = mpsc::channel::<Question>(8);
        runtime.spawn(async move {
            let Replayed { node, clock, .. } = fixture::played();
            while let Some(question) = questions.recv().await {
                (question.ask)(&node, clock);
            }
        });
        let listener = Listener::bind(&listen.parse::<Listen>().unwrap()).unwrap();
        let url = listener.url(false).unwrap();
        let (stop, stopped) = oneshot::channel();
        let router = router(Api::new(sender));
        let served = runtime.spawn(serve(listener, router, access, async { drop(stopped.await) }));
        Self { runtime, url, stop: Some(stop), served }
    }

    fn on_loopback() -> Self {
        Self::start("127.0.0.1:0", router, &[])
    }

    fn connect(&self) -> TcpStream {
        let address: SocketAddr = self.url.strip_prefix("http://").unwrap().parse().unwrap();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// The answer to a GET with these headers.
    fn get(&self, path: &str, headers: &str) -> String {
        ask(self.connect(), path, headers)
    }

    fn stop(mut self) {
        drop(self.stop.take());
        let stopped = async { tokio::time::timeout(LIMIT, &mut self.served).await };
        self.runtime.block_on(stopped).expect("the server stops").unwrap().unwrap();
    }
}

fn ask(mut stream: impl Read + Write, path: &str, headers: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn is_ok(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200 ")
}

#[test]
fn clients_that_send_half_a_header_keep_nobody_from_an_answer_and_are_closed() {
    let server = Server::on_loopback();
    let mut hanging: Vec<_> = (0..400).map(|_| server.connect()).collect();
    for client in &mut hanging {
        // The server may have closed it for a later one.
        let _ = client.write_all(b"GET /healthz HTTP/1.1\r\nHost: loc");
    }
    for path in ["/healthz", "/metrics", "/leaks"] {
        assert!(is_ok(&server.get(path, "Host: localhost\r\n")), "{path}");
    }
    // None is left for ever: the end of the stream or a reset, but no time-out of the read.
    for mut client in hanging {
        let mut rest = Vec::new();
        if let Err(error) = client.read_to_end(&mut rest) {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        assert_eq!(rest, b"");
    }
    server.stop();
}

#[test]
fn followers_are_bounded_and_leave_room_for_answers() {
    let server = Server::on_loopback();
    let follow = || {
        let mut stream = server.connect();
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        (stream, String::from_utf8_lossy(&status).into_owned())
    };
    let followers: Vec<_> = (0..16).map(|_| follow()).collect();
    assert!(followers.iter().all(|(_, status)| status == "HTTP/1.1 200"));
    assert_eq!(follow().1, "HTTP/1.1 503");
    assert!(is_ok(&server.get("/leaks", "Host: localhost\r\n")));
    drop(followers);
    let again = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        follow().1 == "HTTP/1.1 200"
    });
    assert!(again, "a follower that hung up makes room for another");
    server.stop();
}

#[test]
fn names_of_others_other_sites_and_bodies_are_refused() {
    let server = Server::start("127.0.0.1:0", router, &["node-7.example"]);
    for host in ["localhost", "127.0.0.1:18279", "node-7.example"] {
        let answer = server.get("/leaks", &format!("Host: {host}\r\n"));
        assert!(is_ok(&answer), "{host}: {answer}");
        for header in ["x-content-type-options: nosniff", "content-security-policy: default-src 'none'"] {
            assert!(answer.contains(header), "{header}: {answer}");
        }
        assert!(!answer.contains("access-control-allow-origin"), "{answer}");
    }
    for (headers, status) in [
        ("Host: evil.example\r\n", 403),
        ("Host: localhost\r\nSec-Fetch-Site: cross-site\r\n", 403),
        ("Host: localhost\r\nContent-Length: 5\r\n\r\nhello", 413),
    ] {
        let answer = server.get("/leaks?format=json", headers);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{headers}: {answer}");
        assert!(answer.contains("\"error\": ") && answer.contains("nosniff"), "{answer}");
    }
    server.stop();
}

#[test]
fn a_listener_of_probes_serves_nothing_that_names_a_connection() {
    let server = Server::start("127.0.0.1:0", probes_router, &[]);
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert!(is_ok(&server.get(path, "Host: localhost\r\n")), "{path}");
    }
    for path in ["/", "/leaks", "/connections", "/status"] {
        assert!(server.get(path, "Host: localhost\r\n").starts_with("HTTP/1.1 404 "), "{path}");
    }
    server.stop();
}

#[test]
fn a_unix_socket_answers_and_is_gone_when_the_server_stops() {
    let path: PathBuf = std::env::temp_dir().join(format!("tcpwatch-serve-{}", std::process::id()));
    let server = Server::start(&format!("unix:{}", path.display()), router, &[]);
    assert!(is_ok(&ask(UnixStream::connect(&path).unwrap(), "/leaks", "Host: localhost\r\n")));
    server.stop();
    assert!(!path.exists());
}

#[test]
fn requests_under_way_are_answered_before_the_server_stops() {
    let server = Server::on_loopback();
    let mut idle = server.connect();
    let mut served = server.connect();
    write!(served, "GET /leaks HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut first = [0; 12];
    served.read_exact(&mut first).unwrap();
    server.stop();
    let mut rest = String::new();
    served.read_to_string(&mut rest).unwrap();
    assert_eq!((&first, rest.contains("content-length")), (b"HTTP/1.1 200", true));
    assert_eq!(idle.read(&mut [0; 1]).unwrap_or(0), 0);
}
