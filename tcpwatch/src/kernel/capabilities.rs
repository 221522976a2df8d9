//! The running kernel: its release, where it publishes its types, and which capabilities this process has on it.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use schemars::JsonSchema;
use serde::Serialize;

/// Where a kernel with CONFIG_DEBUG_INFO_BTF publishes its types.
pub const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The oldest kernel that is tried: CAP_BPF, BPF iterators and ring buffers came with it.
const OLDEST: (u32, u32) = (5, 8);

/// A capability that tcpwatch uses.
struct Use {
    capability: CapabilitySet,
    name: &'static str,
    /// What does not work without it.
    without: &'static str,
    /// The threads that keep it after the start.
    kept_by: &'static [Thread],
}

/// The threads of the daemon, by what they need after the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The main thread, which owns the state: reads BPF maps, and counts descriptors of processes.
    Owner,
    /// Makes iterators in each network namespace.
    Sweeper,
    /// Asks the kernel about connections in their network namespace, by request.
    Netns,
    /// Reads what clients send.
    Http,
    /// Reads /proc of other processes.
    Describer,
    /// Writes the recording, to a file that is open.
    Recorder,
}

/// docs/requirements.md#privileges has the same table; the kernel tests `capabilities`, `privilege` and `unentered`
/// take each capability away.
const USES: [Use; 6] = [
    Use {
        capability: CapabilitySet::BPF,
        name: "CAP_BPF",
        without: "nothing works (CAP_SYS_ADMIN also suffices)",
        kept_by: &[Thread::Owner, Thread::Sweeper],
    },
    Use {
        capability: CapabilitySet::PERFMON,
        name: "CAP_PERFMON",
        without: "nothing works (CAP_SYS_ADMIN also suffices)",
        kept_by: &[],
    },
    Use {
        capability: CapabilitySet::NET_ADMIN,
        name: "CAP_NET_ADMIN",
        without: "the addresses that NAT gave a connection are unknown",
        kept_by: &[Thread::Netns],
    },
    Use {
        capability: CapabilitySet::SYS_PTRACE,
        name: "CAP_SYS_PTRACE",
        without: "executables, and whether they are deleted, are known only for processes of the same user that have \
                  no more capabilities, and before Linux 6.18 network namespaces without a name are not swept",
        kept_by: &[Thread::Owner, Thread::Sweeper, Thread::Netns, Thread::Describer],
    },
    Use {
        capability: CapabilitySet::DAC_READ_SEARCH,
        name: "CAP_DAC_READ_SEARCH",
        without: "when not root: before Linux 6.18 namespaces named by Docker are not found, and tracepoints cannot be \
                  used without BTF",
        kept_by: &[Thread::Sweeper, Thread::Netns],
    },
    Use {
        capability: CapabilitySet::SYS_ADMIN,
        name: "CAP_SYS_ADMIN",
        without: "other network namespaces are not swept: TIME_WAIT, orphaned and un-accepted connections from before \
                  the start are unknown, losses are repaired for held sockets only, and without the signal \
                  `time_wait` an orphan stays in FIN_WAIT2 when its peer elsewhere has closed, so /leaks may name it",
        kept_by: &[Thread::Sweeper, Thread::Netns],
    },
];

/// What decides how much tcpwatch can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Kernel {
    /// Its release, as `uname -r` shows it.
    pub release: String,
    /// The file with the kernel's types; `null` without one.
    pub btf: Option<PathBuf>,
    /// `none`, `integrity` or `confidentiality`; `null` where the kernel does not report it.
    pub lockdown: Option<String>,
    /// The capabilities that tcpwatch uses.
    pub capabilities: Vec<Capability>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Capability {
    /// Its name, such as `CAP_BPF`.
    pub name: &'static str,
    /// Whether this process has it at its start.
    pub held: bool,
    /// What does not work without it.
    pub without: &'static str,
}

impl Kernel {
    /// Reads it. `btf`: a file with the kernel's types, to be used instead of the published one.
    pub fn read(btf: Option<&Path>) -> Self {
        let published = Path::new(VMLINUX_BTF);
        let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        let capabilities = USES
            .iter()
            .map(|usage| Capability {
                name: usage.name,
                held: held.contains(usage.capability),
                without: usage.without,
            })
            .collect();
        Self {
            release: rustix::system::uname().release().to_string_lossy().into_owned(),
            btf: btf.or_else(|| published.exists().then_some(published)).map(Path::to_owned),
            lockdown: lockdown(),
            capabilities,
        }
    }

    /// Whether its BPF can do enough to try.
    pub fn is_new_enough(&self) -> bool {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST,
            // A kernel that hides its version may be new enough: loading decides.
            _ => true,
        }
    }

    /// The capabilities that this process lacks to load BPF programs, `None` where it may.
    pub fn missing_privilege(&self) -> Option<String> {
        let holds = |name: &str| self.capabilities.iter().any(|one| one.name == name && one.held);
        if holds("CAP_SYS_ADMIN") {
            return None;
        }
        let missing: Vec<_> = ["CAP_BPF", "CAP_PERFMON"].into_iter().filter(|name| !holds(name)).collect();
        (!missing.is_empty()).then(|| format!("{} missing", missing.join(" and ")))
    }
}

/// The mode in force: the one in brackets of `none [integrity] confidentiality`.
fn lockdown() -> Option<String> {
    let modes = std::fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let (_, rest) = modes.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode.to_owned())
}

/// Drops every capability that is not needed after the start, for this thread and for those that it starts later; no
/// program that it executes has more.
///
/// # Errors
/// When the kernel refuses.
pub fn drop_capabilities() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    keep(|usage| !usage.kept_by.is_empty())
}

/// Drops every capability that such a thread does not need, for this thread and for those that it starts later.
///
/// # Errors
/// When the kernel refuses.
pub fn become_thread(thread: Thread) -> io::Result<()> {
    // Of each thread too: one may have begun before `drop_capabilities`.
    rustix::thread::set_no_new_privs(true)?;
    // Where CAP_SYS_ADMIN stands in for CAP_BPF, whoever uses BPF needs it.
    let stands_in = !capabilities(None)?.permitted.contains(CapabilitySet::BPF);
    let uses_bpf = |usage: &Use| stands_in && usage.capability == CapabilitySet::SYS_ADMIN;
    keep(|usage| usage.kept_by.contains(&thread) || thread == Thread::Owner && uses_bpf(usage))
}

fn keep(wanted: impl Fn(&Use) -> bool) -> io::Result<()> {
    let keep = USES
        .iter()
        .filter(|usage| wanted(usage))
        .fold(CapabilitySet::empty(), |all, usage| all | usage.capability);
    let left = capabilities(None)?.permitted & keep;
    set_capabilities(
        None,
        CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() },
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_5_8_are_too_old() {
        for (release, new_enough) in [
            ("5.7.19", false),
            ("4.19.0-27-amd64", false),
            ("5.8.0", true),
            ("5.10.0-46-cloud-amd64", true),
            ("6.1.0", true),
            ("7.3.4+deb13-cloud-amd64", true),
            ("custom", true),
        ] {
            let kernel = Kernel { release: release.to_owned(), ..Kernel::default() };
            assert_eq!(kernel.is_new_enough(), new_enough, "{release}");
        }
    }

    #[test]
    fn what_is_missing_to_load_programs_is_named() {
        let with = |held: &[&str]| Kernel {
            capabilities: USES
                .iter()
                .map(|usage| Capability {
                    name: usage.name,
                    held: held.contains(&usage.name),
                    without: usage.without,
                })
                .collect(),
            ..Kernel::default()
        };
        assert_eq!(with(&["CAP_SYS_ADMIN"]).missing_privilege(), None);
        assert_eq!(with(&["CAP_BPF", "CAP_PERFMON"]).missing_privilege(), None);
        assert_eq!(with(&["CAP_BPF"]).missing_privilege().unwrap(), "CAP_PERFMON missing");
        assert_eq!(with(&[]).missing_privilege().unwrap(), "CAP_BPF and CAP_PERFMON missing");
    }
}
