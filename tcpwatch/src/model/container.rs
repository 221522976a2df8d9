//! Which container a process runs in, read from its cgroup path.

use schemars::JsonSchema;
use serde::Serialize;

/// A container, as its runtime and Kubernetes identify it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Container {
    /// The runtime's identifier: 64 hexadecimal digits.
    pub id: String,
    /// `docker`, `containerd`, `cri-o`, `podman`, or `null` where the path does not say.
    pub runtime: Option<&'static str>,
    /// The Kubernetes pod's UID.
    pub pod_uid: Option<String>,
}

/// Prefixes of systemd scope names, and the runtime that uses each.
const SCOPES: [(&str, &str); 4] =
    [("docker-", "docker"), ("cri-containerd-", "containerd"), ("crio-", "cri-o"), ("libpod-", "podman")];

/// The innermost container that the path names, in the forms of cgroup v1 and v2, with the cgroupfs driver
/// (`/kubepods/burstable/pod<uid>/<id>`, `/docker/<id>`) or systemd's
/// (`...-pod<uid with _>.slice/cri-containerd-<id>.scope`).
pub fn from_cgroup(path: &str) -> Option<Container> {
    let mut parts = path.split('/').rev();
    let (id, runtime) = parts.by_ref().find_map(|part| {
        let name = part.strip_suffix(".scope").unwrap_or(part);
        // containerd without systemd's names: `system.slice:cri-containerd:<id>`.
        let name = name.rsplit(':').next().unwrap_or(name);
        let scope = SCOPES.iter().find(|(prefix, _)| name.starts_with(prefix));
        let id = scope.map_or(name, |(prefix, _)| &name[prefix.len()..]);
        let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        let runtime = scope.map(|(_, runtime)| *runtime).or_else(|| {
            let named =
                [("/docker/", "docker"), ("cri-containerd:", "containerd"), ("/libpod_parent/", "podman")];
            named.iter().find(|(mark, _)| path.contains(mark)).map(|(_, runtime)| *runtime)
        });
        is_id.then(|| (id.to_owned(), runtime))
    })?;
    let pod_uid = parts.find_map(|part| {
        let name = part.strip_suffix(".slice").unwrap_or(part);
        let uid = &name[name.rfind("pod").filter(|at| *at == 0 || name.as_bytes()[at - 1] == b'-')? + 3..];
        let is_uid = uid.len() >= 32 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-' || b == b'_');
        is_uid.then(|| uid.replace('_', "-"))
    });
    Some(Container { id, runtime, pod_uid })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "6a1f3e6c-8f2b-4c35-9d0a-0b7a6f3c2d1e";

    #[test]
    fn the_paths_of_each_runtime_are_read() {
        let systemd_uid = UID.replace('-', "_");
        for (path, runtime, pod) in [
            (format!("/docker/{ID}"), Some("docker"), false),
            (format!("/system.slice/docker-{ID}.scope"), Some("docker"), false),
            (format!("/system.slice/docker-{ID}.scope/init"), Some("docker"), false),
            (format!("/kubepods/burstable/pod{UID}/{ID}"), None, true),
            (format!("/kubepods/pod{UID}/{ID}"), None, true),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd_uid}.slice/cri-containerd-{ID}.scope"
                ),
                Some("containerd"),
                true,
            ),
            (format!("/kubepods.slice/kubepods-pod{systemd_uid}.slice/crio-{ID}.scope"), Some("cri-o"), true),
            (format!("/kubepods-pod{systemd_uid}.slice:cri-containerd:{ID}"), Some("containerd"), false),
            (format!("/machine.slice/libpod-{ID}.scope/container"), Some("podman"), false),
        ] {
            let container = from_cgroup(&path).unwrap_or_else(|| panic!("{path}"));
            assert_eq!((container.id.as_str(), container.runtime), (ID, runtime), "{path}");
            assert_eq!(container.pod_uid.as_deref(), pod.then_some(UID), "{path}");
        }
    }

    #[test]
    fn a_path_without_a_container_is_none() {
        for path in ["/", "/system.slice/nginx.service", "/user.slice/user-1000.slice", "/docker/short", ""] {
            assert_eq!(from_cgroup(path), None, "{path}");
        }
    }
}
