//! `tcpwatch check` reports what a daemon would do on this kernel, and `--hook` makes it do otherwise.

use std::path::Path;

use serde_json::Value;

use crate::{
    daemon::{Daemon, TCPWATCH, tcpwatch},
    rights::run,
};

/// Exit code and JSON of `tcpwatch check` with these options.
fn check(options: &[&str]) -> (i32, Value) {
    let (code, printed, errors) = run(tcpwatch(TCPWATCH).args(["check", "--json"]).args(options));
    (
        code.unwrap(),
        serde_json::from_str(&printed).unwrap_or_else(|_| panic!("{options:?}: {printed} {errors}")),
    )
}

#[test]
fn a_daemon_does_what_check_reports() {
    let (code, checked) = check(&[]);
    let status = Daemon::start(&[]).json("/status");
    for field in ["kernel", "identity", "signals", "programs"] {
        assert_eq!(checked[field], status[field], "{field}");
        assert!(!checked[field].is_null(), "{field}");
    }
    let signals = checked["signals"].as_array().unwrap();
    let reduced = signals.iter().any(|signal| signal["lost"].is_string());
    let expected = if reduced { (1, "reduced") } else { (0, "full") };
    assert_eq!((code, checked["verdict"].as_str().unwrap()), expected, "{checked}");
    assert_eq!(checked["error"], Value::Null);

    let (text_code, text, _) = run(tcpwatch(TCPWATCH).arg("check"));
    assert_eq!(text_code, Some(code));
    for hook in signals.iter().filter_map(|signal| signal["hook"].as_str()) {
        assert!(text.contains(hook), "no {hook} in:\n{text}");
    }
}

/// The list that the error for an unknown signal or way ends with.
fn offered_instead_of(choice: &str) -> Vec<String> {
    let mut errors = Vec::new();
    for command in ["check", "run"] {
        let (code, _, error) = run(tcpwatch(TCPWATCH).args([command, "--hook", choice]));
        assert_eq!(code, Some(64), "{error}");
        errors.push(error);
    }
    let (code, _, error) = run(tcpwatch(TCPWATCH).arg("check").env("TCPWATCH_HOOK", choice));
    assert_eq!(code, Some(64), "{error}");
    errors.push(error);
    let mut lists =
        errors.iter().map(|error| error.split_once(" are: ").expect(error).1.lines().next().unwrap());
    let list = lists.next().unwrap();
    assert!(lists.all(|other| other == list), "{errors:?}");
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn an_unknown_hook_is_refused_with_the_list_of_valid_ones() {
    let signals = offered_instead_of("open=kprobe");
    assert_eq!(
        signals,
        [
            "state",
            "retransmit",
            "retransmit_failed",
            "congestion",
            "out_of_order",
            "synack",
            "overflow",
            "send_reset",
            "receive_reset",
            "policy_reset",
            "connect",
            "close",
            "accept",
            "minisock",
            "time_wait",
            "held",
            "unheld",
            "namespaces",
            "options"
        ]
    );
    assert_eq!(offered_instead_of("close=tp_btf"), ["fentry", "kprobe", "inferred"]);
    let (code, _, error) = run(tcpwatch(TCPWATCH).args(["check", "--hook", "close"]));
    assert_eq!(code, Some(64), "{error}");
    assert!(error.contains("SIGNAL=WAY"), "{error}");
}

/// Whether this machine offers what a way needs; `None` where only an attempt shows it.
fn offered(signal: &str, way: &str) -> Option<bool> {
    match way {
        // Tracepoints that older kernels do not have, or without the argument that matters.
        "tp_btf" | "raw_tp" if ["retransmit_failed", "congestion"].contains(&signal) => None,
        "inferred" | "iter" | "raw_tp" | "tp_btf" => Some(true),
        "kprobe" | "kretprobe" => Some(Path::new("/sys/bus/event_source/devices/kprobe").exists()),
        "tracepoint" => Some(
            ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
                .iter()
                .any(|mount| Path::new(mount).join("events/sock/inet_sock_set_state/format").exists()),
        ),
        _ => None,
    }
}

#[test]
fn each_way_is_taken_when_it_is_asked_for_or_check_reports_why_not() {
    for signal in offered_instead_of("open=kprobe") {
        for way in offered_instead_of(&format!("{signal}=none")) {
            let choice = format!("{signal}={way}");
            let (code, checked) = check(&["--hook", &choice]);
            let Some(signals) = checked["signals"].as_array().filter(|signals| !signals.is_empty()) else {
                // Without state changes the other signals are not tried.
                assert_eq!((signal.as_str(), code), ("state", 2), "{choice}: {checked}");
                assert_ne!(offered(&signal, &way), Some(true), "{choice}: {checked}");
                let error = checked["error"].as_str().unwrap();
                assert!(error.contains(&format!("{way} ")), "{choice}: {error}");
                continue;
            };
            let report = signals.iter().find(|report| report["key"] == signal.as_str()).unwrap();
            if report["hook"].is_string() {
                assert_ne!(offered(&signal, &way), Some(false), "{choice}: {report}");
                let hook = report["hook"].as_str().unwrap();
                assert!(hook.starts_with(&format!("{way} ")), "{choice}: {report}");
                let by_address = ["raw_tp", "kprobe", "tracepoint"].contains(&way.as_str());
                if signal == "state" && by_address {
                    assert_eq!(checked["identity"], "socket address", "{choice}");
                }
            } else {
                assert_ne!(offered(&signal, &way), Some(true), "{choice}: {report}");
                assert!(report["lost"].is_string(), "{choice}: {report}");
                let hook = report["tried"][0]["hook"].as_str().unwrap();
                assert!(hook.starts_with(&format!("{way} ")), "{choice}: {report}");
                assert!(
                    report["tried"][0]["error"].as_str().is_some_and(|error| !error.is_empty()),
                    "{report}"
                );
                assert_eq!(code, 1, "{choice}");
            }
        }
    }
}
