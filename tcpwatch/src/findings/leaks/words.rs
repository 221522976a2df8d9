//! What is wrong with lingering connections, and what to do, in words: for somebody who was just woken up. Nothing is
//! said that what is known does not support.

use crate::{
    findings::{evidence::Evidence, leaks::Leak},
    model::{groups::Peer, tracker::overflows::Queue},
    tcp::state::TcpState,
};

/// What the words need beside the leak itself.
pub(super) struct Facts {
    pub(super) peer: Peer,
    /// The latest sweep found that the process has a descriptor.
    pub(super) holds: bool,
    /// All that was sent is acknowledged.
    pub(super) nothing_on_its_way: bool,
}

/// The summary (what is wrong) and the next step (what to do).
pub(super) fn words(leak: &Leak, facts: &Facts) -> (String, String) {
    let words = Words { leak, facts };
    match leak.state {
        TcpState::CloseWait => words.close_wait(),
        TcpState::FinWait2 => words.fin_wait2(),
        TcpState::FinWait1 | TcpState::LastAck | TcpState::Closing => words.fin_sent(),
        TcpState::SynSent => words.syn_sent(),
        TcpState::SynRecv => words.syn_recv(),
        _ => (
            format!(
                "{} of {} with {} stand in {} longer than they should.",
                words.connections(),
                words.name(),
                words.peer(),
                leak.state
            ),
            "Nothing more is known.".to_owned(),
        ),
    }
}

struct Words<'a> {
    leak: &'a Leak,
    facts: &'a Facts,
}

impl Words<'_> {
    fn close_wait(&self) -> (String, String) {
        let (connections, name, peer) = (self.connections(), self.name(), self.peer());
        if self.leak.evidence == Evidence::Unaccepted {
            let listens = match self.leak.process {
                Some(_) => format!("{name}, which listens there, has not accepted"),
                None => "nobody has accepted".to_owned(),
            };
            return (
                format!("{peer} closed {connections} that {listens}.{}", self.queue("Its accept queue")),
                format!(
                    "See whether {name} still calls accept(): its accept loop blocked, or its connection limit reached."
                ),
            );
        }
        if let Some(waits_for) = &self.leak.waits_for {
            let of_these = if waits_for.count == self.leak.count {
                String::new()
            } else {
                format!(" for {} of them", waits_for.count)
            };
            let remote = waits_for.remote;
            let (culprit, next_step) = match &waits_for.other_end {
                Some(other) => (
                    format!(" {} holds the other end of that, in {}.", other.name(), other.state),
                    format!(
                        "Look at {}, not at {name}: it has not closed its side of what {name} waits for.",
                        other.name()
                    ),
                ),
                None => (
                    String::new(),
                    format!(
                        "Look at {remote}, not at {name}: it has not closed its side of what {name} waits for."
                    ),
                ),
            };
            return (
                format!(
                    "{peer} closed {connections}. {name} has passed that on{of_these}, to {remote}, which has not closed \
                     its side.{culprit}"
                ),
                next_step,
            );
        }
        match self.leak.evidence {
            Evidence::NoDescriptor => (
                format!(
                    "{peer} closed {connections} that no process has a descriptor of: something in the kernel holds them, \
                     such as an io_uring, or a message over a Unix socket that nobody has received.{}",
                    self.last_held()
                ),
                "Look for io_urings with registered files (/proc/PID/fdinfo of their descriptors), and for Unix sockets \
                 over which descriptors are passed and not received."
                    .to_owned(),
            ),
            Evidence::Sending => (
                format!("{peer} closed {connections} for sending; {name} sends on them, or has data left to send."),
                format!(
                    "Nothing, if {peer} wants the rest. Else look at why {name} goes on, and whether what it sends is \
                     acknowledged."
                ),
            ),
            Evidence::Idle => (
                format!(
                    "{peer} closed {connections} of {name} that had been idle. A pool of connections closes such ones when \
                     it next looks at them."
                ),
                format!(
                    "Nothing while their number is steady. If it grows, {name} opens new ones beside them and forgets \
                     these. The pool may keep connections longer than {peer} does: compare the two time-outs."
                ),
            ),
            _ => {
                let holds = if self.facts.holds {
                    format!("{name} holds them, and has not closed its side")
                } else {
                    "its own side is not closed".to_owned()
                };
                let look = match self.leak.process {
                    Some(_) => format!(
                        "Look for code in {name} that does not close after the peer is gone: a handler blocked on a pool \
                         or lock, an unfinished transaction, an unread response."
                    ),
                    None => "Find the process that holds them: tcpwatch has not seen it.".to_owned(),
                };
                (
                    format!("{peer} closed {connections}; {holds}."),
                    format!("{look} The kernel has no timer for this state: it lasts until they are closed."),
                )
            }
        }
    }

    fn fin_wait2(&self) -> (String, String) {
        let (connections, name, peer) = (self.connections(), self.name(), self.peer());
        let did = match self.leak.evidence {
            Evidence::Orphaned => format!("{name} closed {connections} to {peer}"),
            Evidence::Held => {
                format!("{name} shut down its sending side of {connections} to {peer}, and still holds them")
            }
            Evidence::NoDescriptor => {
                format!(
                    "{connections} to {peer} are shut down, and held by something in the kernel that no descriptor refers to"
                )
            }
            _ => format!("{name} closed or shut down {connections} to {peer}"),
        };
        let lasts = match self.leak.evidence {
            Evidence::Orphaned => " The kernel drops them after net.ipv4.tcp_fin_timeout, 60 s by default.",
            Evidence::Held => " The kernel has no timer for those that are held.",
            _ => "",
        };
        match &self.leak.other_end {
            Some(other) => (
                format!(
                    "{did}. {} has the other end{}, in {}.",
                    other.name(),
                    self.of_count(other.count),
                    other.state
                ),
                format!("Look at {}: it has not closed its side.{lasts}", other.name()),
            ),
            None => (
                format!("{did}; the peer has acknowledged that, and has not closed its side."),
                format!(
                    "Look at the peer: it is stuck before its close(), slower than this side's time-out, or gone.{lasts}"
                ),
            ),
        }
    }

    fn fin_sent(&self) -> (String, String) {
        let (connections, name, peer) = (self.connections(), self.name(), self.peer());
        if self.leak.evidence == Evidence::Unsent {
            let (why, look) = if self.facts.nothing_on_its_way {
                (
                    "the peer acknowledges what it has received, and has no room for more",
                    "The peer lives and does not read: look there.",
                )
            } else {
                (
                    "what was sent before is not acknowledged",
                    "The peer or the network between is gone, or loses much: see whether the connections retransmit.",
                )
            };
            return (
                format!(
                    "{name} closed {connections} to {peer}, and {} bytes and the FIN are not sent yet: {why}.",
                    self.leak.unsent_bytes
                ),
                format!("{look}{}", self.other_end()),
            );
        }
        let summary = if self.leak.state == TcpState::FinWait1 {
            format!("{name} closed {connections} to {peer}; its FIN is not acknowledged.")
        } else {
            format!(
                "{connections} of {name} with {peer}, closed by both, wait for the acknowledgement of this side's FIN."
            )
        };
        let next_step = "The peer or the network between is gone, or a firewall drops the last packets.";
        (summary, format!("{next_step}{}", self.other_end()))
    }

    fn syn_sent(&self) -> (String, String) {
        let (connections, name, peer) = (self.connections(), self.name(), self.peer());
        let waits = format!("{name} waits for {connections} to {peer} to be established");
        if self.leak.evidence == Evidence::Unsent {
            return (
                format!("{waits}. No SYN is sent yet: with TCP Fast Open it goes out with the first data."),
                format!("See why {name} has not written anything."),
            );
        }
        let other = self.leak.other_end.as_ref();
        let stale = other.filter(|other| !matches!(other.state, TcpState::SynRecv | TcpState::Listen));
        if let Some(other) = stale {
            return (
                format!(
                    "{waits}. The other end still has an older connection between the same addresses and ports, in {}, \
                     of {}: that answers the SYNs.",
                    other.state,
                    other.name()
                ),
                format!(
                    "{} has to close the older connection, or the resets that this side answers with have to reach it: a \
                     packet filter may drop them.",
                    other.name()
                ),
            );
        }
        if self.leak.evidence == Evidence::Challenged {
            return (
                format!(
                    "{waits}. The peer answers, but with segments of another connection, as one does that still has an \
                     older connection between the same addresses and ports. This side answers each with a reset."
                ),
                "The resets do not reach the peer, or it takes them for invalid: look for a packet filter or NAT between \
                 that drops them, and for old connections at the peer."
                    .to_owned(),
            );
        }
        match (other, &self.leak.queue) {
            (Some(other), Some(queue)) if queue.is_full() => (
                format!("{waits}. {} listens there, on this node.{}", other.name(), self.queue("Its accept queue")),
                format!("See whether {} still calls accept(), and how long its pauses are.", other.name()),
            ),
            (Some(other), _) => (
                format!("{waits}. {} has the other end, on this node, in {}.", other.name(), other.state),
                "A packet filter on this node drops one of the two directions, or the accept queue was full a moment \
                 ago."
                    .to_owned(),
            ),
            (None, _) => (
                format!("{waits}. No answer is known."),
                "From this side these look the same: a wrong address, a host that is down, a firewall that drops, or a \
                 full accept queue at the other side."
                    .to_owned(),
            ),
        }
    }

    fn syn_recv(&self) -> (String, String) {
        let (name, count) = (self.name(), self.leak.count);
        let handshakes = if count == 1 { "1 handshake".to_owned() } else { format!("{count} handshakes") };
        let peer = self.peer();
        match self.leak.evidence {
            Evidence::Deferred => (
                format!(
                    "{handshakes} of {peer} are complete, and wait for the clients' first data: the listener of {name} has \
                     TCP_DEFER_ACCEPT on."
                ),
                "Nothing is lost. The clients are connected and have not sent anything; the listener takes them when \
                 they do, or when the option's time is over."
                    .to_owned(),
            ),
            Evidence::Acknowledged => (
                format!(
                    "{handshakes} of {peer} are complete for the clients, and {name} has not got them: its accept queue was \
                     full.{}",
                    self.queue("It")
                ),
                format!("See whether {name} still calls accept(), and how long its pauses are."),
            ),
            _ => (
                format!("{handshakes} of {peer}: the SYN is answered, and no acknowledgement of that has come."),
                "The answers or the acknowledgements are lost between the two, or the clients do not send any, as in a scan \
                 or a SYN flood."
                    .to_owned(),
            ),
        }
    }

    fn name(&self) -> &str {
        self.leak.process.as_ref().map_or("an unknown process", |process| &*process.comm)
    }

    fn connections(&self) -> String {
        if self.leak.count == 1 {
            "1 connection".to_owned()
        } else {
            format!("{} connections", self.leak.count)
        }
    }

    fn peer(&self) -> String {
        match self.facts.peer {
            Peer::Remote(..) => self.facts.peer.to_string(),
            Peer::LocalPort(port) => format!("clients of port {port}"),
            Peer::Unknown | Peer::Other if self.leak.count == 1 => "its peer".to_owned(),
            Peer::Unknown | Peer::Other => "their peers".to_owned(),
        }
    }

    /// A sentence about the queue, behind another.
    fn queue(&self, subject: &str) -> String {
        let Some(Queue { queue, queue_limit, overflows, overflows_is_lower_bound, .. }) = self.leak.queue
        else {
            return String::new();
        };
        let bound = if overflows_is_lower_bound { "\u{2265}" } else { "" };
        let refused = match overflows {
            0 => String::new(),
            count => format!(", and has refused {bound}{count}"),
        };
        format!(" {subject} holds {queue} (limit {queue_limit}; one more is admitted){refused}.")
    }

    fn other_end(&self) -> String {
        let other = self.leak.other_end.as_ref();
        other.map_or(String::new(), |other| {
            format!(" The other end is on this node: {}, in {}.", other.name(), other.state)
        })
    }

    fn of_count(&self, count: usize) -> String {
        if count == self.leak.count { String::new() } else { format!(" of {count}") }
    }

    fn last_held(&self) -> String {
        let process = self.leak.process.as_ref();
        process.map_or(String::new(), |process| format!(" {} held them last.", process.comm))
    }
}
