//! Runs the program as another user, with fewer capabilities, or in a mount namespace that hides parts of the machine.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::daemon::{TCPWATCH, tcpwatch};

/// User of the daemon, where it is not root.
pub(crate) const NOBODY: u32 = 65534;
/// User of processes that are neither root's nor the daemon's.
pub(crate) const SOMEBODY_ELSE: u32 = 65533;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    Root,
    Nobody,
}

/// By its path: busybox's shell has a built-in one with fewer options.
const SETPRIV: &str = "/usr/bin/setpriv";

/// The words before a command that run it as this user without any capability.
pub(crate) fn as_user(uid: u32) -> [String; 6] {
    let [user, group] = ["reuid", "regid"].map(|what| format!("--{what}={uid}"));
    [SETPRIV, &user, &group, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"].map(str::to_owned)
}

/// All capabilities that tcpwatch can use.
pub(crate) const ALL: [&str; 6] =
    ["bpf", "perfmon", "net_admin", "sys_ptrace", "dac_read_search", "sys_admin"];

/// A copy of the program, or of another file, that everybody may read, whatever the permissions of the path to
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
        // By another process: a file that this one has open for writing, and that a child of another test inherits at
        // that moment, cannot be executed (ETXTBSY).
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

    /// The same, in a mount namespace of its own that a shell script has changed first.
    pub(crate) fn behind(&self, script: &str, user: User, capabilities: &[&str]) -> Command {
        let mut list = "-all".to_owned();
        for capability in capabilities {
            list += &format!(",+{capability}");
        }
        let mut command = match script {
            "" => tcpwatch(SETPRIV),
            script => {
                let mut command = tcpwatch("unshare");
                // Private: what the script mounts is visible there only, and gone with the last process there.
                command.args(["--mount", "--propagation=private", "sh", "-ec"]);
                command.arg(format!("{script}\nexec \"$@\"")).args(["sh", SETPRIV]);
                command
            }
        };
        command.args([format!("--inh-caps={list}"), format!("--bounding-set={list}")]);
        if user == User::Nobody {
            command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]);
            // Root gets its bounding set; other users only the ambient set.
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

/// Exit code, stdout and stderr.
pub(crate) fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("setpriv and unshare (util-linux)");
    let [printed, errors] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(!errors.contains("panicked") && !errors.contains("RUST_BACKTRACE"), "{errors}");
    (status.code(), printed, errors)
}
