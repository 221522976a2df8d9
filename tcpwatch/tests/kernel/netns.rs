//! A network namespace for one test.

use std::{
    cell::RefCell,
    os::unix::fs::MetadataExt as _,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use tcpwatch::kernel::netns::{self, Hints};

/// Fails where the program is missing: a test that is not run must not count as passed.
pub(crate) fn needs(program: &str, package: &str) {
    let found = Command::new(program).arg("--version").output();
    assert!(found.is_ok(), "this test needs `{program}`: install the Debian package {package}");
}

/// Version of the running kernel.
pub(crate) fn kernel() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Whether the kernel opens a namespace by its cookie, so that nothing has to be found that leads to it.
pub(crate) fn opens_by_cookie() -> bool {
    kernel() >= (6, 18)
}

thread_local! {
    /// The inodes of the namespaces that this thread made.
    pub(crate) static MADE: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// A network namespace; removed when dropped, also by a failing test.
pub(crate) struct Namespace {
    name: String,
    /// Its inode, as `/connections` names it.
    pub(crate) inode: u64,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("twtest-{}-{number}", std::process::id());
        ip(&["netns", "add", &name]);
        // Constructed before a step can fail, so that a failure removes the namespace.
        let mut namespace = Self { name, inode: 0 };
        ip(&["-n", &namespace.name, "link", "set", "lo", "up"]);
        namespace.inode = std::fs::metadata(namespace.path()).unwrap().ino();
        MADE.with_borrow_mut(|made| made.push(namespace.inode));
        namespace
    }

    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Joins it with another by a pair of devices `veth0`, here with the address `10.98.0.1`, there with `10.98.0.2`.
    pub(crate) fn join(&self, other: &Self) {
        ip(&[
            "-n",
            &self.name,
            "link",
            "add",
            "veth0",
            "type",
            "veth",
            "peer",
            "veth0",
            "netns",
            &other.name,
        ]);
        for (namespace, addr) in [(self, "10.98.0.1/24"), (other, "10.98.0.2/24")] {
            ip(&["-n", &namespace.name, "addr", "add", addr, "dev", "veth0"]);
            ip(&["-n", &namespace.name, "link", "set", "veth0", "up"]);
        }
    }

    /// Runs a command in it, which must succeed.
    pub(crate) fn run(&self, command: &[&str]) {
        let mut nsenter = Command::new("nsenter");
        let status = nsenter.arg(format!("--net={}", self.path())).args(command).status();
        let status = status.expect("these tests need nsenter (util-linux)");
        assert!(status.success(), "{}: {status}", command.join(" "));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let removed = Command::new("ip").args(["netns", "del", &self.name]).status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("could not remove the network namespace {}", self.name);
        }
    }
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().expect("these tests need `ip` (iproute2)");
    assert!(status.success(), "ip {}: {status}; these tests need root", args.join(" "));
}

#[test]
fn a_namespace_is_entered_although_its_known_process_ended() {
    let namespace = Namespace::new();
    let inode = u32::try_from(namespace.inode).unwrap();
    let mut ended = Command::new("true").spawn().unwrap();
    let hints = Hints { pid: Some(ended.id()), entrance: None };
    ended.wait().unwrap();
    let enter = move || (netns::enter_by_inode(inode, &hints), netns::own());
    assert_eq!(thread::spawn(enter).join().unwrap(), (Ok(true), Some(inode)));
}
