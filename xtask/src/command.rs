//! Running other programs: finding them, becoming root, asking cargo what it built and where.
//!
//! Each command is printed before it runs, so that nothing (least of all a `sudo`) happens unseen. It is printed on
//! stderr, as stdout belongs to the program that runs.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

/// The checkout. Asked of cargo at run time first, for a binary built in one checkout and a shared
/// CARGO_TARGET_DIR may run in another.
pub(crate) fn repository() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&xtask).parent().unwrap_or(Path::new("/")).to_path_buf()
}

/// Looks in PATH, then where cargo installs, then where Debian keeps root's tools (`ip` among them),
/// which an ordinary user's PATH lacks.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    env::split_paths(&path)
        .chain(cargo_home.map(|home| home.join("bin")))
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

pub(crate) fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

pub(crate) fn is_root() -> Result<bool> {
    // Its owner is the effective user: geteuid() without unsafe code.
    Ok(fs::metadata("/proc/self").context("asking /proc/self for the effective user")?.uid() == 0)
}

/// A command that runs `program` as root: directly as root, through `sudo -E` otherwise.
///
/// # Errors
/// Not root and no sudo.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    if is_root()? {
        return Ok(Command::new(program));
    }
    let Some(sudo) = find_program("sudo") else {
        bail!(
            "{} needs root, this user is not root and there is no sudo: run as root, or install sudo",
            program.as_ref().display()
        );
    };
    let mut command = Command::new(sudo);
    command.arg("-E").arg(program);
    Ok(command)
}

/// The cargo that runs xtask, so that one toolchain builds everything for this machine.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repository());
    command
}

pub(crate) fn run(command: &mut Command) -> Result<()> {
    announce(command);
    let status = command.status().with_context(|| format!("starting {}", line(command)))?;
    ensure!(status.success(), "{} failed: {status}", line(command));
    Ok(())
}

/// Runs quietly and returns what the command printed on stdout, trimmed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {}", line(command)))?;
    ensure!(
        output.status.success(),
        "{} failed: {}: {}",
        line(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Builds with `command` (a `cargo build` or `cargo test --no-run`) and returns the executables that
/// cargo reports for `targets`, wherever CARGO_TARGET_DIR or a configuration puts them.
pub(crate) fn build_executables<const N: usize>(
    command: &mut Command,
    targets: [&str; N],
) -> Result<[PathBuf; N]> {
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped()).stderr(Stdio::inherit());
    announce(command);
    let output = command.output().with_context(|| format!("starting {}", line(command)))?;
    ensure!(output.status.success(), "{} failed: {}", line(command), output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut executables = std::array::from_fn(|_| PathBuf::new());
    for (executable, target) in executables.iter_mut().zip(targets) {
        *executable = executable_in(&messages, target)
            .with_context(|| format!("{} reported no executable named {target}", line(command)))?;
    }
    Ok(executables)
}

fn executable_in(messages: &str, target: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|message| serde_json::from_str::<serde_json::Value>(message).ok())
        .filter(|message| message["target"]["name"] == target)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// Cargo's target folder, in which the commands also keep what they fetch.
pub(crate) fn target_directory() -> Result<PathBuf> {
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("reading cargo metadata")?;
    metadata["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .context("cargo metadata names no target_directory")
}

/// This program.
pub(crate) fn xtask() -> Result<PathBuf> {
    env::current_exe().context("finding this program")
}

fn announce(command: &Command) {
    eprintln!("$ {}", line(command));
}

fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_is_the_one_of_the_asked_target() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"tcpwatch"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"kernel"},"executable":"/t/kernel-1"}
{"reason":"compiler-artifact","target":{"name":"tcpwatch"},"executable":"/t/tcpwatch"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable_in(messages, "tcpwatch"), Some("/t/tcpwatch".into()));
        assert_eq!(executable_in(messages, "kernel"), Some("/t/kernel-1".into()));
        assert_eq!(executable_in(messages, "absent"), None);
    }
}
