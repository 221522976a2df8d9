//! Debian's kernels: the newest of a series, fetched by apt with a state of its own and only unpacked, into
//! `target/vm/kernels/SERIES`. A kernel that is there already is used without fetching.
//!
//! apt checks the signatures. The mirrors are those that this machine's apt uses; the suites are each
//! series' own, for this machine's sources know at most one of them.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::support::{Archive, Series};
use crate::{command, debian};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// As `uname -r` says it.
    pub(crate) release: String,
    /// The version of its Debian package.
    pub(crate) version: String,
    pub(crate) image: PathBuf,
    /// The folder named after the release, under `lib/modules`.
    pub(crate) modules: PathBuf,
}

/// The kernels of `series`, in that order. Fetches those that `folder` lacks, or all with `anew`.
pub(crate) fn kernels(folder: &Path, series: &[&Series], anew: bool) -> Result<Vec<Kernel>> {
    let missing: Vec<&Series> =
        series.iter().copied().filter(|series| anew || find(folder, series).is_err()).collect();
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|series| series.name).collect();
        eprintln!("Fetching Debian's kernels {}: only unpacked, into {}", names.join(" "), folder.display());
        let apt = Apt::new(&folder.join("apt"), &missing)?;
        for series in missing {
            fetch(&apt, folder, series)
                .with_context(|| format!("fetching Debian's kernel {}", series.name))?;
        }
    }
    series.iter().map(|series| find(folder, series)).collect()
}

fn version_file(folder: &Path, series: &Series) -> PathBuf {
    folder.join(series.name).join("version")
}

fn find(folder: &Path, series: &Series) -> Result<Kernel> {
    let version_file = version_file(folder, series);
    let version =
        fs::read_to_string(&version_file).with_context(|| format!("reading {}", version_file.display()))?;
    let root = folder.join(series.name);
    // Packages moved from / to /usr over the years.
    let modules = ["usr/lib/modules", "lib/modules"]
        .iter()
        .filter_map(|modules| fs::read_dir(root.join(modules)).ok())
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.join("modules.builtin").is_file())
        .with_context(|| format!("no kernel modules under {}", root.display()))?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let image = [root.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")]
        .into_iter()
        .find(|image| image.is_file())
        .with_context(|| format!("no vmlinuz of {release} under {}", root.display()))?;
    Ok(Kernel { release, version: version.trim().to_owned(), image, modules })
}

fn fetch(apt: &Apt, folder: &Path, series: &Series) -> Result<()> {
    let package = newest(&apt.packages(&format!("linux-image-{}.", series.name))?)
        .context("the mirror has none of that series any more")?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    let version = apt.version(&package)?;
    // From 7.x on the image package only names these.
    let parts = ["linux-binary-", "linux-modules-", "linux-base-"].map(|prefix| format!("{prefix}{release}"));
    let mut packages = Vec::new();
    for part in parts {
        if apt.packages(&part)?.contains(&part) {
            packages.push(part);
        }
    }
    if packages.is_empty() {
        packages.push(package);
    }
    let into = folder.join(series.name);
    if into.exists() {
        fs::remove_dir_all(&into).with_context(|| format!("removing {}", into.display()))?;
    }
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    debian::unpack(&apt.options, &packages, &into)?;
    // Written last: a folder without it counts as incomplete.
    let version_file = version_file(folder, series);
    fs::write(&version_file, version + "\n").with_context(|| format!("writing {}", version_file.display()))
}

/// apt-get and apt-cache with sources and a state of their own.
struct Apt {
    options: Vec<OsString>,
}

impl Apt {
    fn new(folder: &Path, series: &[&Series]) -> Result<Self> {
        ensure!(debian::has_apt(), "only apt-get can fetch Debian's kernels, and this machine has none");
        for inner in ["state/lists/partial", "cache/archives/partial"] {
            let inner = folder.join(inner);
            fs::create_dir_all(&inner).with_context(|| format!("creating {}", inner.display()))?;
        }
        for (file, text) in [("status", String::new()), ("kernels.sources", sources(series)?)] {
            let file = folder.join(file);
            fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        }
        let set = |name: &str, path: &str| {
            let mut setting = OsString::from(format!("--option={name}="));
            setting.push(folder.join(path));
            setting
        };
        let mut options = vec![
            set("Dir::State", "state"),
            set("Dir::State::status", "status"),
            set("Dir::Cache", "cache"),
            set("Dir::Etc::sourcelist", "kernels.sources"),
        ];
        let settings = [
            "Dir::Etc::sourceparts=/dev/null",
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            // A suite that is no longer supported is not signed anew.
            "Acquire::Check-Valid-Until=false",
        ];
        options.extend(settings.map(|setting| format!("--option={setting}").into()));
        if command::is_root()? {
            // The user _apt may be unable to write there.
            options.push("--option=APT::Sandbox::User=root".into());
        }
        let apt = Self { options };
        command::run(Command::new("apt-get").args(&apt.options).args(["update", "--quiet"]))?;
        Ok(apt)
    }

    /// Names that begin so.
    fn packages(&self, prefix: &str) -> Result<Vec<String>> {
        let names =
            command::output(Command::new("apt-cache").args(&self.options).args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    fn version(&self, package: &str) -> Result<String> {
        let shown = command::output(Command::new("apt-cache").args(&self.options).args([
            "show",
            "--no-all-versions",
            package,
        ]))?;
        let version = shown.lines().find_map(|line| line.strip_prefix("Version: "));
        version.map(str::to_owned).with_context(|| format!("apt-cache show {package} names no version"))
    }
}

fn sources(series: &[&Series]) -> Result<String> {
    let known = command::output(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]))?;
    let mut text = String::new();
    for (archive, path) in [(Archive::Main, "/debian/"), (Archive::Security, "/debian-security/")] {
        let suites: BTreeSet<&str> = series
            .iter()
            .flat_map(|series| series.suites)
            .filter(|(of, _)| *of == archive)
            .map(|(_, suite)| *suite)
            .collect();
        if suites.is_empty() {
            continue;
        }
        let suites = suites.into_iter().collect::<Vec<_>>().join(" ");
        // Where apt has no lists yet, or is another distribution's.
        let everybodys = format!("http://deb.debian.org{path}");
        let mirror = known.lines().find(|uri| uri.ends_with(path)).unwrap_or(&everybodys);
        text += &format!(
            "Types: deb\nURIs: {mirror}\nSuites: {suites}\nComponents: main\nArchitectures: amd64\nSigned-By: \
             {KEYRING}\n\n"
        );
    }
    Ok(text)
}

/// Of the names of image packages, the cloud kernel with the highest version.
fn newest(packages: &[String]) -> Option<String> {
    packages.iter().filter(|name| name.ends_with("-cloud-amd64")).max_by_key(|name| numbers(name)).cloned()
}

/// The numbers in a name, in order: enough to compare two names that differ only in them.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_compares_numbers_and_takes_only_cloud_kernels() {
        let names = [
            "linux-image-6.12.9+deb13-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64",
            "linux-image-6.12.118+deb13-amd64",
            "linux-image-6.12.119+deb13-cloud-amd64-unsigned",
            "linux-image-6.12.12+deb13-cloud-amd64",
        ];
        let names = names.map(str::to_owned);
        assert_eq!(newest(&names).as_deref(), Some("linux-image-6.12.117+deb13-cloud-amd64"));
        assert_eq!(newest(&[]), None);
    }
}
