//! xtask as cargo's RUSTC_WRAPPER, in `cargo xtask bpf` only: makes the object independent of where
//! the checkout, cargo's home and the toolchain lie.
//!
//! Two things would carry a folder's name into the object, and cargo has a stable switch for neither:
//! - BTF names each source file. Each package's folder becomes `/bpf/<package>-<version>`.
//! - Symbol names contain a hash of `-C metadata`, which cargo computes from the absolute path of a
//!   package outside the workspace (here tcpwatch-common). Ours get their package's name instead.
//!
//! Cargo does not see what a wrapper changes: after editing this file remove tcpwatch-ebpf/target.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
};

/// The variable that switches xtask to this mode; its value is the checkout.
pub(crate) const ROOT: &str = "XTASK_RUSTC_WRAPPER_ROOT";

/// Becomes the rustc that cargo asked for: the first argument is its path, the rest are its own.
pub(crate) fn main(root: &Path) -> ExitCode {
    let mut args = env::args_os().skip(1);
    let Some(rustc) = args.next() else {
        eprintln!("xtask: {ROOT} is set, which only `cargo xtask bpf` should do: unset it");
        return ExitCode::FAILURE;
    };
    let package = |name| env::var_os(name).unwrap_or_default();
    let args = rewrite(
        args.collect(),
        root,
        Path::new(&package("CARGO_MANIFEST_DIR")),
        &package("CARGO_PKG_NAME"),
        &package("CARGO_PKG_VERSION"),
    );
    let error = Command::new(&rustc).args(args).exec();
    eprintln!("xtask: starting {}: {error}", rustc.display());
    ExitCode::FAILURE
}

fn rewrite(
    mut args: Vec<OsString>,
    root: &Path,
    package_dir: &Path,
    name: &OsStr,
    version: &OsStr,
) -> Vec<OsString> {
    // Without a package cargo is only asking rustc about itself.
    if package_dir.as_os_str().is_empty() {
        return args;
    }
    if package_dir.starts_with(root) {
        for arg in args.iter_mut().filter(|arg| arg.as_encoded_bytes().starts_with(b"metadata=")) {
            *arg = concat(&["metadata=".as_ref(), name]);
        }
    }
    let to = concat(&["=/bpf/".as_ref(), name, "-".as_ref(), version]);
    args.push(concat(&["--remap-path-prefix=".as_ref(), package_dir.as_os_str(), &to]));
    args
}

fn concat(parts: &[&OsStr]) -> OsString {
    parts.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(package_dir: &str, name: &str) -> Vec<OsString> {
        let args = ["--crate-name", "x", "-C", "metadata=0123", "-C", "extra-filename=-0123"];
        let args = args.map(OsString::from).into();
        rewrite(args, Path::new("/repo"), Path::new(package_dir), name.as_ref(), "1.2.3".as_ref())
    }

    #[test]
    fn our_packages_lose_the_metadata_hash_and_their_path() {
        assert_eq!(
            rewritten("/repo/tcpwatch-common", "tcpwatch-common")[3..],
            [
                "metadata=tcpwatch-common",
                "-C",
                "extra-filename=-0123",
                "--remap-path-prefix=/repo/tcpwatch-common=/bpf/tcpwatch-common-1.2.3"
            ]
        );
    }

    #[test]
    fn foreign_packages_lose_only_their_path() {
        assert_eq!(
            rewritten("/home/me/.cargo/registry/src/x/aya-1.2.3", "aya")[3..],
            [
                "metadata=0123",
                "-C",
                "extra-filename=-0123",
                "--remap-path-prefix=/home/me/.cargo/registry/src/x/aya-1.2.3=/bpf/aya-1.2.3"
            ]
        );
    }

    #[test]
    fn questions_about_rustc_itself_pass_unchanged() {
        let args: Vec<OsString> = vec!["-vV".into()];
        assert_eq!(rewrite(args.clone(), Path::new("/repo"), Path::new(""), "".as_ref(), "".as_ref()), args);
    }
}
