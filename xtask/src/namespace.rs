//! Network namespaces of the benchmark and of the drills.

use std::{ffi::OsStr, fs, os::unix::fs::MetadataExt as _, process::Command};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::command;

/// A network namespace with loopback. Dropped, it is removed together with what still runs in it.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    /// `purpose` is a part of its name, so it is unique within this process.
    pub(crate) fn new(purpose: &str) -> Result<Self> {
        let name = format!("tcpwatch-{purpose}-{}", std::process::id());
        command::output(Command::new("ip").args(["netns", "add", &name]))?;
        let made = Self { name };
        made.ip(&["link", "set", "lo", "up"])?;
        Ok(made)
    }

    /// Its inode, by which tcpwatch names it.
    pub(crate) fn inode(&self) -> Result<u64> {
        Ok(fs::metadata(format!("/run/netns/{}", self.name)).context("a namespace that is gone")?.ino())
    }

    /// A command that runs inside, and has no other process around it.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }

    /// Runs `ip` on it.
    pub(crate) fn ip(&self, args: &[&str]) -> Result<String> {
        command::output(Command::new("ip").args(["-n", &self.name]).args(args))
    }

    /// Connects it with another: a veth pair, both ends of it named `link`, with one address at each end.
    pub(crate) fn join(&self, other: &Self, link: &str, here: &str, there: &str) -> Result<()> {
        self.ip(&["link", "add", link, "type", "veth", "peer", link, "netns", &other.name])?;
        for (namespace, address) in [(self, here), (other, there)] {
            namespace.ip(&["addr", "add", &format!("{address}/24"), "dev", link])?;
            namespace.ip(&["link", "set", link, "up"])?;
        }
        Ok(())
    }

    fn end_processes(&self) -> Result<()> {
        let pids = command::output(Command::new("ip").args(["netns", "pids", &self.name]))?;
        for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
            // It may have ended.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = self.end_processes() {
            eprintln!("what runs in the network namespace {} was not ended: {error:#}", self.name);
        }
        if let Err(error) = command::output(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("the network namespace {} stays: {error:#}", self.name);
        }
    }
}
