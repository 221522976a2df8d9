//! The life of a connection: which states it went through, when, and who caused each.

use schemars::JsonSchema;
use serde::Serialize;
use tcpwatch_common::errno::ETIMEDOUT;

use crate::tcp::{connect_outcome::is_unreachable, state::TcpState};

/// Who made a connection enter a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Cause {
    /// The local application: connect, listen, shutdown, close.
    Application,
    /// A segment of the peer.
    Peer,
    /// A timer of the kernel.
    Timer,
    /// It had happened before tcpwatch saw it.
    Unknown,
}

impl Cause {
    const ALL: [Self; 4] = [Self::Application, Self::Peer, Self::Timer, Self::Unknown];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Peer => "peer",
            Self::Timer => "timer",
            Self::Unknown => "unknown",
        }
    }
}

/// One state of a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub state: TcpState,
    pub cause: Cause,
    /// CLOCK_MONOTONIC.
    pub since_ns: u64,
}

/// Steps of the longest life that TCP's state diagram allows, without the CLOSE that ends it: SYN_SENT, SYN_RECV,
/// ESTABLISHED, FIN_WAIT1, CLOSING, TIME_WAIT. A repair by a sweep may add more: then each replaces the latest step.
const MAX_STEPS: usize = 6;

/// The steps of a life, the latest first. Each is packed into 64 bits: CLOCK_MONOTONIC in nanoseconds (58 bits, nine
/// years), cause (2 bits), state (4 bits). No state is 0, so a 0 is no step.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    steps: [u64; MAX_STEPS],
}

impl Life {
    pub fn new(state: TcpState, cause: Cause, began_ns: u64) -> Self {
        let mut life = Self { steps: [0; MAX_STEPS] };
        life.steps[0] = pack(state, cause, began_ns);
        life
    }

    /// CLOCK_MONOTONIC of the first step.
    pub fn began_ns(&self) -> u64 {
        let first = self.steps.iter().rfind(|packed| **packed != 0);
        first.map_or(0, |packed| packed >> TIME_SHIFT)
    }

    pub fn state(&self) -> TcpState {
        unpack_state(self.steps[0])
    }

    pub fn since_ns(&self) -> u64 {
        self.steps[0] >> TIME_SHIFT
    }

    /// Adds a step. A time before the last step becomes the last step's: the clocks of two processors may differ a
    /// little.
    pub fn enter(&mut self, state: TcpState, cause: Cause, now_ns: u64) {
        let packed = pack(state, cause, now_ns.max(self.since_ns()));
        if self.steps[MAX_STEPS - 1] == 0 {
            self.steps.copy_within(..MAX_STEPS - 1, 1);
        }
        self.steps[0] = packed;
    }

    /// The life continued in `state`; unchanged when it is in that state already.
    #[must_use]
    pub fn then(mut self, state: TcpState, cause: Cause, now_ns: u64) -> Self {
        if self.state() != state {
            self.enter(state, cause, now_ns);
        }
        self
    }

    pub fn steps(&self) -> impl Iterator<Item = Step> {
        self.steps.iter().rev().filter(|packed| **packed != 0).map(|packed| Step {
            state: unpack_state(*packed),
            cause: Cause::ALL[(packed >> CAUSE_SHIFT & 3) as usize],
            since_ns: packed >> TIME_SHIFT,
        })
    }
}

const CAUSE_SHIFT: u32 = 4;
const TIME_SHIFT: u32 = 6;

fn pack(state: TcpState, cause: Cause, since_ns: u64) -> u64 {
    since_ns << TIME_SHIFT | (cause as u64) << CAUSE_SHIFT | state as u64
}

fn unpack_state(packed: u64) -> TcpState {
    // Only known states are packed.
    TcpState::from_kernel((packed & 0xf) as u8).unwrap_or(TcpState::Close)
}

/// Who caused a transition of a full socket (RFC 9293, section 3.3.2). `error` is the socket's errno, which a reset or
/// a time-out sets.
pub fn cause(from: TcpState, to: TcpState, error: u8) -> Cause {
    match (from, to) {
        (_, TcpState::SynSent | TcpState::Listen | TcpState::FinWait1 | TcpState::LastAck)
        | (TcpState::Listen, TcpState::Close) => Cause::Application,
        (_, TcpState::Close) if error == ETIMEDOUT => Cause::Timer,
        // An ICMP error ends only connects. Later, its errno is that of a time-out.
        (from, TcpState::Close) if from.follows_established() && is_unreachable(error) => Cause::Timer,
        (_, TcpState::Close) if error != 0 => Cause::Peer,
        // The last ACK, or the FIN after which only a minisock remains.
        (TcpState::LastAck | TcpState::FinWait2 | TcpState::Closing, TcpState::Close) => Cause::Peer,
        // An abortive close, or a connect that the application gave up.
        (_, TcpState::Close) => Cause::Application,
        _ => Cause::Peer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_in_order_and_never_go_back_in_time() {
        let mut life = Life::new(TcpState::SynSent, Cause::Application, 100);
        life.enter(TcpState::Established, Cause::Peer, 150);
        life.enter(TcpState::FinWait1, Cause::Application, 149);
        let steps: Vec<_> = life.steps().map(|step| (step.state, step.cause, step.since_ns)).collect();
        assert_eq!(
            steps,
            [
                (TcpState::SynSent, Cause::Application, 100),
                (TcpState::Established, Cause::Peer, 150),
                (TcpState::FinWait1, Cause::Application, 150),
            ]
        );
        assert_eq!((life.state(), life.since_ns()), (TcpState::FinWait1, 150));
    }

    #[test]
    fn more_steps_than_fit_keep_the_latest() {
        let mut life = Life::new(TcpState::Established, Cause::Peer, 0);
        for now_ns in 1..20 {
            life.enter(TcpState::CloseWait, Cause::Peer, now_ns);
        }
        assert_eq!((life.steps().count(), life.since_ns()), (MAX_STEPS, 19));
    }
}
