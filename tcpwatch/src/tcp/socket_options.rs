//! The options of a socket, as getsockopt() reports them.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use tcpwatch_common::{
    OPTION_CORK, OPTION_KEEPALIVE, OPTION_LINGER, OPTION_NODELAY, SocketOptions as Record,
};

use crate::tcp::ticks::TickRate;

/// The options of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct SocketOptions {
    pub keepalive: Keepalive,
    /// TCP_NODELAY
    pub nodelay: bool,
    /// TCP_CORK
    pub cork: bool,
    /// SO_LINGER: how long close() waits until sent data is acknowledged; 0 resets the connection, `null` is off.
    pub linger_seconds: Option<u64>,
    /// TCP_USER_TIMEOUT; `null` when it is not set.
    pub user_timeout_seconds: Option<f64>,
}

/// The keep-alive settings. Where the socket has none of its own, these are its network namespace's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Keepalive {
    /// SO_KEEPALIVE
    pub on: bool,
    /// Time without data until the first probe (TCP_KEEPIDLE).
    pub idle_seconds: u64,
    /// Time between probes (TCP_KEEPINTVL).
    pub interval_seconds: u64,
    /// Unanswered probes after which the connection ends (TCP_KEEPCNT).
    pub probes: u32,
}

impl SocketOptions {
    pub fn new(record: &Record, rate: TickRate) -> Self {
        let has = |option| record.flags & option != 0;
        Self {
            keepalive: Keepalive {
                on: has(OPTION_KEEPALIVE),
                idle_seconds: rate.seconds(record.keepalive_time_jiffies.into()),
                interval_seconds: rate.seconds(record.keepalive_intvl_jiffies.into()),
                probes: record.keepalive_probes.into(),
            },
            nodelay: has(OPTION_NODELAY),
            cork: has(OPTION_CORK),
            linger_seconds: has(OPTION_LINGER).then(|| rate.seconds(record.linger_jiffies)),
            user_timeout_seconds: (record.user_timeout_ms > 0)
                .then(|| Duration::from_millis(record.user_timeout_ms.into()).as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    #[test]
    fn options_that_are_off_are_null_but_a_linger_time_of_0_is_0() {
        let rate = TickRate(NonZeroU16::new(250).unwrap());
        let record = Record {
            flags: OPTION_LINGER,
            user_timeout_ms: 0,
            linger_jiffies: 0,
            keepalive_time_jiffies: 7200 * 250,
            keepalive_intvl_jiffies: 75 * 250,
            keepalive_probes: 9,
        };
        let off = SocketOptions {
            keepalive: Keepalive { on: false, idle_seconds: 7200, interval_seconds: 75, probes: 9 },
            nodelay: false,
            cork: false,
            linger_seconds: Some(0),
            user_timeout_seconds: None,
        };
        assert_eq!(SocketOptions::new(&record, rate), off);
        let record = Record {
            flags: OPTION_KEEPALIVE | OPTION_NODELAY | OPTION_CORK,
            user_timeout_ms: 1500,
            linger_jiffies: 250,
            ..record
        };
        let on = SocketOptions {
            keepalive: Keepalive { on: true, ..off.keepalive },
            nodelay: true,
            cork: true,
            linger_seconds: None,
            user_timeout_seconds: Some(1.5),
        };
        assert_eq!(SocketOptions::new(&record, rate), on);
    }
}
