//! `--hook SIGNAL=WAY`: the way that the user asks for.

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::kernel::probes::{Signal, Way, WayKind};

/// `close=kprobe`: this way for this signal, and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub signal: Signal,
    pub way: WayKind,
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, name) =
            text.split_once('=').ok_or_else(|| format!("`{text}` is not of the form SIGNAL=WAY"))?;
        let signal = Signal::ALL.into_iter().find(|signal| signal.key() == key).ok_or_else(|| {
            let keys = Signal::ALL.map(Signal::key).join(", ");
            format!("`{key}` is not a signal; the signals are: {keys}")
        })?;
        let ways = signal.spec().ways;
        let way = ways.iter().map(Way::kind).find(|kind| kind.name() == name).ok_or_else(|| {
            let mut names: Vec<_> = ways.iter().map(|way| way.kind().name()).collect();
            names.dedup();
            format!("`{name}` is not a way to get {key}; the ways are: {}", names.join(", "))
        })?;
        Ok(Self { signal, way })
    }
}

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// The way that was asked for; of several choices for one signal the last holds.
pub(crate) fn chosen(choices: &[Choice], signal: Signal) -> Option<WayKind> {
    choices.iter().rev().find(|choice| choice.signal == signal).map(|choice| choice.way)
}

/// The ways to try for a signal, in order.
pub(crate) fn allowed(choices: &[Choice], signal: Signal) -> impl Iterator<Item = &'static Way> + use<> {
    let chosen = chosen(choices, signal);
    signal.spec().ways.iter().filter(move |way| chosen.is_none_or(|chosen| way.kind() == chosen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_names_a_signal_and_one_of_its_ways() {
        let choice = Choice { signal: Signal::Close, way: WayKind::Kprobe };
        assert_eq!("close=kprobe".parse(), Ok(choice));
        for (text, said) in [
            ("close", "SIGNAL=WAY"),
            (
                "open=kprobe",
                "state, retransmit, retransmit_failed, congestion, out_of_order, synack, overflow, send_reset, \
                 receive_reset, policy_reset, connect, close, accept, minisock, time_wait, held, unheld, namespaces, \
                 options",
            ),
            ("close=tp_btf", "fentry, kprobe, inferred"),
        ] {
            let error = text.parse::<Choice>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn every_way_of_every_signal_can_be_chosen() {
        for signal in Signal::ALL {
            for way in signal.spec().ways {
                let choice = Choice { signal, way: way.kind() };
                assert_eq!(format!("{signal}={}", way.kind()).parse(), Ok(choice));
            }
        }
    }

    #[test]
    fn the_last_choice_for_a_signal_holds_and_leaves_the_others_alone() {
        let choices = ["state=raw_tp", "state=kprobe"].map(|text| text.parse().unwrap());
        let kinds = |signal| allowed(&choices, signal).map(Way::kind).collect::<Vec<_>>();
        assert_eq!(kinds(Signal::State), [WayKind::Kprobe]);
        assert_eq!(kinds(Signal::Synack), [WayKind::TpBtf, WayKind::RawTp, WayKind::Tracepoint]);
    }
}
