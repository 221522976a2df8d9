//! The program as another user, with fewer capabilities, or where it does not see the whole machine.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::daemon::{TCPWATCH, tcpwatch};

/// The user id of a daemon that is not root.
pub(crate) const NOBODY: u32 = 65534;
/// The user id of processes that are neither root's nor the daemon's.
pub(crate) const SOMEBODY_ELSE: u32 = 65533;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    Root,
    Nobody,
}

/// Named by its path, as a shell may have a smaller one built in (busybox).
const SETPRIV: &str = "/usr/bin/setpriv";

/// The command prefix that runs a command as this user without any capability.
pub(crate) fn as_user(uid: u32) -> [String; 6] {
    let [user, group] = ["reuid", "regid"].map(|what| format!("--{what}={uid}"));
    [SETPRIV, &user, &group, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"].map(str::to_owned)
}

/// All capabilities that tcpwatch can use.
pub(crate) const ALL: [&str; 6] =
    ["bpf", "perfmon", "net_admin", "sys_ptrace", "dac_read_search", "sys_admin"];

/// A copy of the program, or of another file, that every user may read, whatever the permissions of the folders above
/// `target/`.
pub(crate) struct Copy(PathBuf);

impl Copy {
    pub(crate) fn new() -> Self {
        Self::of(TCPWATCH)
    }

    pub(crate) fn of(file: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let copy = Self(std::env::temp_dir().join(format!("tcpwatch-test-{}-{number}", std::process::id())));
        // Copied by another process: a file that this process, or a child that another test forks at that moment, has
        // open for writing cannot be executed (ETXTBSY).
        let status =
            Command::new("sh").args(["-c", "cat \"$0\" >\"$1\"", file]).arg(&copy.0).status().unwrap();
        assert!(status.success(), "copying {file}: {status}");
        std::fs::set_permissions(&copy.0, Permissions::from_mode(0o755)).unwrap();
        copy
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// A command that becomes the program, with these capabilities (`bpf`, `perfmon`) and no others.
    pub(crate) fn with(&self, user: User, capabilities: &[&str]) -> Command {
        self.behind("", user, capabilities)
    }

    /// The same, in a mount namespace of its own that a shell script changes first.
    pub(crate) fn behind(&self, script: &str, user: User, capabilities: &[&str]) -> Command {
        let mut list = "-all".to_owned();
        for capability in capabilities {
            list += &format!(",+{capability}");
        }
        let mut command = match script {
            "" => tcpwatch(SETPRIV),
            script => {
                let mut command = tcpwatch("unshare");
                // Private: the script's mounts are visible only there, and end with the last process there.
                command.args(["--mount", "--propagation=private", "sh", "-ec"]);
                command.arg(format!("{script}\nexec \"$@\"")).args(["sh", SETPRIV]);
                command
            }
        };
        command.args([format!("--inh-caps={list}"), format!("--bounding-set={list}")]);
        if user == User::Nobody {
            command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]);
            // Root gets the capabilities of its bounding set, other users only the ambient ones.
            command.args(["--clear-groups".to_owned(), format!("--ambient-caps={list}")]);
        }
        command.arg(&self.0);
        command
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Runs a command; returns its exit code, stdout and stderr.
pub(crate) fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("setpriv and unshare (util-linux)");
    let [printed, said] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{said}");
    (status.code(), printed, said)
}
