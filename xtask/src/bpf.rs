//! `cargo xtask bpf`: from the sources of tcpwatch-ebpf and tcpwatch-common to the committed object
//! `tcpwatch/bpf/tcpwatch.bpf.o`, and beside it a record of what it was made from. `--check` compares
//! the three without changing anything.
//!
//! The object is committed so that tcpwatch builds with stable Rust alone; the record and a build that
//! gives the same bytes in every checkout are what makes a committed binary trustworthy.

use std::{
    env,
    ffi::OsString,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSection};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    btf, command, rustc_wrapper,
    toolchain::{Toolchain, Versions},
};

const OBJECT: &str = "tcpwatch/bpf/tcpwatch.bpf.o";
const RECORD: &str = "tcpwatch/bpf/tcpwatch.bpf.toml";
const TARGET: &str = "bpfel-unknown-none";

/// Files and folders that decide the object's content; those that do not exist count as empty.
const SOURCES: [&str; 7] = [
    "tcpwatch-ebpf/.cargo",
    "tcpwatch-ebpf/Cargo.lock",
    "tcpwatch-ebpf/Cargo.toml",
    "tcpwatch-ebpf/build.rs",
    "tcpwatch-ebpf/src",
    "tcpwatch-common/Cargo.toml",
    "tcpwatch-common/src",
];

/// Rebuild the committed BPF object, tcpwatch/bpf/tcpwatch.bpf.o
///
/// Builds with Debian's rustc-web and bpf-linker, installing what is missing with apt-get and cargo and
/// saying so; or with rustup's nightly and its rust-src, where those and bpf-linker are there already.
/// Writes the object and a record of its sources and toolchain, tcpwatch/bpf/tcpwatch.bpf.toml.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change and install nothing; fail when the committed object does not match its sources
    ///
    /// Compares the recorded hashes and, when the recorded toolchain is installed, rebuilds and compares
    /// byte for byte. Says which of the two proofs it gave.
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Record {
    sources_sha256: String,
    object_sha256: String,
    toolchain: Versions,
}

pub(crate) fn bpf(args: &Args) -> Result<()> {
    let root = command::repository();
    if args.check { check(&root) } else { rebuild(&root) }
}

fn rebuild(root: &Path) -> Result<()> {
    let toolchain = Toolchain::installed_or_install()?;
    // Before the build: a source saved meanwhile must not count as built.
    let sources_sha256 = hash_files(read_sources(root)?);
    let object = build(root, &toolchain)?;
    let record = Record {
        sources_sha256,
        object_sha256: hex(Sha256::digest(&object)),
        toolchain: toolchain.versions()?,
    };
    let text = toml::to_string(&record).context("writing the record as TOML")?;
    let text = format!("# Written by `cargo xtask bpf`; `cargo xtask bpf --check` compares.\n{text}");
    write(&root.join(OBJECT), &object)?;
    write(&root.join(RECORD), text.as_bytes())?;
    println!("Wrote {OBJECT} ({} bytes) and {RECORD}", object.len());
    Ok(())
}

fn check(root: &Path) -> Result<()> {
    let record = fs::read_to_string(root.join(RECORD))
        .with_context(|| format!("reading {RECORD} (cargo xtask bpf writes it)"))?;
    let record: Record =
        toml::from_str(&record).with_context(|| format!("reading {RECORD} (cargo xtask bpf rewrites it)"))?;
    let object = fs::read(root.join(OBJECT))
        .with_context(|| format!("reading {OBJECT} (cargo xtask bpf writes it)"))?;

    ensure!(
        hash_files(read_sources(root)?) == record.sources_sha256,
        "{OBJECT} was not built from the present sources of tcpwatch-ebpf and tcpwatch-common (their hash is not \
         the one in {RECORD}): run cargo xtask bpf and commit the result"
    );
    ensure!(
        hex(Sha256::digest(&object)) == record.object_sha256,
        "{OBJECT} is not the object that {RECORD} describes: run cargo xtask bpf and commit both"
    );

    let by_hash = |why: &str| {
        println!("{OBJECT} matches its sources: by the recorded hashes only, not rebuilt, because {why}");
    };
    let installed = match Toolchain::installed() {
        Ok(installed) => installed,
        Err(missing) => {
            by_hash(&format!("there is {missing}"));
            return Ok(());
        }
    };
    let mut others = Vec::new();
    for toolchain in installed {
        let versions = toolchain.versions()?;
        if versions == record.toolchain {
            let rebuilt = build(root, &toolchain)?;
            ensure!(
                rebuilt == object,
                "{OBJECT} is not what its sources give with the recorded toolchain: {}. Run cargo xtask bpf and \
                 commit the result",
                difference(&rebuilt, &object)
            );
            println!(
                "{OBJECT} matches its sources: rebuilt with the recorded toolchain, the same byte for byte"
            );
            return Ok(());
        }
        others.push(versions.to_string());
    }
    by_hash(&format!(
        "the installed toolchain differs from the recorded one:\n  recorded:  {}\n  installed: {}",
        record.toolchain,
        others.join("\n  installed: ")
    ));
    Ok(())
}

/// The object, ready to be committed. Leaves nothing outside tcpwatch-ebpf/target.
fn build(root: &Path, toolchain: &Toolchain) -> Result<Vec<u8>> {
    let crate_dir = root.join("tcpwatch-ebpf");
    let target_dir = crate_dir.join("target/xtask");
    let flags = [
        "-Cdebuginfo=2",
        // BTF's line records quote the source, which the linker would read from disk: but the paths it
        // knows are no real ones (see rustc_wrapper). It is the verifier's log that shows them.
        "-Zembed-source=yes",
        "-Cdwarf-version=5",
        "-Clink-arg=--btf",
    ];
    // Not as -Clinker: flags take part in hashes, and its path is this machine's.
    let old_path = env::var_os("PATH").unwrap_or_default();
    let linker_dir = toolchain.bpf_linker.parent().map(Path::to_path_buf);
    let path = env::join_paths(linker_dir.into_iter().chain(env::split_paths(&old_path)))
        .context("putting bpf-linker's folder into PATH")?;

    let mut cargo = Command::new(&toolchain.cargo);
    for name in env::vars_os().map(|(name, _)| name).filter(interferes) {
        cargo.env_remove(name);
    }
    cargo
        .args(["build", "--release", "--locked", "-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .current_dir(&crate_dir)
        .env("PATH", path)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC_WRAPPER", env::current_exe().context("finding the path of xtask itself")?)
        .env(rustc_wrapper::ROOT, root)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // Otherwise aya-ebpf takes the building machine's.
        .env("AYA_BPF_TARGET_ARCH", "x86_64");
    command::run(&mut cargo).context("building tcpwatch-ebpf")?;

    let linked = target_dir.join(TARGET).join("release/tcpwatch-ebpf");
    let stripped = target_dir.join("tcpwatch.bpf.o");
    // DWARF goes, with its relocations; .BTF, .BTF.ext, theirs and all symbols stay.
    command::run(Command::new(&toolchain.objcopy).arg("--strip-debug").arg(&linked).arg(&stripped))?;
    let mut object = fs::read(&stripped).with_context(|| format!("reading {}", stripped.display()))?;
    finish(&mut object).with_context(|| format!("the built object {}", stripped.display()))?;
    Ok(object)
}

/// Variables that `cargo xtask` sets or passes on and that would change the build: its toolchain, its
/// flags, its target folder, and the library path of its rustc. Those that say how to reach a registry
/// (CARGO_HOME, CARGO_NET_…, CARGO_HTTP_…) stay.
fn interferes(name: &OsString) -> bool {
    const NAMES: [&str; 7] = [
        "CARGO",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_INCREMENTAL",
        "LD_LIBRARY_PATH",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "AYA_BPF_TARGET_ARCH",
    ];
    const PREFIXES: [&str; 7] = [
        "CARGO_BUILD_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
        "CARGO_UNSTABLE_",
        "RUSTC",
    ];
    let name = name.to_string_lossy();
    NAMES.contains(&name.as_ref()) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Puts the BTF in order, and fails on an object that lacks what its readers rely on, whatever linker or objcopy made
/// it.
fn finish(object: &mut [u8]) -> Result<()> {
    let file = object::File::parse(&*object).context("is no ELF file")?;
    if let Some(left) = file.sections().filter_map(|s| s.name().ok()).find(|name| name.contains(".debug_")) {
        bail!("still has the section {left}: objcopy --strip-debug did not remove it");
    }
    let range = |name| {
        let (offset, size) = file
            .section_by_name(name)
            .and_then(|section| section.file_range())
            .with_context(|| format!("has no section {name}: is this bpf-linker too old for --btf?"))?;
        Ok::<_, anyhow::Error>(usize::try_from(offset)?..usize::try_from(offset + size)?)
    };
    let ranges = [range(".BTF")?, range(".BTF.ext")?];
    let [btf, ext] = object.get_disjoint_mut(ranges).context("has overlapping sections")?;
    btf::put_in_order(btf, ext)
}

fn read_sources(root: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    let mut waiting: Vec<PathBuf> = SOURCES.map(PathBuf::from).into();
    while let Some(name) = waiting.pop() {
        let path = root.join(&name);
        if path.is_dir() {
            for entry in fs::read_dir(&path).with_context(|| format!("listing {}", path.display()))? {
                let entry = entry.with_context(|| format!("listing {}", path.display()))?;
                waiting.push(name.join(entry.file_name()));
            }
        } else if path.exists() {
            let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            files.push((name, content));
        }
    }
    Ok(files)
}

/// One hash over names and contents, in the order of the names. Lengths go in too, so that no two sets
/// of files give the same bytes.
fn hash_files(mut files: Vec<(PathBuf, Vec<u8>)>) -> String {
    files.sort();
    let mut hash = Sha256::new();
    for (name, content) in files {
        for part in [name.as_os_str().as_encoded_bytes(), &content] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    hex(hash.finalize())
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn difference(rebuilt: &[u8], committed: &[u8]) -> String {
    if rebuilt.len() != committed.len() {
        return format!("a rebuild gives {} bytes, not {}", rebuilt.len(), committed.len());
    }
    let at = rebuilt.iter().zip(committed).position(|(a, b)| a != b).unwrap_or_default();
    format!("a rebuild first differs at byte {at}")
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(files: &[(&str, &str)]) -> String {
        hash_files(files.iter().map(|(name, content)| (name.into(), content.as_bytes().to_vec())).collect())
    }

    #[test]
    fn source_hash_ignores_the_order_of_files() {
        assert_eq!(hash(&[("a", "1"), ("b", "2")]), hash(&[("b", "2"), ("a", "1")]));
    }

    #[test]
    fn source_hash_changes_with_names_contents_and_their_borders() {
        let original = hash(&[("a", "1"), ("b", "2")]);
        for changed in [
            &[("a", "1"), ("c", "2")][..],
            &[("a", "1"), ("b", "3")],
            &[("a", "2"), ("b", "1")],
            &[("a", "1")],
            &[("a", "1b"), ("", "2")],
            &[("a1", ""), ("b", "2")],
        ] {
            assert_ne!(hash(changed), original, "{changed:?}");
        }
    }

    #[test]
    fn only_build_settings_are_kept_from_the_inner_cargo() {
        for name in ["CARGO", "RUSTC", "RUSTC_WRAPPER", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO_TARGET_DIR"] {
            assert!(interferes(&name.into()), "{name}");
        }
        for name in ["CARGO_HOME", "CARGO_NET_OFFLINE", "RUSTUP_HOME", "PATH", "HOME"] {
            assert!(!interferes(&name.into()), "{name}");
        }
    }
}
