//! How this kernel is watched: which hook gives each signal, and what that means for the records.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    events::frame::ReportedFacts,
    kernel::{
        capabilities::Kernel,
        probes::{Signal, Way, WayKind},
    },
    tcp::serialized_by_name,
};

/// How this kernel is watched, for `/status` and `tcpwatch check`.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Hooks {
    /// The kernel.
    pub kernel: Kernel,
    /// What identifies a socket in the records; `null` where nothing could be loaded.
    pub identity: Option<SocketIdentity>,
    /// Every signal, and the hook that gives it.
    pub signals: Vec<SignalReport>,
    /// The BPF programs that are loaded.
    pub programs: Vec<LoadedProgram>,
}

/// One signal, and how tcpwatch gets it here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct SignalReport {
    /// The signal, as `--hook` calls it.
    pub key: Signal,
    /// The signal's name for people.
    pub signal: &'static str,
    #[serde(skip)]
    pub way: Option<WayKind>,
    /// The hook that gives it; `null` when none does.
    pub hook: Option<String>,
    /// Why a better hook is not used, in the kernel's own words.
    pub tried: Vec<Attempt>,
    /// What is missing or less exact because of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<&'static str>,
}

/// A hook that this kernel refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Attempt {
    /// The hook.
    pub hook: String,
    /// Why it was refused.
    pub error: String,
}

/// A BPF program that is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LoadedProgram {
    /// Its name in the BPF object.
    pub program: &'static str,
    /// What it is attached to.
    pub hook: String,
    /// Instructions that the verifier walked through; `null` before Linux 5.16, which does not report them.
    pub verified_instructions: Option<u32>,
}

/// What identifies a socket in the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketIdentity {
    /// The kernel's socket cookie, which no other socket ever has.
    Cookie,
    /// The socket's address, which another socket may have after it.
    Address,
}

impl SocketIdentity {
    const ALL: [Self; 2] = [Self::Cookie, Self::Address];

    pub fn name(self) -> &'static str {
        match self {
            Self::Cookie => "socket cookie",
            Self::Address => "socket address",
        }
    }
}

impl fmt::Display for SocketIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

serialized_by_name!(SocketIdentity);

impl SignalReport {
    pub(super) fn given(signal: Signal, way: &Way, tried: Vec<Attempt>) -> Self {
        let hook = Some(way.hook());
        Self { key: signal, signal: signal.spec().title, way: Some(way.kind()), hook, tried, lost: way.lost }
    }

    pub(super) fn missing(signal: Signal, tried: Vec<Attempt>) -> Self {
        let spec = signal.spec();
        Self { key: signal, signal: spec.title, way: None, hook: None, tried, lost: Some(spec.lost) }
    }
}

impl Hooks {
    /// Whether something is missing or less exact than on the best kernel.
    pub fn is_reduced(&self) -> bool {
        self.signals.iter().any(|signal| signal.lost.is_some())
    }

    /// The way that gives a signal, `None` where none does.
    pub fn way(&self, signal: Signal) -> Option<WayKind> {
        self.signals.iter().find(|report| report.key == signal)?.way
    }

    /// What the records of the attached programs report.
    pub fn reported(&self) -> ReportedFacts {
        let by_program = |signal| self.way(signal).is_some_and(|way| way != WayKind::Inferred);
        ReportedFacts {
            minisock_ends: by_program(Signal::Minisock),
            time_waits: by_program(Signal::TimeWait),
            identity_is_address: self.identity == Some(SocketIdentity::Address),
            errnos_missing: self.way(Signal::State) == Some(WayKind::Tracepoint),
            overflows: by_program(Signal::Overflow),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(ways: &[(Signal, WayKind)], identity: SocketIdentity) -> Hooks {
        let given = |(signal, kind): &(Signal, WayKind)| {
            let way = signal.spec().ways.iter().find(|way| way.kind() == *kind).unwrap();
            SignalReport::given(*signal, way, Vec::new())
        };
        Hooks { identity: Some(identity), signals: ways.iter().map(given).collect(), ..Hooks::default() }
    }

    #[test]
    fn an_identity_has_one_name_in_text_and_in_json() {
        for identity in [SocketIdentity::Cookie, SocketIdentity::Address] {
            assert_eq!(serde_json::to_value(identity).unwrap(), identity.name());
        }
    }

    #[test]
    fn what_records_report_follows_from_the_ways() {
        let best = [
            (Signal::State, WayKind::TpBtf),
            (Signal::Accept, WayKind::Kretprobe),
            (Signal::Minisock, WayKind::Fentry),
            (Signal::TimeWait, WayKind::Kprobe),
        ];
        let reported = ReportedFacts { minisock_ends: true, time_waits: true, ..ReportedFacts::default() };
        assert_eq!(hooks(&best, SocketIdentity::Cookie).reported(), reported);
        let least = [
            (Signal::State, WayKind::Tracepoint),
            (Signal::Accept, WayKind::Inferred),
            (Signal::Minisock, WayKind::Inferred),
            (Signal::TimeWait, WayKind::Inferred),
        ];
        let reported =
            ReportedFacts { identity_is_address: true, errnos_missing: true, ..ReportedFacts::default() };
        assert_eq!(hooks(&least, SocketIdentity::Address).reported(), reported);
    }

    #[test]
    fn a_signal_that_no_way_gives_is_a_loss() {
        let mut hooks = hooks(&[(Signal::State, WayKind::TpBtf)], SocketIdentity::Cookie);
        assert!(!hooks.is_reduced());
        for signal in Signal::ALL {
            hooks.signals.truncate(1);
            hooks.signals.push(SignalReport::missing(signal, Vec::new()));
            assert!(hooks.is_reduced(), "{signal}");
            assert!(hooks.signals[1].lost.is_some_and(|lost| !lost.is_empty()), "{signal}");
        }
    }
}
