//! The toolchains that can build the BPF object: found, described, and on Debian installed.
//!
//! `-Z build-std=core` needs an unstable switch and Rust's library sources, which two sources offer:
//! Debian's packages for building web browsers (recent and stable, hence RUSTC_BOOTSTRAP) and rustup's
//! nightly. Deliberately not aya-build, which insists on the latter.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    command::{self, find_program, is_executable},
    debian,
};

/// llvm-22-dev, libpolly, libzstd and zlib are what bpf-linker links against.
const DEBIAN_PACKAGES: [&str; 7] =
    ["rustc-web", "rust-web-src", "cargo-web", "llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev"];
/// The LLVM that both Debian's rustc-web and bpf-linker use: the linker cannot read newer bitcode.
const DEBIAN_LLVM: &str = "/usr/lib/llvm-22";
const BPF_LINKER_VERSION: &str = "0.13.0";
const LIBRARY_SOURCES: &str = "lib/rustlib/src/rust/library/core/src/lib.rs";

const WITHOUT_APT: &str = "without apt-get, get what is missing so:\n  \
    rustup toolchain install nightly --component rust-src\n  \
    cargo install bpf-linker";

#[derive(Debug)]
pub(crate) struct Toolchain {
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    pub(crate) bpf_linker: PathBuf,
    pub(crate) objcopy: PathBuf,
}

/// The tools that determine the object's bytes: with the same sources, the same versions make the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Versions {
    /// The line that `rustc --version` prints.
    pub(crate) rustc: String,
    /// The line that `bpf-linker --version` prints.
    #[serde(rename = "bpf-linker")]
    pub(crate) bpf_linker: String,
    /// The version line of llvm-objcopy, and with it of the LLVM that bpf-linker loads on Debian.
    pub(crate) llvm: String,
}

impl Toolchain {
    /// The toolchains that are complete on this machine, best first.
    ///
    /// # Errors
    /// None is complete: the message lists what each one lacks.
    pub(crate) fn installed() -> Result<Vec<Self>> {
        let mut lacks = Vec::new();
        let mut found = Vec::new();
        for (name, toolchain) in [("Debian's packages", Self::debian()), ("rustup's nightly", Self::rustup())]
        {
            match toolchain {
                Ok(toolchain) => found.push(toolchain),
                Err(missing) => {
                    lacks.push(format!("with {name}, this machine lacks: {}", missing.join(", ")));
                }
            }
        }
        if found.is_empty() {
            bail!("no toolchain to build the BPF object:\n  {}", lacks.join("\n  "));
        }
        Ok(found)
    }

    /// The best toolchain, after installing Debian's when there is none.
    pub(crate) fn installed_or_install() -> Result<Self> {
        let found = match Self::installed() {
            Ok(found) => found,
            Err(missing) if debian::has_apt() => {
                eprintln!("{missing}");
                install().with_context(|| format!("installing the toolchain ({WITHOUT_APT})"))?;
                Self::installed()?
            }
            Err(missing) => bail!("{missing}\n{WITHOUT_APT}"),
        };
        found.into_iter().next().context("no toolchain to build the BPF object")
    }

    /// Debian's own rustc package is too old and uses another LLVM, so files in /usr/bin alone prove
    /// nothing: dpkg says which package put them there.
    fn debian() -> Result<Self, Vec<String>> {
        let mut missing: Vec<String> = ["rustc-web", "rust-web-src", "cargo-web", "llvm-22"]
            .into_iter()
            .filter(|package| !is_installed(package))
            .map(|package| format!("the package {package}"))
            .collect();
        Self::complete(Path::new("/usr"), &Path::new(DEBIAN_LLVM).join("bin/llvm-objcopy"), &mut missing)
            .ok_or(missing)
    }

    fn rustup() -> Result<Self, Vec<String>> {
        // The toolchain's own files, not rustup's proxies, which depend on variables that `cargo xtask` inherits.
        let sysroot =
            command::output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))
                .map_err(|_| vec!["rustup with a nightly toolchain".to_owned()])?;
        let sysroot = Path::new(&sysroot);
        let objcopy = fs::read_dir(sysroot.join("lib/rustlib"))
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .map(|entry| entry.path().join("bin/rust-objcopy"))
            .find(|file| is_executable(file))
            .unwrap_or_else(|| sysroot.join("lib/rustlib/*/bin/rust-objcopy"));
        let mut missing = Vec::new();
        Self::complete(sysroot, &objcopy, &mut missing).ok_or(missing)
    }

    fn complete(sysroot: &Path, objcopy: &Path, missing: &mut Vec<String>) -> Option<Self> {
        let [cargo, rustc] = ["cargo", "rustc"].map(|program| sysroot.join("bin").join(program));
        for program in [&cargo, &rustc, objcopy] {
            if !is_executable(program) {
                missing.push(program.display().to_string());
            }
        }
        if !sysroot.join(LIBRARY_SOURCES).is_file() {
            missing.push(format!("Rust's library sources in {}", sysroot.display()));
        }
        let bpf_linker = find_program("bpf-linker");
        if bpf_linker.is_none() {
            missing.push("bpf-linker".to_owned());
        }
        if !missing.is_empty() {
            return None;
        }
        Some(Self { cargo, rustc, bpf_linker: bpf_linker?, objcopy: objcopy.to_path_buf() })
    }

    pub(crate) fn versions(&self) -> Result<Versions> {
        let version = |program: &Path| command::output(Command::new(program).arg("--version"));
        let objcopy = version(&self.objcopy)?;
        let llvm = objcopy.lines().find(|line| line.contains("LLVM version"));
        Ok(Versions {
            rustc: version(&self.rustc)?,
            bpf_linker: version(&self.bpf_linker)?,
            llvm: llvm
                .with_context(|| format!("{} --version names no LLVM version", self.objcopy.display()))?
                .trim()
                .to_owned(),
        })
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {}", self.rustc, self.bpf_linker, self.llvm)
    }
}

fn is_installed(package: &str) -> bool {
    command::output(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

fn install() -> Result<()> {
    debian::install(&DEBIAN_PACKAGES, "building the BPF object")?;
    if find_program("bpf-linker").is_none() {
        eprintln!("Installing for building the BPF object, with cargo: bpf-linker {BPF_LINKER_VERSION}");
        command::run(
            command::cargo()
                .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked"])
                .args(["--no-default-features", "--features", "llvm-22"])
                .env("LLVM_PREFIX", DEBIAN_LLVM),
        )?;
    }
    Ok(())
}
