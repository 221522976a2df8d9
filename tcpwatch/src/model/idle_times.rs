//! How long connections had been idle when a side closed them: the latest samples for each server, for the time-outs behind
//! them; and how soon clients close what their peer has closed.
//!
//! Bounded: [`MAX_KEYS`] of each, the least recently sampled goes first.

use std::{collections::VecDeque, hash::Hash, sync::Arc};

use rustc_hash::FxHashMap;

use crate::{
    model::groups::{Closer, Peer, Role},
    tcp::modes::Sample,
};

/// Whose idle connections, and who closed them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdleKey {
    /// Inode of the network namespace: loopback addresses mean something else in each.
    pub netns: u32,
    pub role: Role,
    /// For clients the address and port of the server, for servers their own port.
    pub server: Peer,
    pub closer: Closer,
}

/// Which client, of which server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientKey {
    /// Inode of the network namespace.
    pub netns: u32,
    /// The name of its processes; `None` where the owner is not known.
    pub process: Option<Arc<str>>,
    pub server: Peer,
}

const MAX_KEYS: usize = 1024;
const MAX_SAMPLES: usize = 256;
const MAX_DWELLS: usize = 64;
/// At most this many samples of a second are kept, so that those of one moment do not displace all others.
const MAX_IN_SECOND: usize = 16;
const SECOND_NS: u64 = 1_000_000_000;
/// Shorter ones are pauses of an exchange.
const MIN_IDLE_NS: u64 = 100_000_000;

/// The samples.
#[derive(Debug, Default)]
pub struct IdleTimes {
    closes: FxHashMap<IdleKey, VecDeque<Sample>>,
    dwells: FxHashMap<ClientKey, VecDeque<Sample>>,
}

impl IdleTimes {
    /// A side closed a connection that had been idle for so long.
    pub(crate) fn sample_close(&mut self, key: IdleKey, idle_ns: u64, now_ns: u64) {
        if idle_ns >= MIN_IDLE_NS {
            sample(&mut self.closes, key, Sample { at_ns: now_ns, ms: millis(idle_ns) }, MAX_SAMPLES);
        }
    }

    /// A client closed an idle connection so long after its peer had, and sent nothing in between.
    pub(crate) fn sample_dwell(&mut self, key: ClientKey, dwell_ns: u64, now_ns: u64) {
        sample(&mut self.dwells, key, Sample { at_ns: now_ns, ms: millis(dwell_ns) }, MAX_DWELLS);
    }

    /// The idle times of the connections that this side closed, oldest first.
    pub fn closes(&self, key: &IdleKey) -> impl ExactSizeIterator<Item = Sample> {
        self.closes.get(key).map(VecDeque::iter).unwrap_or_default().copied()
    }

    /// How long after its peer the client closed idle connections: the median of 5 or more.
    pub fn median_dwell_ms(&self, key: &ClientKey) -> Option<u32> {
        let samples = self.dwells.get(key).filter(|samples| samples.len() >= 5)?;
        let mut values: Vec<u32> = samples.iter().map(|sample| sample.ms).collect();
        values.sort_unstable();
        Some(values[values.len() / 2])
    }
}

fn millis(nanos: u64) -> u32 {
    u32::try_from(nanos / 1_000_000).unwrap_or(u32::MAX)
}

fn sample<K: Hash + Eq + Clone>(
    all: &mut FxHashMap<K, VecDeque<Sample>>,
    key: K,
    sample: Sample,
    limit: usize,
) {
    if all.len() >= MAX_KEYS && !all.contains_key(&key) {
        let last = |samples: &VecDeque<Sample>| samples.back().map(|sample| sample.at_ns);
        let oldest = all.iter().min_by_key(|(_, samples)| last(samples)).map(|(key, _)| key.clone());
        oldest.map(|key| all.remove(&key));
    }
    let samples = all.entry(key).or_default();
    let is_full_second = samples.len().checked_sub(MAX_IN_SECOND).is_some_and(|first| {
        samples.get(first).is_some_and(|first| first.at_ns.saturating_add(SECOND_NS) > sample.at_ns)
    });
    if is_full_second {
        return;
    }
    if samples.len() == limit {
        samples.pop_front();
    }
    samples.push_back(sample);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> IdleKey {
        let (role, server, closer) = (Role::Server, Peer::LocalPort(port), Closer::Local);
        IdleKey { netns: 1, role, server, closer }
    }

    #[test]
    fn the_latest_samples_are_kept_of_the_servers_that_were_sampled_last() {
        let mut times = IdleTimes::default();
        for second in 0..400 {
            times.sample_close(key(1), SECOND_NS, second * SECOND_NS);
        }
        assert_eq!(times.closes(&key(1)).len(), MAX_SAMPLES);
        assert_eq!(times.closes(&key(1)).next().map(|sample| sample.at_ns), Some(144 * SECOND_NS));
        for port in 2..=1025 {
            times.sample_close(key(port), SECOND_NS, 500 * SECOND_NS);
        }
        assert_eq!((times.closes(&key(1)).len(), times.closes.len()), (0, MAX_KEYS));
    }

    #[test]
    fn a_second_gives_a_few_samples_and_a_pause_none() {
        let mut times = IdleTimes::default();
        for index in 0..100 {
            times.sample_close(key(1), SECOND_NS, index);
            times.sample_close(key(2), MIN_IDLE_NS - 1, index);
        }
        assert_eq!((times.closes(&key(1)).len(), times.closes(&key(2)).len()), (MAX_IN_SECOND, 0));
        times.sample_close(key(1), SECOND_NS, SECOND_NS);
        assert_eq!(times.closes(&key(1)).len(), MAX_IN_SECOND + 1);
    }
}
