//! Whether a client waits for its peer's answer, and how long the last answer took.
//!
//! In: the times that the kernel keeps of each connection. Out: [`AnswerTime`]. The bytes themselves are not read: an
//! answer is whatever the peer sends after the client has sent.

use std::time::Duration;

/// What the kernel keeps of a connection's exchange of data. Times are how long ago, exact to a tick of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Neither side has closed.
    pub established: bool,
    /// Whether data was sent, and received.
    pub has_sent: bool,
    pub has_received: bool,
    /// Segments sent and not acknowledged.
    pub unacknowledged: u32,
    /// Data was last sent.
    pub sent: Duration,
    /// Data was last received.
    pub received: Duration,
    /// The peer last acknowledged something, with data or without.
    pub acknowledged: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerTime {
    /// No answer yet; the time since data was last sent.
    Awaited(Duration),
    /// Answered; the time from the last sending of data to the last receipt of data, 0 within one tick.
    Came(Duration),
}

/// The longest delay of an acknowledgement without data: a receiver may put it off by half a second (RFC 9293, section
/// 3.8.6.3), the rest is for the round trip. A later one answers a keep-alive probe.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(1);

impl Exchange {
    /// The answer to what was sent last; `None` where nothing was sent, or where the times do not decide.
    pub fn answer(&self) -> Option<AnswerTime> {
        let Self { sent, received, acknowledged, .. } = *self;
        if !self.has_sent {
            return None;
        }
        // The kernel counts from the handshake when nothing was received. An answer acknowledges what it answers.
        if !self.has_received || self.unacknowledged > 0 || sent < received {
            return self.awaited();
        }
        if sent > received {
            return Some(AnswerTime::Came(sent.saturating_sub(received)));
        }
        // Within one tick.
        let acknowledged_after = received.saturating_sub(acknowledged);
        if acknowledged_after.is_zero() {
            Some(AnswerTime::Came(Duration::ZERO))
        } else if acknowledged_after <= ACKNOWLEDGED_WITHIN {
            // What was received had not acknowledged it, so it was sent later.
            self.awaited()
        } else {
            None
        }
    }

    /// A peer that has closed sends no answer any more.
    fn awaited(&self) -> Option<AnswerTime> {
        self.established.then_some(AnswerTime::Awaited(self.sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    const QUIET: Exchange = Exchange {
        established: true,
        has_sent: true,
        has_received: true,
        unacknowledged: 0,
        sent: ms(5000),
        received: ms(5000),
        acknowledged: ms(5000),
    };

    #[test]
    fn the_later_of_sent_and_received_decides_whether_an_answer_is_awaited() {
        let (awaited, came) =
            (|millis| Some(AnswerTime::Awaited(ms(millis))), |millis| Some(AnswerTime::Came(ms(millis))));
        for (what, exchange, answer) in [
            ("answered after 300 ms", Exchange { sent: ms(5300), ..QUIET }, came(300)),
            ("sent after what was received", Exchange { received: ms(5004), ..QUIET }, awaited(5000)),
            ("nothing sent", Exchange { has_sent: false, received: ms(100), ..QUIET }, None),
            ("sent as soon as connected", Exchange { has_received: false, ..QUIET }, awaited(5000)),
            (
                "sent while an older answer came",
                Exchange { sent: ms(5300), unacknowledged: 1, ..QUIET },
                awaited(5300),
            ),
            ("answered within a tick", QUIET, came(0)),
            (
                "the data came later than an acknowledgement",
                Exchange { acknowledged: ms(5040), ..QUIET },
                came(0),
            ),
            ("within a tick, then acknowledged", Exchange { acknowledged: ms(4960), ..QUIET }, awaited(5000)),
            ("as late as may be", Exchange { acknowledged: ms(4000), ..QUIET }, awaited(5000)),
            ("within a tick, and kept alive", Exchange { acknowledged: ms(3999), ..QUIET }, None),
            (
                "answered, and kept alive",
                Exchange { sent: ms(5300), acknowledged: ms(100), ..QUIET },
                came(300),
            ),
            ("closed by the peer", Exchange { established: false, received: ms(5004), ..QUIET }, None),
            ("answered, then closed", Exchange { established: false, sent: ms(5300), ..QUIET }, came(300)),
        ] {
            assert_eq!(exchange.answer(), answer, "{what}");
        }
    }
}
