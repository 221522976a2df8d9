//! The signals that tcpwatch can have, and for each the ways to get it, best first.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::kernel::{btf::Btf, probes::ProbeError};

/// One thing tcpwatch can know, and how it gets to know it here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Signal {
    /// What `--hook` calls it.
    pub key: &'static str,
    pub signal: &'static str,
    /// The hook that serves it; `null` when nothing does.
    pub hook: Option<&'static str>,
    /// Why a better hook is not used, with the kernel's own words.
    pub tried: Vec<Attempt>,
    /// What is missing or less exact because of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Attempt {
    pub hook: &'static str,
    pub error: String,
}

/// A signal as it can be had.
pub(crate) struct Spec {
    pub(crate) key: &'static str,
    pub(crate) signal: &'static str,
    pub(crate) ways: &'static [Way],
    /// What is missing when no way is open.
    pub(crate) without: &'static str,
}

/// A way to get a signal.
pub(crate) struct Way {
    /// What `--hook` calls it.
    pub(crate) way: &'static str,
    /// As shown.
    pub(crate) hook: &'static str,
    /// The programs of the object, which serve together or not at all; what follows from other signals needs none.
    pub(crate) programs: [Option<Program>; 2],
    /// What is missing or less exact compared with the best way.
    pub(crate) lost: Option<&'static str>,
}

pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) attach: Attach,
}

/// What a program is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attach {
    /// With the number of arguments that the program reads, the kernel may pass more.
    TpBtf(&'static str, usize),
    RawTp(&'static str),
    Fentry(&'static str),
    /// With the number of parameters that the program was written for.
    Fexit(&'static str, usize),
    Kprobe(&'static str),
    /// Whose program tells the arguments apart by itself: of a module's function the kernel's types say nothing.
    KprobeUntyped(&'static str),
    Kretprobe(&'static str),
    /// Category and name.
    Tracepoint(&'static str, &'static str),
    Iter(&'static str),
}

impl Attach {
    /// The kernel's verifier has to know the types of what is passed.
    pub(crate) fn is_typed(self) -> bool {
        matches!(self, Self::TpBtf(..) | Self::Fentry(_) | Self::Fexit(..) | Self::Iter(_))
    }

    /// Whether the kernel passes what the program expects; `None` is "yes".
    pub(crate) fn mismatch(self, btf: &Btf<'_>) -> Option<String> {
        let first_is = |parameters: Option<Vec<Option<&[u8]>>>, wanted: &str| match parameters {
            None => Some("this kernel's types do not have it".to_owned()),
            Some(parameters) if parameters.first() == Some(&Some(wanted.as_bytes())) => None,
            Some(_) => Some(format!("its first argument is no `struct {wanted} *` on this kernel")),
        };
        let has = |parameters: Option<Vec<Option<&[u8]>>>, count: usize| match parameters {
            None => Some("this kernel's types do not have it".to_owned()),
            Some(parameters) if parameters.len() == count => None,
            Some(parameters) => Some(format!("it has {} arguments on this kernel", parameters.len())),
        };
        let told = match self {
            Self::TpBtf(name, count) => btf.tracepoint_parameters(name).map(|parameters| match parameters {
                Some(parameters) if parameters.len() < count => {
                    Some(format!("it has {} arguments on this kernel", parameters.len()))
                }
                parameters => first_is(parameters, "sock"),
            }),
            Self::RawTp(name) => {
                btf.tracepoint_parameters(name).map(|parameters| first_is(parameters, "sock"))
            }
            Self::Fentry(name) | Self::Kprobe(name) => btf.parameters(name).map(|parameters| {
                first_is(parameters, if name == TWSK_KILL { "inet_timewait_sock" } else { "sock" })
            }),
            Self::Fexit(name, count) => btf.parameters(name).map(|parameters| has(parameters, count)),
            Self::KprobeUntyped(_) | Self::Kretprobe(_) | Self::Tracepoint(..) | Self::Iter(_) => {
                return None;
            }
        };
        told.unwrap_or_else(|error| Some(error.to_string()))
    }
}

/// Named where its argument's type is decided.
const TWSK_KILL: &str = "inet_twsk_kill";

const fn way(
    way: &'static str,
    hook: &'static str,
    name: &'static str,
    attach: Attach,
    lost: Option<&'static str>,
) -> Way {
    Way { way, hook, programs: [Some(Program { name, attach }), None], lost }
}

/// A way that follows from other signals.
const fn inferred(hook: &'static str, lost: &'static str) -> Way {
    Way { way: "inferred", hook, programs: [None, None], lost: Some(lost) }
}

const NO_TYPES: &str = "network namespaces, executables and cgroups of processes, unread bytes, retransmits before the \
                        start, why connects fail, resets and who holds what: this kernel's types are not known";
const SKIPPED: &str = "what happens inside another probe on the same processor is skipped, uncounted";

/// Named where other programs are told whether it is followed.
pub(crate) const OUT_OF_ORDER: &str = "out_of_order";

/// Without these there is nothing to watch.
pub(crate) const STATE: Spec = Spec {
    key: "state",
    signal: "state changes",
    ways: &[
        way(
            "tp_btf",
            "tp_btf inet_sock_set_state",
            "state_tp_btf",
            Attach::TpBtf("inet_sock_set_state", 3),
            None,
        ),
        way(
            "raw_tp",
            "raw_tp inet_sock_set_state",
            "state_raw_tp",
            Attach::RawTp("inet_sock_set_state"),
            None,
        ),
        way(
            "fentry",
            "fentry tcp_set_state",
            "state_fentry",
            Attach::Fentry("tcp_set_state"),
            Some("that a socket begins to listen is known from sweeps only"),
        ),
        way(
            "kprobe",
            "kprobe tcp_set_state",
            "state_kprobe",
            Attach::Kprobe("tcp_set_state"),
            Some(
                "that a socket begins to listen is known from sweeps only; what happens inside another probe on the \
                 same processor is skipped, uncounted",
            ),
        ),
        way(
            "tracepoint",
            "tracepoint sock:inet_sock_set_state",
            "state_tracepoint",
            Attach::Tracepoint("sock", "inet_sock_set_state"),
            Some(NO_TYPES),
        ),
    ],
    without: "everything",
};

/// In the order in which they are shown.
pub(crate) const OTHERS: [Spec; 15] = [
    Spec {
        key: "retransmit",
        signal: "retransmits",
        ways: &[
            way(
                "tp_btf",
                "tp_btf tcp_retransmit_skb",
                "retransmit_tp_btf",
                Attach::TpBtf("tcp_retransmit_skb", 2),
                None,
            ),
            way(
                "raw_tp",
                "raw_tp tcp_retransmit_skb",
                "retransmit_raw_tp",
                Attach::RawTp("tcp_retransmit_skb"),
                None,
            ),
            way(
                "tracepoint",
                "tracepoint tcp:tcp_retransmit_skb",
                "retransmit_tracepoint",
                Attach::Tracepoint("tcp", "tcp_retransmit_skb"),
                Some(
                    "retransmitted packets are counted, not their segments nor bytes, and only SYNs are told apart",
                ),
            ),
        ],
        without: "retransmits are seen only when a connection ends",
    },
    Spec {
        key: "retransmit_failed",
        signal: "retransmits that failed",
        ways: &[
            way(
                "tp_btf",
                "tp_btf tcp_retransmit_skb",
                "retransmit_failed_tp_btf",
                Attach::TpBtf("tcp_retransmit_skb", 3),
                None,
            ),
            way(
                "fexit",
                "fexit tcp_retransmit_skb",
                "retransmit_failed_fexit",
                Attach::Fexit("tcp_retransmit_skb", 3),
                Some(
                    "failures of loss probes, and those in fast recovery where the compiler inlined the function",
                ),
            ),
        ],
        without: "retransmits that the kernel tried and could not send are not counted",
    },
    Spec {
        key: "congestion",
        signal: "head-of-line blocking",
        ways: &[
            way(
                "tp_btf",
                "tp_btf tcp_cong_state_set",
                "congestion_tp_btf",
                Attach::TpBtf("tcp_cong_state_set", 2),
                None,
            ),
            way(
                "raw_tp",
                "raw_tp tcp_cong_state_set",
                "congestion_raw_tp",
                Attach::RawTp("tcp_cong_state_set"),
                None,
            ),
        ],
        without: "of head-of-line blocking only what a loss probe ended is told",
    },
    Spec {
        key: OUT_OF_ORDER,
        signal: "received data that waits",
        // Not the best first: it runs for many of the segments that are received, so it is for those who ask for it.
        ways: &[
            Way {
                way: "inferred",
                hook: "inferred from the socket's count of packets (how long they wait: --hook out_of_order=fexit)",
                programs: [None, None],
                lost: None,
            },
            way(
                "fexit",
                "fexit tcp_data_queue",
                "out_of_order_fexit",
                Attach::Fexit("tcp_data_queue", 2),
                None,
            ),
        ],
        without: "how long received data waits behind a segment that the peer must repeat is not told",
    },
    Spec {
        key: "synack",
        signal: "retransmits of SYN-ACKs",
        ways: &[
            way(
                "tp_btf",
                "tp_btf tcp_retransmit_synack",
                "synack_tp_btf",
                Attach::TpBtf("tcp_retransmit_synack", 1),
                None,
            ),
            way(
                "raw_tp",
                "raw_tp tcp_retransmit_synack",
                "synack_raw_tp",
                Attach::RawTp("tcp_retransmit_synack"),
                None,
            ),
            way(
                "tracepoint",
                "tracepoint tcp:tcp_retransmit_synack",
                "synack_tracepoint",
                Attach::Tracepoint("tcp", "tcp_retransmit_synack"),
                None,
            ),
        ],
        without: "retransmits of SYN-ACKs are not counted",
    },
    Spec {
        key: "send_reset",
        signal: "resets sent",
        ways: &[
            way(
                "tp_btf",
                "tp_btf tcp_send_reset",
                "send_reset_tp_btf",
                Attach::TpBtf("tcp_send_reset", 2),
                None,
            ),
            way(
                "raw_tp",
                "raw_tp tcp_send_reset",
                "send_reset_raw_tp",
                Attach::RawTp("tcp_send_reset"),
                None,
            ),
        ],
        without: "resets that were sent are not counted, nor is it known why",
    },
    Spec {
        key: "receive_reset",
        signal: "resets received",
        ways: &[
            way(
                "tp_btf",
                "tp_btf tcp_receive_reset",
                "receive_reset_tp_btf",
                Attach::TpBtf("tcp_receive_reset", 1),
                None,
            ),
            way(
                "raw_tp",
                "raw_tp tcp_receive_reset",
                "receive_reset_raw_tp",
                Attach::RawTp("tcp_receive_reset"),
                None,
            ),
        ],
        without: "resets that were received are not counted, nor what they threw away",
    },
    Spec {
        key: "policy_reset",
        signal: "resets by a packet filter",
        ways: &[
            Way {
                way: "kprobe",
                hook: "kprobe nf_send_reset, nf_send_reset6",
                programs: [
                    Some(Program {
                        name: "policy_reset_v4_kprobe",
                        attach: Attach::KprobeUntyped("nf_send_reset"),
                    }),
                    Some(Program {
                        name: "policy_reset_v6_kprobe",
                        attach: Attach::KprobeUntyped("nf_send_reset6"),
                    }),
                ],
                lost: None,
            },
            inferred(
                "inferred from resets received",
                "resets that a packet filter of this machine sends look as if the peer had sent them, and those it sends \
                 to peers are not told; the functions may be missing because no such rule was in force yet",
            ),
        ],
        without: "",
    },
    Spec {
        key: "connect",
        signal: "connects that fail at once",
        ways: &[Way {
            way: "fexit",
            hook: "fexit tcp_v4_connect, tcp_v6_connect",
            programs: [
                Some(Program { name: "connect_v4_fexit", attach: Attach::Fexit("tcp_v4_connect", 3) }),
                Some(Program { name: "connect_v6_fexit", attach: Attach::Fexit("tcp_v6_connect", 3) }),
            ],
            lost: None,
        }],
        without: "connects that fail before SYN_SENT, for want of a route for one, are not counted",
    },
    Spec {
        key: "close",
        signal: "close by the owner",
        ways: &[
            way("fentry", "fentry tcp_close", "close_fentry", Attach::Fentry("tcp_close"), None),
            way("kprobe", "kprobe tcp_close", "close_kprobe", Attach::Kprobe("tcp_close"), Some(SKIPPED)),
            inferred(
                "inferred from state changes",
                "who closed is not known for abortive closes and for closes after shutdown()",
            ),
        ],
        without: "",
    },
    Spec {
        key: "accept",
        signal: "owner at accept",
        ways: &[
            way("fexit", "fexit inet_csk_accept", "accept_fexit", Attach::Fexit("inet_csk_accept", 2), None),
            way(
                "fexit",
                "fexit inet_csk_accept",
                "accept_fexit_4",
                Attach::Fexit("inet_csk_accept", 4),
                None,
            ),
            way(
                "kretprobe",
                "kretprobe inet_csk_accept",
                "accept_kprobe",
                Attach::Kretprobe("inet_csk_accept"),
                Some("accepts beyond the number that the kernel follows at once are missed, uncounted"),
            ),
            inferred(
                "the listener, then whoever a sweep finds or closes it",
                "which of several workers accepted is known at the next sweep (asked-for ones included), or when it \
                 closes",
            ),
        ],
        without: "",
    },
    Spec {
        key: "minisock",
        signal: "end of TIME_WAIT and orphaned FIN_WAIT2",
        ways: &[
            way("fentry", "fentry inet_twsk_kill", "minisock_fentry", Attach::Fentry(TWSK_KILL), None),
            way(
                "kprobe",
                "kprobe inet_twsk_kill",
                "minisock_kprobe",
                Attach::Kprobe(TWSK_KILL),
                Some(SKIPPED),
            ),
            inferred(
                "computed from the kernel's timer wheel, corrected by iter tcp",
                "a minisock that a reset or a reused port ends early is noticed with the next sweep only",
            ),
        ],
        without: "",
    },
    Spec {
        key: "held",
        signal: "sockets held by processes",
        ways: &[
            way("iter", "iter task_file", "held_iter", Attach::Iter("task_file"), None),
            way("iter", "iter task_file", "held_iter_probing", Attach::Iter("task_file"), None),
        ],
        without: "connections opened before the start stay unknown until they change, and passed descriptors are \
                  followed only to whoever closes them",
    },
    Spec {
        key: "unheld",
        signal: "sockets held by nobody",
        ways: &[way("iter", "iter tcp", "unheld_iter", Attach::Iter("tcp"), None)],
        without: "TIME_WAIT and orphaned FIN_WAIT2 are inferred; lost records are repaired only for held sockets",
    },
    Spec {
        key: "options",
        signal: "socket options",
        ways: &[way("iter", "iter tcp", "options_iter", Attach::Iter("tcp"), None)],
        without: "the options of a connection's socket are not told",
    },
];

/// `close=kprobe`: this way for this signal, and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub key: &'static str,
    pub way: &'static str,
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, way) =
            text.split_once('=').ok_or_else(|| format!("`{text}` is not of the form SIGNAL=WAY"))?;
        let specs = || std::iter::once(&STATE).chain(&OTHERS);
        let keys = || specs().map(|spec| spec.key).collect::<Vec<_>>().join(", ");
        let spec = specs()
            .find(|spec| spec.key == key)
            .ok_or_else(|| format!("`{key}` is no signal; there are: {}", keys()))?;
        let mut ways: Vec<_> = spec.ways.iter().map(|way| way.way).collect();
        ways.dedup();
        match ways.iter().find(|known| **known == way) {
            Some(way) => Ok(Self { key: spec.key, way }),
            None => Err(format!("`{way}` is no way to get {key}; there are: {}", ways.join(", "))),
        }
    }
}

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Spec {
    /// The ways to try, in order.
    pub(crate) fn open<'a>(&self, choices: &'a [Choice]) -> impl Iterator<Item = &'static Way> + use<'a> {
        let chosen = choices.iter().rev().find(|choice| choice.key == self.key).map(|choice| choice.way);
        self.ways.iter().filter(move |way| chosen.is_none_or(|chosen| way.way == chosen))
    }

    pub(crate) fn served(&self, way: &'static Way, tried: Vec<Attempt>) -> Signal {
        Signal { key: self.key, signal: self.signal, hook: Some(way.hook), tried, lost: way.lost }
    }

    pub(crate) fn unserved(&self, tried: Vec<Attempt>) -> Signal {
        Signal { key: self.key, signal: self.signal, hook: None, tried, lost: Some(self.without) }
    }
}

/// State changes could not be had.
pub(crate) fn no_state_changes(tried: &[Attempt]) -> ProbeError {
    let tried: Vec<_> = tried.iter().map(|attempt| format!("{}: {}", attempt.hook, attempt.error)).collect();
    ProbeError::NoStateChanges(tried.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_names_a_signal_and_one_of_its_ways() {
        assert_eq!("close=kprobe".parse(), Ok(Choice { key: "close", way: "kprobe" }));
        for (text, said) in [
            ("close", "SIGNAL=WAY"),
            (
                "open=kprobe",
                "state, retransmit, retransmit_failed, congestion, out_of_order, synack, send_reset, receive_reset, \
                 policy_reset, connect, close, accept, minisock, held, unheld, options",
            ),
            ("close=tp_btf", "fentry, kprobe, inferred"),
        ] {
            let error = text.parse::<Choice>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn the_last_choice_for_a_signal_holds_and_leaves_the_others_alone() {
        let choices = ["state=raw_tp", "state=kprobe"].map(|text| text.parse().unwrap());
        let names = |spec: &Spec| spec.open(&choices).map(|way| way.way).collect::<Vec<_>>();
        assert_eq!(names(&STATE), ["kprobe"]);
        assert_eq!(names(&OTHERS[4]), ["tp_btf", "raw_tp", "tracepoint"]);
    }
}
