//! What is wrong, named.
//!
//! In: the tracker's tables and the thresholds. Out: findings with a life of their own ([`Findings`]), and what `/leaks`
//! shows. A rule ([`rules`]) says what it observes now; [`life`] makes findings of that: they open, change and end;
//! [`causes`] says which of them follows from which.

pub mod causes;
mod descriptors;
pub mod evidence;
pub mod leaks;
pub mod life;
mod meetings;
pub mod observation;
pub mod rules;
pub mod thresholds;
pub mod trend;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::life::Findings;

use crate::{
    findings::{leaks::lingering::LingerLimits, thresholds::Thresholds},
    tcp::serialized_by_name,
};

/// What users may set of the findings.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// How long each state may last before `/leaks` names a connection.
    pub linger: LingerLimits,
    pub thresholds: Thresholds,
}

/// How urgent a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

impl Severity {
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Critical];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Declares the rules in the order of the documents, each with its name.
macro_rules! rules {
    ($($rule:ident = $name:literal,)+) => {
        /// A kind of incident.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule {
            $($rule,)+
        }

        impl Rule {
            pub const ALL: &[Self] = &[$(Self::$rule,)+];
            pub const NAMES: &[&str] = &[$($name,)+];

            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$rule => $name,)+
                }
            }
        }
    };
}

rules! {
    CloseWaitLeak = "close_wait_leak",
    UnacceptedConnections = "unaccepted_connections",
    AcceptQueueOverflow = "accept_queue_overflow",
    FinWait2Pileup = "fin_wait2_pileup",
    TimeWaitChurn = "time_wait_churn",
    PortExhaustion = "port_exhaustion",
    SocketFdLeak = "socket_fd_leak",
    ConnectionPoolLeak = "connection_pool_leak",
    StalePooledConnection = "stale_pooled_connection",
    KeepaliveRace = "keepalive_race",
    HolBlocking = "hol_blocking",
    ReuseportImbalance = "reuseport_imbalance",
    KeepaliveMissing = "keepalive_missing",
    NagleStall = "nagle_stall",
    RetransmitFailed = "retransmit_failed",
    NetworkCleared = "network_cleared",
}

serialized_by_name!(Rule);
