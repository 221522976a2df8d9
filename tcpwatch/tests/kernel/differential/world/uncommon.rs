//! Acts that few programs do: exec, namespaces that only sockets keep, containers that are killed, transparent proxies.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use serde_json::json;

use super::{
    super::ss::{self, SsRow},
    CONTAINER, Container, Hidden, PROXIED, PROXY_PORT, World,
    acts::ends,
    ip, kill, wait_for_end,
};
use crate::{eventually::eventually, netns::Namespace};

impl World {
    /// An actor runs another program, which has another name and the same sockets.
    pub(super) fn exec(&mut self) {
        let actor = self.some_actor();
        let comm = format!("exec-{}", self.random.below(1000));
        self.send_order(actor, "exec", &[json!(comm)], &json!(false));
        self.hear_answer(actor);
    }

    /// An actor makes a namespace to which only its sockets lead, or closes them.
    pub(super) fn hide(&mut self) {
        let actor = self.some_actor();
        let pid = self.actors[actor].pid;
        if self.hidden.iter().any(|hidden| hidden.pid == pid) {
            self.send_order(actor, "unhide", &[], &json!(false));
            self.hear_answer(actor);
            self.unhidden(pid);
            return;
        }
        let issued = self.send_order(actor, "hide", &[], &json!(false));
        let answer = self.hear_answer(actor);
        let inode = answer["inode"].as_u64().unwrap_or_else(|| panic!("hide: {answer}"));
        self.gone.remove(&inode);
        self.hidden.push(Hidden { pid, inode });
        for made in answer["made"].as_array().unwrap() {
            self.connections += 1;
            let (interface, local, remote) = ends(&made[0], &made[1]);
            self.enter(actor, 0, Some((inode, interface, local, remote)), issued);
        }
    }

    /// The namespace that only sockets of this process kept is gone.
    pub(super) fn unhidden(&mut self, pid: u32) {
        let gone = self.hidden.extract_if(.., |hidden| hidden.pid == pid).map(|hidden| hidden.inode);
        self.gone.extend(gone);
    }

    /// `ss` in the hidden namespaces: their actors run it.
    pub(super) fn look_into_hidden(&mut self) -> Vec<SsRow> {
        let hidden: Vec<(u32, u64)> = self.hidden.iter().map(|hidden| (hidden.pid, hidden.inode)).collect();
        let mut rows = Vec::new();
        for (pid, inode) in hidden {
            let actor = self.actors.iter().position(|actor| actor.pid == pid).unwrap();
            self.send_order(actor, "look", &[], &json!(true));
            let answer = self.hear_answer(actor);
            self.log.pop();
            rows.extend(ss::rows(inode, answer["ss"].as_str().unwrap_or_else(|| panic!("look: {answer}"))));
        }
        rows
    }

    /// Starts a container, or kills the one that runs, with all its processes and its namespace.
    pub(super) fn container(&mut self) {
        let Some(container) = self.container.take() else {
            let namespace = Namespace::new();
            let cgroup = cgroups().map(|root| root.join(format!("twtest-{}", namespace.inode)));
            if let Some(cgroup) = &cgroup {
                fs::create_dir(cgroup).unwrap();
            }
            self.gone.remove(&namespace.inode);
            self.container = Some(Container { inode: namespace.inode, cgroup });
            self.namespaces.push(namespace);
            self.spawn(CONTAINER);
            return;
        };
        self.log.push(format!("the container {} is killed", container.inode));
        let issued = Instant::now();
        let cgroup = container.cgroup.as_ref();
        // Since Linux 5.14.
        let killed = cgroup.is_some_and(|cgroup| fs::write(cgroup.join("cgroup.kill"), "1").is_ok());
        let end = if killed { wait_for_end } else { kill };
        while let Some(index) = self.actors.iter().position(|actor| actor.home == CONTAINER) {
            end(self.actors[index].pid);
            self.has_ended(index, issued);
        }
        while let Some(index) = self.sleepers.iter().position(|sleeper| sleeper.home == CONTAINER) {
            let sleeper = self.sleepers.swap_remove(index);
            end(sleeper.pid);
            for socket in sleeper.sockets {
                self.release(sleeper.pid, socket, issued);
            }
        }
        self.namespaces.truncate(CONTAINER);
        self.gone.insert(container.inode);
        if let Some(cgroup) = cgroup {
            remove_cgroup(cgroup);
        }
    }

    pub(super) fn put_into_container(&self, pid: u32) {
        if let Some(cgroup) = self.container.as_ref().and_then(|container| container.cgroup.as_ref()) {
            fs::write(cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
        }
    }
}

/// Where the hierarchy of cgroup v2 is mounted, if it is.
fn cgroups() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    mounts.find(|mount| mount[2] == "cgroup2").map(|mount| PathBuf::from(mount[1]))
}

pub(super) fn remove_cgroup(cgroup: &Path) {
    eventually("the cgroup is empty", || fs::remove_dir(cgroup));
}

/// Leads connections to the proxied addresses to the transparent proxy of the namespace. `false` where the kernel
/// cannot.
pub(super) fn proxy(namespace: &str) -> bool {
    ip(&["-n", namespace, "route", "add", "local", PROXIED, "dev", "lo"]);
    let rule = format!("ip daddr {PROXIED} meta l4proto tcp tproxy to 127.0.0.1:{PROXY_PORT} accept");
    let chain = format!("chain p {{\n type filter hook prerouting priority mangle;\n {rule}\n }}");
    let nft = Command::new("ip")
        .args(["netns", "exec", namespace, "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut nft = nft.expect("`ip` (iproute2)");
    let written = nft.stdin.take().unwrap().write_all(format!("table ip t {{\n {chain}\n}}\n").as_bytes());
    nft.wait().is_ok_and(|status| status.success()) && written.is_ok()
}
