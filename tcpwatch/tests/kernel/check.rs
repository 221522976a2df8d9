//! `tcpwatch check` reports what a daemon would do on this machine, and `--hook` changes it.

use std::path::Path;

use serde_json::Value;

use crate::{
    daemon::{Daemon, TCPWATCH, tcpwatch},
    rights::run,
};

/// Exit code and JSON of `tcpwatch check` with these options.
fn check(options: &[&str]) -> (i32, Value) {
    let (code, printed, said) = run(tcpwatch(TCPWATCH).args(["check", "--json"]).args(options));
    (
        code.unwrap(),
        serde_json::from_str(&printed).unwrap_or_else(|_| panic!("{options:?}: {printed} {said}")),
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
    for said in signals.iter().filter_map(|signal| signal["hook"].as_str()) {
        assert!(text.contains(said), "no {said} in:\n{text}");
    }
}

/// The list after `there are: ` in the error for an invalid choice.
fn there_are(choice: &str) -> Vec<String> {
    let mut said = Vec::new();
    for command in ["check", "run"] {
        let (code, _, one) = run(tcpwatch(TCPWATCH).args([command, "--hook", choice]));
        assert_eq!(code, Some(64), "{one}");
        said.push(one);
    }
    let (code, _, one) = run(tcpwatch(TCPWATCH).arg("check").env("TCPWATCH_HOOK", choice));
    assert_eq!(code, Some(64), "{one}");
    said.push(one);
    let mut lists =
        said.iter().map(|one| one.split_once("there are: ").expect(one).1.lines().next().unwrap());
    let list = lists.next().unwrap();
    assert!(lists.all(|other| other == list), "{said:?}");
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn an_unknown_hook_is_refused_with_the_list_of_valid_ones() {
    let signals = there_are("open=kprobe");
    assert_eq!(
        signals,
        [
            "state",
            "retransmit",
            "retransmit_failed",
            "congestion",
            "out_of_order",
            "synack",
            "send_reset",
            "receive_reset",
            "policy_reset",
            "connect",
            "close",
            "accept",
            "minisock",
            "held",
            "unheld",
            "options"
        ]
    );
    assert_eq!(there_are("close=tp_btf"), ["fentry", "kprobe", "inferred"]);
    let (code, _, said) = run(tcpwatch(TCPWATCH).args(["check", "--hook", "close"]));
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("SIGNAL=WAY"), "{said}");
}

/// Whether this machine has what a way needs; `None` where only trying it shows.
fn offered(signal: &str, way: &str) -> Option<bool> {
    match way {
        // Tracepoints that older kernels lack, or have without the needed arguments.
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
fn each_way_serves_when_chosen_or_check_says_why_not() {
    for signal in there_are("open=kprobe") {
        for way in there_are(&format!("{signal}=none")) {
            let choice = format!("{signal}={way}");
            let (code, checked) = check(&["--hook", &choice]);
            let Some(signals) = checked["signals"].as_array().filter(|signals| !signals.is_empty()) else {
                // Without state changes the other signals are not reported.
                assert_eq!((signal.as_str(), code), ("state", 2), "{choice}: {checked}");
                assert_ne!(offered(&signal, &way), Some(true), "{choice}: {checked}");
                let error = checked["error"].as_str().unwrap();
                assert!(error.contains(&format!("{way} ")), "{choice}: {error}");
                continue;
            };
            let status = signals.iter().find(|one| one["key"] == signal.as_str()).unwrap();
            if status["hook"].is_string() {
                assert_ne!(offered(&signal, &way), Some(false), "{choice}: {status}");
                let hook = status["hook"].as_str().unwrap();
                assert!(way == "inferred" || hook.starts_with(&format!("{way} ")), "{choice}: {status}");
                let by_address = ["raw_tp", "kprobe", "tracepoint"].contains(&way.as_str());
                if signal == "state" && by_address {
                    assert_eq!(checked["identity"], "socket address", "{choice}");
                }
            } else {
                assert_ne!(offered(&signal, &way), Some(true), "{choice}: {status}");
                assert!(status["lost"].is_string(), "{choice}: {status}");
                let hook = status["tried"][0]["hook"].as_str().unwrap();
                assert!(hook.starts_with(&format!("{way} ")), "{choice}: {status}");
                assert!(
                    status["tried"][0]["error"].as_str().is_some_and(|error| !error.is_empty()),
                    "{status}"
                );
                assert_eq!(code, 1, "{choice}");
            }
        }
    }
}
