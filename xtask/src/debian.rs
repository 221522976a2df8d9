//! Debian's packages: installed where a command needs a program, or only unpacked. Each package is named before it is
//! installed.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::command::{self, find_program};

pub(crate) fn has_apt() -> bool {
    find_program("apt-get").is_some() && find_program("dpkg").is_some()
}

/// Installs packages, saying so. `why` completes "installing … for".
pub(crate) fn install(packages: &[&str], why: &str) -> Result<()> {
    eprintln!("Installing for {why}: {}", packages.join(" "));
    update()?;
    // `env` because sudo's policy may drop variables in spite of -E.
    command::run(
        command::as_root("env")?
            .args([
                "DEBIAN_FRONTEND=noninteractive",
                "apt-get",
                "install",
                "--yes",
                "--no-install-recommends",
            ])
            .args(packages),
    )
}

/// Installs the packages of the programs that this machine lacks. Each pair is a program, by name or by absolute path,
/// and its package.
pub(crate) fn install_missing(programs: &[(&str, &str)], why: &str) -> Result<()> {
    let missing: Vec<_> = programs.iter().filter(|(program, _)| find_program(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (programs, mut packages): (Vec<_>, Vec<_>) = missing.into_iter().copied().unzip();
    packages.sort_unstable();
    packages.dedup();
    ensure!(
        has_apt(),
        "{why} need {}, which this machine lacks and only apt-get could install: install them (on Debian they are \
         in {})",
        programs.join(" and "),
        packages.join(" and ")
    );
    install(&packages, why)
}

/// The program from PATH, or else from Debian's package, which is only unpacked: installing it would start a server on
/// this machine. `path` is the program's path in the package; `otherwise` ends the error when it cannot be had.
pub(crate) fn unpacked(package: &str, path: &str, why: &str, otherwise: &str) -> Result<PathBuf> {
    let name = path.rsplit('/').next().unwrap_or(path);
    if let Some(found) = find_program(name) {
        return Ok(found);
    }
    let tools = command::target_directory()?.join("tools");
    let unpacked = tools.join(path);
    if command::is_executable(&unpacked) {
        return Ok(unpacked);
    }
    ensure!(
        has_apt(),
        "{name}, for {why}, is not on this machine and only apt-get could fetch it: install {package}{otherwise}"
    );
    eprintln!("Fetching {name} for {why}: only unpacked, into {}", tools.display());
    update()?;
    unpack(&[], &[package], &tools)?;
    ensure!(command::is_executable(&unpacked), "the Debian package {package} has no {path}{otherwise}");
    Ok(unpacked)
}

/// A fresh machine or container has no package lists at all.
pub(crate) fn update() -> Result<()> {
    command::run(command::as_root("apt-get")?.args(["update", "--quiet"]))
}

/// Downloads packages and lays out their files under `into`, installing nothing. `options` are apt-get's.
pub(crate) fn unpack(options: &[OsString], packages: &[&str], into: &Path) -> Result<()> {
    // apt-get downloads into the current folder, under names with the versions in them.
    let download = into.join("download");
    if download.exists() {
        fs::remove_dir_all(&download).with_context(|| format!("removing {}", download.display()))?;
    }
    fs::create_dir_all(&download).with_context(|| format!("creating {}", download.display()))?;
    command::run(
        Command::new("apt-get").args(options).arg("download").args(packages).current_dir(&download),
    )?;
    let entries = fs::read_dir(&download)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .with_context(|| format!("listing {}", download.display()))?;
    let debs: Vec<_> = entries
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    ensure!(
        debs.len() == packages.len(),
        "apt-get download {} left {} packages in {}",
        packages.join(" "),
        debs.len(),
        download.display()
    );
    for deb in debs {
        command::run(Command::new("dpkg").arg("-x").arg(&deb).arg(into))?;
    }
    fs::remove_dir_all(&download).with_context(|| format!("removing {}", download.display()))
}
