//! The signals: for each, a file that says what it is called, in which ways it can be had, which members of kernel
//! structs its programs read, and what is missing without it.
//!
//! A new signal is a variant of [`Signal`] and a file here; `/status`, `tcpwatch check`, `--hook` and docs/signals.md
//! follow from them.

mod accept;
mod close;
mod congestion;
mod connect;
mod held;
mod minisock;
mod namespaces;
mod options;
mod out_of_order;
mod overflow;
mod policy_reset;
mod receive_reset;
mod retransmit;
mod retransmit_failed;
mod send_reset;
mod state;
mod synack;
mod time_wait;
mod unheld;

use std::fmt;

use crate::{
    kernel::{btf::offsets::Member, probes::way::Way},
    tcp::serialized_by_name,
};

/// One thing that tcpwatch can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The only one that tcpwatch cannot run without.
    State,
    Retransmit,
    RetransmitFailed,
    Congestion,
    OutOfOrder,
    Synack,
    Overflow,
    SendReset,
    ReceiveReset,
    PolicyReset,
    Connect,
    Close,
    Accept,
    Minisock,
    TimeWait,
    Held,
    Unheld,
    Namespaces,
    Options,
}

impl Signal {
    /// Every signal, in the order in which they are attached and shown.
    pub const ALL: [Self; 19] = [
        Self::State,
        Self::Retransmit,
        Self::RetransmitFailed,
        Self::Congestion,
        Self::OutOfOrder,
        Self::Synack,
        Self::Overflow,
        Self::SendReset,
        Self::ReceiveReset,
        Self::PolicyReset,
        Self::Connect,
        Self::Close,
        Self::Accept,
        Self::Minisock,
        Self::TimeWait,
        Self::Held,
        Self::Unheld,
        Self::Namespaces,
        Self::Options,
    ];

    pub fn spec(self) -> &'static Spec {
        match self {
            Self::State => &state::SPEC,
            Self::Retransmit => &retransmit::SPEC,
            Self::RetransmitFailed => &retransmit_failed::SPEC,
            Self::Congestion => &congestion::SPEC,
            Self::OutOfOrder => &out_of_order::SPEC,
            Self::Synack => &synack::SPEC,
            Self::Overflow => &overflow::SPEC,
            Self::SendReset => &send_reset::SPEC,
            Self::ReceiveReset => &receive_reset::SPEC,
            Self::PolicyReset => &policy_reset::SPEC,
            Self::Connect => &connect::SPEC,
            Self::Close => &close::SPEC,
            Self::Accept => &accept::SPEC,
            Self::Minisock => &minisock::SPEC,
            Self::TimeWait => &time_wait::SPEC,
            Self::Held => &held::SPEC,
            Self::Unheld => &unheld::SPEC,
            Self::Namespaces => &namespaces::SPEC,
            Self::Options => &options::SPEC,
        }
    }

    pub fn key(self) -> &'static str {
        self.spec().key
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

serialized_by_name!(Signal, key);

/// What one signal needs and gives.
#[derive(Debug)]
pub struct Spec {
    /// As `--hook` spells it.
    pub key: &'static str,
    /// The signal's name for people.
    pub title: &'static str,
    /// Best first, unless the signal's file says otherwise. Ways of one kind follow each other: programs for the same
    /// hook on different kernels.
    pub ways: &'static [Way],
    /// Members of kernel structs that its programs need beside those that all programs need: without one of them the
    /// signal is had only by a way that reads none, if there is one.
    pub(crate) members: &'static [&'static [Member]],
    /// What is missing when no way works.
    pub lost: &'static str,
}

impl Spec {
    pub(crate) fn members(&self) -> impl Iterator<Item = &'static Member> + use<> {
        self.members.iter().copied().flatten()
    }
}

/// A loss of every kprobe.
const KPROBE_SKIPPED: &str = "calls made inside another probe on the same processor are skipped, uncounted";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_is_listed_once_with_a_key_of_its_own() {
        for (index, signal) in Signal::ALL.into_iter().enumerate() {
            assert_eq!(signal as usize, index, "{signal}");
            let same = Signal::ALL.into_iter().filter(|other| other.key() == signal.key()).count();
            assert_eq!(same, 1, "{signal}");
            assert_eq!(serde_json::to_value(signal).unwrap(), signal.key());
        }
    }

    #[test]
    fn ways_of_one_kind_follow_each_other() {
        for signal in Signal::ALL {
            let mut kinds: Vec<_> = signal.spec().ways.iter().map(Way::kind).collect();
            kinds.dedup();
            for kind in &kinds {
                assert_eq!(kinds.iter().filter(|other| *other == kind).count(), 1, "{signal}={kind}");
            }
        }
    }
}
