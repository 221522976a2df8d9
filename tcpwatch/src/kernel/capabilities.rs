//! What the running kernel is, what it tells of its types, and what it lets this process do.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use schemars::JsonSchema;
use serde::Serialize;

/// Where a kernel with CONFIG_DEBUG_INFO_BTF publishes its types.
pub const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The oldest kernel that can serve: CAP_BPF, BPF iterators and ring buffers came with it.
const OLDEST: (u32, u32) = (5, 8);

/// A capability, and what does not work without it.
struct Use {
    capability: CapabilitySet,
    name: &'static str,
    without: &'static str,
    /// Also after the start.
    kept: bool,
}

/// README.md has the same table; the kernel tests `capabilities`, `privilege` and `unentered` take each away.
const USES: [Use; 6] = [
    Use {
        capability: CapabilitySet::BPF,
        name: "CAP_BPF",
        without: "nothing works (CAP_SYS_ADMIN serves too)",
        kept: true,
    },
    Use {
        capability: CapabilitySet::PERFMON,
        name: "CAP_PERFMON",
        without: "nothing works (CAP_SYS_ADMIN serves too)",
        kept: false,
    },
    Use {
        capability: CapabilitySet::NET_ADMIN,
        name: "CAP_NET_ADMIN",
        without: "which address a connection reached is not told where NAT changed it",
        kept: true,
    },
    Use {
        capability: CapabilitySet::SYS_PTRACE,
        name: "CAP_SYS_PTRACE",
        without: "executables are known only of processes of the same user that have no more capabilities, and network \
                  namespaces without a name are not looked into",
        kept: true,
    },
    Use {
        capability: CapabilitySet::DAC_READ_SEARCH,
        name: "CAP_DAC_READ_SEARCH",
        without: "where tcpwatch is not root: namespaces named by Docker are not found, and tracepoints without BTF \
                  not usable",
        kept: true,
    },
    Use {
        capability: CapabilitySet::SYS_ADMIN,
        name: "CAP_SYS_ADMIN",
        without: "other network namespaces are not looked into: no TIME_WAIT, orphan or un-accepted connection from \
                  before the start, no repair of what was lost but for held sockets, and an orphan stays in FIN_WAIT2 \
                  though its peer has closed, so /leaks may name it",
        kept: true,
    },
];

/// The kernel as far as it decides what tcpwatch can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Kernel {
    pub release: String,
    /// The file with the kernel's types; `null` without one.
    pub btf: Option<PathBuf>,
    /// `none`, `integrity` or `confidentiality`; `null` where the kernel does not tell.
    pub lockdown: Option<String>,
    pub capabilities: Vec<Capability>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Capability {
    pub name: &'static str,
    /// This process has it at its start.
    pub held: bool,
    /// What does not work without it.
    pub without: &'static str,
}

impl Kernel {
    /// `btf`: a file with the kernel's types that is to be used instead of its own.
    pub fn ask(btf: Option<&Path>) -> Self {
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

    /// Whether BPF came far enough by then.
    pub fn is_new_enough(&self) -> bool {
        let mut numbers = self.release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= OLDEST,
            // A kernel that hides its version may be any: loading will tell.
            _ => true,
        }
    }

    /// Why this process may not load BPF programs, if it may not.
    pub fn missing_privilege(&self) -> Option<String> {
        let holds = |name: &str| self.capabilities.iter().any(|one| one.name == name && one.held);
        if holds("CAP_SYS_ADMIN") {
            return None;
        }
        let missing: Vec<_> = ["CAP_BPF", "CAP_PERFMON"].into_iter().filter(|name| !holds(name)).collect();
        (!missing.is_empty()).then(|| format!("{} missing", missing.join(" and ")))
    }
}

/// `none [integrity] confidentiality`: the one in brackets is in force.
fn lockdown() -> Option<String> {
    let modes = std::fs::read_to_string("/sys/kernel/security/lockdown").ok()?;
    let (_, rest) = modes.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode.to_owned())
}

/// Gives up every capability that is not needed after the start; of this thread, and of those it starts later.
///
/// # Errors
/// When the kernel refuses.
pub fn drop_capabilities() -> io::Result<()> {
    let keep = USES
        .iter()
        .filter(|usage| usage.kept)
        .fold(CapabilitySet::empty(), |all, usage| all | usage.capability);
    let now = capabilities(None)?;
    let left = now.permitted & keep;
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
        for (release, serves) in [
            ("5.7.19", false),
            ("4.19.0-27-amd64", false),
            ("5.8.0", true),
            ("5.10.0-46-cloud-amd64", true),
            ("6.1.0", true),
            ("7.3.4+deb13-cloud-amd64", true),
            ("custom", true),
        ] {
            let kernel = Kernel { release: release.to_owned(), ..Kernel::default() };
            assert_eq!(kernel.is_new_enough(), serves, "{release}");
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
