//! What the kernel reports of connections, summed by process, role and peer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    events::decode::Ends,
    http::api::transfer::look::FirstLook,
    kernel::sock_diag::{Asking, Carried, Figures, Target},
    model::{
        groups::{Peer, Role},
        live::Times,
        table::Conn,
    },
    node::Node,
    tcp::answer_time::AnswerTime,
};

/// Sums over connections that live now, each since it began.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub(crate) struct Sum {
    /// Number of connections.
    pub connections: u64,
    #[serde(flatten)]
    pub carried: Carried,
    /// Bytes written by the applications and not yet acknowledged.
    pub send_queue_bytes: u64,
    /// Bytes received and not read by the applications.
    pub receive_queue_bytes: u64,
    /// Bytes a second that reached the peers, as last measured of each connection.
    pub delivery_bytes_per_second: u64,
    /// Seconds in which there was something to send or unacknowledged.
    pub busy_seconds: f64,
    /// Seconds of `busy_seconds` in which the peers had no room.
    pub peer_window_limited_seconds: f64,
    /// Seconds of `busy_seconds` in which this side's send buffers were too small.
    pub buffer_limited_seconds: f64,
    /// Probes of closed windows that the peers have not answered.
    pub window_probes: u64,
    /// Packets that came before an earlier part of the data.
    pub out_of_order_packets: u64,
    #[serde(skip)]
    pub rtt: Times,
    #[serde(skip)]
    pub least_rtt: Times,
    #[serde(skip)]
    pub answered: Times,
    #[serde(skip)]
    pub awaited: Times,
    /// One of the connections that have waited for a moment.
    #[serde(skip)]
    pub asking: Option<Asking>,
    /// Of `carried`, since the first look.
    #[serde(skip)]
    pub lately: Carried,
}

/// A connection that waits longer is not watched: its answer is not to be expected in a moment.
const WATCHED_WAIT: Duration = Duration::from_millis(150);

/// Connections that wait for an answer.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub(crate) struct Waiting {
    /// Number of connections that wait.
    pub connections: u64,
    /// Seconds that the longest one has waited.
    pub longest_seconds: f64,
}

impl Sum {
    fn add(&mut self, figures: &Figures, role: Role) {
        self.connections += 1;
        self.carried += figures.carried;
        self.send_queue_bytes += u64::from(figures.send_queue_bytes);
        self.receive_queue_bytes += u64::from(figures.receive_queue_bytes);
        self.delivery_bytes_per_second += figures.delivery_rate;
        self.busy_seconds += figures.busy_seconds;
        self.peer_window_limited_seconds += figures.peer_window_limited_seconds;
        self.buffer_limited_seconds += figures.buffer_limited_seconds;
        self.window_probes += u64::from(figures.window_probes);
        self.out_of_order_packets += u64::from(figures.out_of_order_packets);
        if let Some(seconds) = figures.rtt_seconds {
            self.rtt.add(seconds);
        }
        if let Some(seconds) = figures.least_rtt_seconds {
            self.least_rtt.add(seconds);
        }
        match figures.answer {
            // A server that sends last has answered.
            _ if role != Role::Client => {}
            Some(AnswerTime::Came(took)) => self.answered.add(took.as_secs_f64()),
            Some(AnswerTime::Awaited(since)) => self.awaited.add(since.as_secs_f64()),
            None => {}
        }
    }
}

impl Waiting {
    /// `None` when none does.
    pub(crate) fn of(times: Times) -> Option<Self> {
        (times.count() > 0).then(|| Self { connections: times.count(), longest_seconds: times.most() })
    }
}

pub(crate) type Key = (Option<Arc<str>>, Role, Peer);

#[derive(Default)]
pub(crate) struct Sums {
    pub by_key: FxHashMap<Key, Sum>,
    first: Option<FirstLook>,
    known: Known,
}

/// Which connection the kernel's counts are of.
#[derive(Default)]
pub(crate) struct Known {
    /// Where connections are not known by the kernel's cookies: by what they are known.
    by_ends: Option<FxHashMap<Ends, u64>>,
}

impl Sums {
    pub(crate) fn since(first: Option<FirstLook>) -> Self {
        Self { first, ..Self::default() }
    }

    /// Books a part. What ended meanwhile, or is not known yet, is left out.
    pub(crate) fn add(&mut self, node: &Node, part: &[Figures]) {
        for figures in part {
            if let Some(conn) = self.known.find(node, figures) {
                let process = conn.process.map(|id| Arc::clone(&node.tracker.processes().get(id).comm));
                let sum = self.by_key.entry((process, conn.role, conn.peer())).or_default();
                sum.add(figures, conn.role);
                if let Some(AnswerTime::Awaited(since)) = figures.answer
                    && conn.role == Role::Client
                    && sum.asking.is_none()
                    && since < WATCHED_WAIT
                    && let Some(sent) = Instant::now().checked_sub(since)
                {
                    let target = Target::of(conn, node.ways_to(conn), Some(figures.cookie));
                    let received_segments = figures.received_segments;
                    sum.asking = Some(Asking { target, sent, received_segments });
                }
                if let Some(before) =
                    self.first.as_ref().and_then(|first| first.carried(conn, figures.cookie))
                {
                    sum.lately += figures.carried.since(before);
                }
            }
        }
    }
}

impl Known {
    /// `None` of what ended meanwhile, or is not known yet.
    pub(crate) fn find<'a>(&mut self, node: &'a Node, figures: &Figures) -> Option<&'a Conn> {
        let table = &node.tracker.table();
        let Figures { netns, interface, local, remote, .. } = *figures;
        let ends = Ends { netns, interface, local, remote };
        let cookie = if node.tracker.reported().identity_is_address {
            let by_ends = self.by_ends.get_or_insert_with(|| {
                table.iter().filter(|conn| is_full(conn)).map(|conn| (conn.ends(), conn.cookie)).collect()
            });
            *by_ends.get(&ends)?
        } else {
            figures.cookie
        };
        table.find(cookie).map(|slot| table.get(slot)).filter(|conn| is_full(conn) && conn.ends() == ends)
    }
}

pub(crate) fn is_full(conn: &Conn) -> bool {
    conn.role != Role::Listener && conn.is_full()
}
