//! Kernel modules for the guest: the wanted ones and their dependencies, uncompressed, in the order in which they can
//! be loaded. So the guest needs no modprobe and no module index.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use object::{Object as _, ObjectSection as _};

#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// `folder` is the kernel's, under `lib/modules`. What is built into the kernel is left out.
pub(crate) fn modules(folder: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let builtin = folder.join("modules.builtin");
    let builtin = fs::read_to_string(&builtin).with_context(|| format!("reading {}", builtin.display()))?;
    let mut files = BTreeMap::new();
    for line in builtin.lines() {
        files.insert(name_of(Path::new(line)), None);
    }
    find(&folder.join("kernel"), &mut files)?;
    let mut ordered = Vec::new();
    for name in wanted {
        require(name, &mut files, &mut ordered)
            .with_context(|| format!("collecting kernel modules in {}", folder.display()))?;
    }
    Ok(ordered)
}

/// `net/netfilter/nf-x.ko.xz` is `nf_x`.
fn name_of(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

/// Files by module name; `None` for what needs no loading.
type Files = BTreeMap<String, Option<PathBuf>>;

fn find(folder: &Path, files: &mut Files) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path.to_string_lossy().contains(".ko") {
            files.insert(name_of(&path), Some(path));
        }
    }
    Ok(())
}

fn require(name: &str, files: &mut Files, ordered: &mut Vec<Module>) -> Result<()> {
    // Taken out of the map, so that each is read once.
    let file = files.insert(name.to_owned(), None).with_context(|| format!("no module {name}"))?;
    let Some(file) = file else { return Ok(()) };
    let bytes = read(&file)?;
    for needed in depends(&bytes).with_context(|| format!("reading {}", file.display()))? {
        require(&needed, files, ordered)?;
    }
    ordered.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension == "ko") {
        return fs::read(file).with_context(|| format!("reading {}", file.display()));
    }
    ensure!(
        file.extension().is_some_and(|extension| extension == "xz"),
        "{} is compressed in a way not known here",
        file.display()
    );
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(file).output();
    let output = output.context("starting xz")?;
    ensure!(
        output.status.success(),
        "xz cannot decompress {}: {}",
        file.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

/// The names that the module's own information says it depends on.
fn depends(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("is no ELF file")?;
    let section = file.section_by_name(".modinfo").context("has no section .modinfo")?;
    Ok(depends_in(section.data().context("has an unreadable section .modinfo")?))
}

fn depends_in(modinfo: &[u8]) -> Vec<String> {
    let mut lines = modinfo.split(|byte| *byte == 0);
    let value = lines.find_map(|line| line.strip_prefix(b"depends=")).unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_modules_needs_are_read_from_its_modinfo() {
        let modinfo = b"license=GPL\0depends=nf_nat,nf-conntrack\0\0name=x\0";
        assert_eq!(depends_in(modinfo), ["nf_nat", "nf_conntrack"]);
        assert_eq!(depends_in(b"depends=\0license=GPL\0"), [] as [&str; 0]);
    }

    #[test]
    fn a_modules_name_is_its_files_without_endings() {
        assert_eq!(name_of(Path::new("kernel/net/sched/sch-x.ko.xz")), "sch_x");
    }
}
