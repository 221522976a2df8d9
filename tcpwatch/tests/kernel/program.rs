//! The program as a whole: how it ends, and its errors when it cannot run.

use std::{
    io::Write as _,
    net::{TcpListener, TcpStream},
};

use rustix::process::Signal;

use crate::{
    daemon::{Daemon, TCPWATCH, tcpwatch},
    rights::{Copy, User, run},
};

#[test]
fn a_stop_signal_ends_the_daemon_even_with_a_client_connected() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start(&[]);
        let mut idle = TcpStream::connect(daemon.address).unwrap();
        idle.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap();
        let status = daemon.end(signal);
        assert_eq!(status.code(), Some(0), "{signal:?}: {}", daemon.log());
        assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    }
}

#[test]
fn bad_options_are_refused_from_every_source() {
    for args in [
        &["--no-such-option"][..],
        &["--linger", "close-wait=soon"],
        &["--linger", "established=1s"],
        &["--ring-size", "3000"],
        &["--config", "/no/such/file.toml"],
        &["--config", "/proc/self/status"],
        &["no-such-command"],
    ] {
        let (code, _, said) = run(tcpwatch(TCPWATCH).args(args));
        assert_eq!(code, Some(64), "{args:?}: {said}");
        assert!(said.contains(args[args.len() - 1]) || said.contains(args[0]), "{args:?}: {said}");
    }
    let (code, _, said) = run(tcpwatch(TCPWATCH).env("TCPWATCH_LINGER", "close-wait"));
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("--linger"), "{said}");
}

#[test]
fn a_taken_port_is_named_with_the_option_that_changes_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, said) = run(tcpwatch(TCPWATCH).args(["--listen", &address]));
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains(&address) && said.contains("--listen"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn without_privilege_the_error_says_what_gives_it() {
    let copy = Copy::new();
    for user in [User::Root, User::Nobody] {
        let (code, _, said) = run(copy.with(user, &[]).args(["--listen", "127.0.0.1:0"]));
        assert_eq!(code, Some(77), "{user:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{user:?}: {said}");
        for way in ["sudo", "CAP_BPF", "CAP_PERFMON"] {
            assert!(said.contains(way), "{user:?}: no {way} in: {said}");
        }
    }
}
