//! Whether a client waits for its peer's answer, and how long the last answer took.
//!
//! In: the times that the kernel keeps of each connection. Out: [`AnswerTime`]. The bytes themselves are not read: an
//! answer is whatever the peer sends after the client has sent.

/// Members of `struct tcp_info` (include/uapi/linux/tcp.h). Each `*_ms` is the milliseconds that have passed since the
/// event, exact to one jiffy.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Neither side has closed.
    pub established: bool,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Segments sent and not acknowledged.
    pub unacknowledged: u32,
    pub sent_ms: u32,
    pub received_ms: u32,
    /// Since the peer's last acknowledgement, with data or without.
    pub acknowledged_ms: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AnswerTime {
    /// No answer yet; seconds since data was last sent.
    Awaited(f64),
    /// Answered; seconds from the last sending of data to the last receipt of data.
    Came(f64),
}

/// The longest delay, in milliseconds, of an acknowledgement without data: a receiver may put it off by half a second
/// (RFC 9293, section 3.8.6.3), the rest is for the round trip. A later one answers a keep-alive probe.
const ACKNOWLEDGED_WITHIN_MS: u32 = 1000;

impl Exchange {
    /// The answer to what was sent last; `None` where nothing was sent, or where the times do not decide.
    pub fn answer(&self) -> Option<AnswerTime> {
        let Self { sent_ms: sent, received_ms: received, acknowledged_ms: acknowledged, .. } = *self;
        if self.sent_bytes == 0 {
            return None;
        }
        // The kernel counts from the handshake when nothing was received. An answer acknowledges what it answers.
        if self.received_bytes == 0 || self.unacknowledged > 0 || sent < received {
            return self.awaited();
        }
        if sent > received {
            return Some(AnswerTime::Came(f64::from(sent - received) / 1e3));
        }
        // Within one jiffy.
        match received.saturating_sub(acknowledged) {
            0 => Some(AnswerTime::Came(0.0)),
            // What was received had not acknowledged it, so it was sent later.
            1..=ACKNOWLEDGED_WITHIN_MS => self.awaited(),
            _ => None,
        }
    }

    /// A peer that has closed sends no answer any more.
    fn awaited(&self) -> Option<AnswerTime> {
        self.established.then(|| AnswerTime::Awaited(f64::from(self.sent_ms) / 1e3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Exchange = Exchange {
        established: true,
        sent_bytes: 100,
        received_bytes: 100,
        unacknowledged: 0,
        sent_ms: 5000,
        received_ms: 5000,
        acknowledged_ms: 5000,
    };

    #[test]
    fn the_later_of_sent_and_received_decides_whether_an_answer_is_awaited() {
        let (awaited, came) =
            (|seconds| Some(AnswerTime::Awaited(seconds)), |seconds| Some(AnswerTime::Came(seconds)));
        for (what, exchange, answer) in [
            ("answered after 300 ms", Exchange { sent_ms: 5300, ..QUIET }, came(0.3)),
            ("sent after what was received", Exchange { received_ms: 5004, ..QUIET }, awaited(5.0)),
            ("nothing sent", Exchange { sent_bytes: 0, received_ms: 100, ..QUIET }, None),
            ("sent as soon as connected", Exchange { received_bytes: 0, ..QUIET }, awaited(5.0)),
            (
                "sent while an older answer came",
                Exchange { sent_ms: 5300, unacknowledged: 1, ..QUIET },
                awaited(5.3),
            ),
            ("answered within a jiffy", QUIET, came(0.0)),
            (
                "the data came later than an acknowledgement",
                Exchange { acknowledged_ms: 5040, ..QUIET },
                came(0.0),
            ),
            ("within a jiffy, then acknowledged", Exchange { acknowledged_ms: 4960, ..QUIET }, awaited(5.0)),
            ("as late as may be", Exchange { acknowledged_ms: 4000, ..QUIET }, awaited(5.0)),
            ("within a jiffy, and kept alive", Exchange { acknowledged_ms: 3999, ..QUIET }, None),
            (
                "answered, and kept alive",
                Exchange { sent_ms: 5300, acknowledged_ms: 100, ..QUIET },
                came(0.3),
            ),
            ("closed by the peer", Exchange { established: false, received_ms: 5004, ..QUIET }, None),
            ("answered, then closed", Exchange { established: false, sent_ms: 5300, ..QUIET }, came(0.3)),
        ] {
            assert_eq!(exchange.answer(), answer, "{what}");
        }
    }
}
