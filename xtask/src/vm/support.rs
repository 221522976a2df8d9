//! What is expected of each kernel: where it comes from, which way gives each signal, and which tests it cannot pass,
//! with the reason. Everything not named here must work on every kernel; otherwise the run fails.

use super::check::Verdict;

/// One of Debian's kernel series.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) name: &'static str,
    /// Debian's suites that have it, security updates included.
    pub(crate) suites: &'static [(Archive, &'static str)],
    pub(crate) verdict: Verdict,
    /// Ways that differ from [`WAYS`]; `None` for a signal that this kernel lacks.
    pub(crate) other_ways: &'static [(&'static str, Option<&'static str>)],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Archive {
    Main,
    Security,
}

/// Before Linux 6.18 the tracepoint does not report failures.
const FAILURES_BY_FEXIT: (&str, Option<&str>) = ("retransmit_failed", Some("fexit"));

pub(crate) const SERIES: [Series; 6] = [
    Series {
        name: "5.10",
        suites: &[(Archive::Main, "bullseye"), (Archive::Security, "bullseye-security")],
        verdict: Verdict::Reduced,
        other_ways: &[FAILURES_BY_FEXIT, ("congestion", None)],
    },
    Series {
        name: "6.1",
        suites: &[(Archive::Main, "bookworm"), (Archive::Security, "bookworm-security")],
        verdict: Verdict::Reduced,
        other_ways: &[FAILURES_BY_FEXIT, ("overflow", Some("kprobe"))],
    },
    Series {
        name: "6.12",
        suites: &[(Archive::Main, "trixie"), (Archive::Security, "trixie-security")],
        verdict: Verdict::Reduced,
        other_ways: &[FAILURES_BY_FEXIT],
    },
    Series {
        name: "6.18",
        suites: &[(Archive::Main, "trixie-backports")],
        verdict: Verdict::Full,
        other_ways: &[],
    },
    Series { name: "7.2", suites: &[(Archive::Main, "sid")], verdict: Verdict::Full, other_ways: &[] },
    Series {
        name: "7.3",
        suites: &[(Archive::Main, "trixie-backports")],
        verdict: Verdict::Full,
        other_ways: &[],
    },
];

/// The way that gives each signal when none is forced: the best.
pub(crate) const WAYS: [(&str, &str); 19] = [
    ("state", "tp_btf"),
    ("retransmit", "tp_btf"),
    ("retransmit_failed", "tp_btf"),
    ("congestion", "tp_btf"),
    ("out_of_order", "inferred"),
    ("synack", "tp_btf"),
    ("overflow", "fentry"),
    ("send_reset", "tp_btf"),
    ("receive_reset", "tp_btf"),
    ("policy_reset", "kprobe"),
    ("connect", "fexit"),
    ("close", "fentry"),
    ("accept", "fexit"),
    ("minisock", "fentry"),
    ("time_wait", "fentry"),
    ("held", "iter"),
    ("unheld", "iter"),
    ("namespaces", "iter"),
    ("options", "iter"),
];

/// Ways forced one after the other, so that each way is tested on each kernel and not only the best.
#[derive(Debug)]
pub(crate) struct Forced {
    pub(crate) name: &'static str,
    /// Signals and ways, as `--hook` takes them.
    pub(crate) hooks: &'static [(&'static str, &'static str)],
    /// The tests that run with them: those whose answers do not depend on the better ways.
    pub(crate) tests: &'static [&'static str],
}

pub(crate) const FORCED: [Forced; 4] = [
    Forced {
        name: "fentry",
        hooks: &[
            ("state", "fentry"),
            ("close", "fentry"),
            ("accept", "fexit"),
            ("minisock", "fentry"),
            ("time_wait", "fentry"),
            ("overflow", "fentry"),
            ("out_of_order", "fexit"),
        ],
        tests: &LIVES,
    },
    Forced {
        name: "kprobe",
        hooks: &[
            ("state", "kprobe"),
            ("close", "kprobe"),
            ("accept", "kretprobe"),
            ("minisock", "kprobe"),
            ("time_wait", "kprobe"),
            ("overflow", "kprobe"),
        ],
        tests: &LIVES,
    },
    Forced {
        name: "raw_tp",
        hooks: &[
            ("state", "raw_tp"),
            ("retransmit", "raw_tp"),
            ("synack", "raw_tp"),
            ("send_reset", "raw_tp"),
            ("receive_reset", "raw_tp"),
            ("congestion", "raw_tp"),
        ],
        tests: &TRACEPOINTS,
    },
    Forced {
        name: "tracepoint",
        hooks: &[("state", "tracepoint"), ("retransmit", "tracepoint"), ("synack", "tracepoint")],
        // Without the kernel's types no namespace is known, by which other tests find their own sockets; and
        // retransmitted packets are counted, not their segments.
        tests: &["counts::a_clean_echo_workload_has_exact_counts_and_no_leak", CONNECTS],
    },
];

const RETRANSMITS: &str = "counts::retransmits_equal_the_kernels_own_count";
/// Tests that together need every signal, except the time when a listener began, which fentry and kprobe do not report.
const LIVES: [&str; 4] = [
    RETRANSMITS,
    "leaks::a_half_closed_client_is_named_even_when_it_is_gone",
    "life::states_and_causes_are_shown_live_and_afterwards",
    "owners::a_prefork_servers_connection_belongs_to_the_accepting_worker",
];

/// [`LIVES`], the resets and stalls, which only tracepoints report, and connects, whose failures are reported once
/// each.
const TRACEPOINTS: [&str; 7] = [LIVES[0], LIVES[1], LIVES[2], LIVES[3], RESETS, STALLS, CONNECTS];
const RESETS: &str = "resets::each_reset_has_its_reason_and_none_is_missing";
const CONNECTS: &str = "connects::a_connect_that_fails_before_syn_sent_is_reported_once";
const STALLS: &str = "stalls::delivery_stands_still_as_long_as_the_receiver_measures";

/// A test that is not run on some kernels.
#[derive(Debug)]
pub(crate) struct Skip {
    pub(crate) test: &'static str,
    /// Kernel series on which it is not run; empty for all.
    pub(crate) series: &'static [&'static str],
    pub(crate) reason: &'static str,
}

/// Why the tests with schemathesis are not run in the virtual machines.
const SCHEMATHESIS: &str =
    "it checks the form of the answers, which does not depend on the kernel; `cargo xtask test` runs it";

pub(crate) const SKIPS: [Skip; 11] = [
    Skip {
        test: "counts::promtool_accepts_the_metrics",
        series: &[],
        reason: "it checks the text of /metrics, which does not depend on the kernel; `cargo xtask test` runs it",
    },
    Skip { test: "openapi::each_event_is_what_the_document_says", series: &[], reason: SCHEMATHESIS },
    Skip { test: "openapi::no_answer_is_other_than_the_document_says", series: &[], reason: SCHEMATHESIS },
    Skip { test: STALLS, series: &["5.10"], reason: NO_STALLS },
    Skip {
        test: "stalls::a_request_that_is_lost_waits_for_a_probe_or_a_time_out",
        series: &["5.10"],
        reason: NO_STALLS,
    },
    Skip {
        test: "stalls::a_connection_into_a_black_hole_is_stalled_until_it_goes_on",
        series: &["5.10"],
        reason: NO_STALLS,
    },
    Skip {
        test: "stalls::a_stall_counts_under_the_recovery_that_ended_it",
        series: &["5.10"],
        reason: NO_STALLS,
    },
    Skip { test: "stalls::a_stall_ends_with_its_connection", series: &["5.10"], reason: NO_STALLS },
    Skip {
        test: "owners::a_subflow_belongs_to_the_process_that_holds_its_multipath_socket",
        series: &["5.10"],
        reason: "Debian's kernel has no Multipath TCP",
    },
    Skip {
        test: "resets::a_reset_for_lack_of_a_socket_counts_without_connection",
        series: &["5.10", "6.1"],
        reason: "before Linux 6.10 tcp_send_reset reports full sockets only",
    },
    Skip {
        test: "resets::a_reset_by_an_orphan_in_fin_wait2_names_its_owner",
        series: &["5.10", "6.1"],
        reason: "before Linux 6.10 tcp_send_reset reports full sockets only",
    },
];

const NO_STALLS: &str = "before Linux 5.19 there is no tracepoint tcp_cong_state_set";

/// The reason why this test is not run on that kernel, if it is not.
pub(crate) fn skipped(test: &str, series: &Series) -> Option<&'static str> {
    let applies =
        |skip: &&Skip| skip.test == test && (skip.series.is_empty() || skip.series.contains(&series.name));
    SKIPS.iter().find(applies).map(|skip| skip.reason)
}

impl Series {
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        SERIES.iter().find(|series| series.name == name)
    }

    /// The way expected to give a signal on this kernel, `None` where none can.
    pub(crate) fn way(&self, signal: &str) -> Option<&'static str> {
        let other = self.other_ways.iter().find(|(of, _)| *of == signal).map(|(_, way)| *way);
        other.unwrap_or_else(|| WAYS.iter().find(|(of, _)| *of == signal).map(|(_, way)| *way))
    }
}
