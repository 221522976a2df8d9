//! The guest's root file system, as an initramfs: this machine's own programs with the shared libraries they
//! need, the kernel's modules, and what to run.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufWriter, Write},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use cpio::newc;

use crate::command;

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const PLAIN: u32 = 0o100_644;
const SYMLINK: u32 = 0o120_777;

/// An initramfs in the making (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
pub(crate) struct Root<W: Write> {
    out: W,
    /// Paths written so far: a file written twice would be unpacked twice.
    present: BTreeSet<PathBuf>,
    inodes: u32,
}

impl Root<BufWriter<fs::File>> {
    pub(crate) fn create(file: &Path) -> Result<Self> {
        let out = fs::File::create(file).with_context(|| format!("creating {}", file.display()))?;
        Self::new(BufWriter::new(out))
    }
}

impl<W: Write> Root<W> {
    fn new(out: W) -> Result<Self> {
        let mut root = Self { out, present: BTreeSet::from(["/".into()]), inodes: 0 };
        // Debian's layout.
        for name in ["bin", "sbin", "lib", "lib64"] {
            root.link(&Path::new("/").join(name), &Path::new("usr").join(name))?;
            root.directory(&Path::new("/usr").join(name))?;
        }
        Ok(root)
    }

    fn entry(&mut self, path: &Path, mode: u32, mtime: u32, content: &[u8]) -> Result<()> {
        if !self.present.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        self.inodes += 1;
        let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy();
        let size = content.len().try_into().with_context(|| format!("{} is too big", path.display()))?;
        let entry = newc::Builder::new(&name).ino(self.inodes).mode(mode).mtime(mtime);
        let mut writer = entry.write(&mut self.out, size);
        writer.write_all(content).and_then(|()| writer.finish().map(drop)).context("writing the initramfs")
    }

    pub(crate) fn directory(&mut self, path: &Path) -> Result<()> {
        self.entry(path, DIRECTORY, 0, &[])
    }

    pub(crate) fn link(&mut self, path: &Path, target: &Path) -> Result<()> {
        self.entry(path, SYMLINK, 0, target.as_os_str().as_encoded_bytes())
    }

    pub(crate) fn text(&mut self, path: &str, text: &str) -> Result<()> {
        self.entry(Path::new(path), PLAIN, 0, text.as_bytes())
    }

    pub(crate) fn script(&mut self, path: &str, text: &str) -> Result<()> {
        self.entry(Path::new(path), EXECUTABLE, 0, text.as_bytes())
    }

    pub(crate) fn bytes(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        self.entry(Path::new(path), PLAIN, 0, bytes)
    }

    /// A file of this machine, at `path` in the guest. Modification times stay: Python's compiled modules
    /// count only beside sources of the right age.
    fn copy(&mut self, from: &Path, path: &Path) -> Result<()> {
        let failed = || format!("reading {}", from.display());
        let meta = fs::metadata(from).with_context(failed)?;
        let content = fs::read(from).with_context(failed)?;
        let mode = if meta.mode() & 0o111 == 0 { PLAIN } else { EXECUTABLE };
        self.entry(path, mode, u32::try_from(meta.mtime()).unwrap_or(0), &content)
    }

    /// A program of this machine where it is here, with the shared libraries it needs.
    pub(crate) fn program(&mut self, name: &str) -> Result<()> {
        let found = command::find_program(name).with_context(|| format!("no program {name}"))?;
        let real = fs::canonicalize(&found).with_context(|| format!("resolving {}", found.display()))?;
        self.executable(&real, &real)?;
        // Also under the name by which it is called, python3 for python3.11.
        let file_name = Path::new(name).file_name().unwrap_or_default();
        if real.file_name() != Some(file_name) {
            self.link(&real.with_file_name(file_name), &real)?;
        }
        Ok(())
    }

    /// An executable file, at `path` in the guest, with the shared libraries it needs.
    pub(crate) fn executable(&mut self, file: &Path, path: &Path) -> Result<()> {
        self.copy(file, path)?;
        self.libraries(file)
    }

    fn libraries(&mut self, file: &Path) -> Result<()> {
        // Cargo adds the toolchain's own libraries, which the guest lacks.
        let mut ldd = Command::new("ldd");
        let listed = ldd.arg(file).env_remove("LD_LIBRARY_PATH").env("LC_ALL", "C").output();
        let listed = listed.context("starting ldd")?;
        // ldd fails on a statically linked program, and says so.
        for library in String::from_utf8_lossy(&listed.stdout).lines().filter_map(library) {
            let real = fs::canonicalize(library).with_context(|| format!("resolving {library}"))?;
            // By the name that the program asks for, in the real folder instead of a link to it.
            let folder = Path::new(library).parent().map(fs::canonicalize);
            let folder = folder.with_context(|| format!("{library} is in no folder"))?;
            let folder = folder.with_context(|| format!("resolving the folder of {library}"))?;
            self.copy(&real, &folder.join(Path::new(library).file_name().unwrap_or_default()))?;
        }
        Ok(())
    }

    /// A folder of this machine where it is here, without the folders and files of these names, with the
    /// libraries that shared objects in it need.
    pub(crate) fn tree(&mut self, folder: &Path, without: &[&str]) -> Result<()> {
        let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if without.contains(&&*name) {
                continue;
            }
            if path.is_dir() {
                self.tree(&path, without)?;
            } else if path.is_file() {
                self.copy(&path, &path)?;
                if path.extension().is_some_and(|extension| extension == "so") {
                    self.libraries(&path)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<()> {
        let mut out = newc::trailer(self.out).context("writing the initramfs")?;
        out.flush().context("writing the initramfs")
    }
}

/// The path in a line of ldd: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f3e)`, or that of the loader,
/// `/lib64/ld-linux-x86-64.so.2 (0x00007f3e)`.
fn library(line: &str) -> Option<&str> {
    let path = line.split_once(" => ").map_or(line, |(_, path)| path).trim();
    let (path, _) = path.split_once(" (")?;
    path.starts_with('/').then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_says() {
        assert_eq!(library("\tlibc.so.6 => /lib/libc.so.6 (0x00007f3e)"), Some("/lib/libc.so.6"));
        assert_eq!(library("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)"), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007ffd)"), None);
        assert_eq!(library("\tstatically linked"), None);
    }

    #[test]
    fn folders_come_before_what_is_in_them_and_each_once() {
        let mut archive = Vec::new();
        let mut root = Root::new(&mut archive).unwrap();
        root.text("/etc/passwd", "root").unwrap();
        root.text("/etc/group", "").unwrap();
        root.text("/etc/passwd", "again").unwrap();
        root.finish().unwrap();
        let mut names = Vec::new();
        let mut rest = &archive[..];
        loop {
            let reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push(reader.entry().name().to_owned());
            rest = reader.finish().unwrap();
        }
        assert_eq!(names[9..], ["etc", "etc/passwd", "etc/group"]);
        assert_eq!(names[..4], ["bin", "usr", "usr/bin", "sbin"]);
    }
}
