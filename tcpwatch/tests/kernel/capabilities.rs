//! Capabilities: `check` and `run` name the missing ones, and only the needed ones are kept after the start.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    daemon::{Daemon, TCPWATCH, tcpwatch},
    rights::{
        Copy,
        User::{Nobody, Root},
        run,
    },
};

/// Bits of `/proc/PID/status` (include/uapi/linux/capability.h).
const DAC_READ_SEARCH: u64 = 1 << 2;
const NET_ADMIN: u64 = 1 << 12;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;
const BPF: u64 = 1 << 39;

/// What each thread may keep, by its name.
const KEPT: [(&str, u64); 6] = [
    ("tcpwatch", SYS_PTRACE | BPF),
    ("procfs", SYS_PTRACE),
    ("recorder", 0),
    ("sweeper", DAC_READ_SEARCH | SYS_PTRACE | SYS_ADMIN | BPF),
    ("netns", DAC_READ_SEARCH | NET_ADMIN | SYS_PTRACE | SYS_ADMIN),
    ("http", 0),
];

#[test]
fn after_the_start_no_thread_has_more_capabilities_than_it_needs() {
    let copy = Copy::new();
    let root = tcpwatch(TCPWATCH);
    let some = ["bpf", "perfmon", "sys_ptrace", "net_raw", "dac_override"];
    for (command, given) in [
        (root, u64::MAX),
        (copy.with(Root, &some), BPF | SYS_PTRACE),
        (copy.with(Nobody, &some), BPF | SYS_PTRACE),
    ] {
        let record = std::env::temp_dir().join(format!("tcpwatch-threads-{}.rec", std::process::id()));
        let daemon = Daemon::start_by(command, &["--record", record.to_str().unwrap()]);
        std::fs::remove_file(&record).unwrap();
        let mut names = BTreeSet::new();
        for task in std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().flatten() {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap();
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
            let bits = |name: &str| u64::from_str_radix(field(name), 16).unwrap();
            let name = field("Name:");
            let name = if name.starts_with("tcpwatch") { "tcpwatch" } else { name };
            let (_, kept) = KEPT.iter().find(|(known, _)| *known == name).expect(name);
            let left = given & kept;
            assert_eq!(
                ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"].map(bits),
                [left, left, 0, 0],
                "{status}"
            );
            assert_eq!(field("NoNewPrivs:"), "1");
            names.insert(name.to_owned());
        }
        assert!(KEPT.iter().all(|(name, _)| names.contains(*name)), "{names:?}");
        // What needs a right of its own file only is there without any capability.
        assert!(daemon.get("/metrics").1.contains("\nprocess_open_fds "));
    }
}

#[test]
fn check_names_the_capability_that_is_missing() {
    let copy = Copy::new();
    for user in [Root, Nobody] {
        for (capabilities, missing) in [
            (&[][..], Some("CAP_BPF and CAP_PERFMON missing")),
            (&["bpf", "sys_ptrace"], Some("CAP_PERFMON missing")),
            (&["perfmon", "sys_ptrace"], Some("CAP_BPF missing")),
            (&["sys_admin"], None),
            (&["bpf", "perfmon"], None),
        ] {
            let (code, printed, errors) = run(copy.with(user, capabilities).args(["check", "--json"]));
            let checked: Value = serde_json::from_str(&printed).unwrap();
            let reported = checked["kernel"]["capabilities"].as_array().unwrap();
            let held =
                reported.iter().filter(|one| one["held"] == true).map(|one| one["name"].as_str().unwrap());
            let mut held: Vec<_> = held.map(|name| name.trim_start_matches("CAP_").to_lowercase()).collect();
            held.sort();
            let mut given = capabilities.to_vec();
            given.sort_unstable();
            assert_eq!(held, given, "{user:?}: {printed}");
            let Some(missing) = missing else {
                assert!(matches!(code, Some(0 | 1)), "{user:?} {capabilities:?}: {code:?} {printed}");
                continue;
            };
            assert_eq!(code, Some(2), "{user:?} {capabilities:?}: {printed} {errors}");
            let error = checked["error"].as_str().unwrap();
            assert!(error.contains(&format!(": {missing};")), "{error}");
            let (code, _, errors) =
                run(copy.with(user, capabilities).args(["run", "--listen", "127.0.0.1:0"]));
            assert_eq!(code, Some(77), "{errors}");
            assert!(errors.contains(&format!(": {missing};")), "{errors}");
        }
    }
}
