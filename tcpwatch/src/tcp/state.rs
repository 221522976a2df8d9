//! The TCP states of RFC 9293 under the kernel's names and numbers.

use std::{fmt, str::FromStr};

use tcpwatch_common::state as kernel;

use crate::tcp::serialized_by_name;

macro_rules! states {
    ($($variant:ident = $number:path, $name:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum TcpState { $($variant = $number),* }

        impl TcpState {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The state with this number in the kernel (include/net/tcp_states.h).
            pub fn from_kernel(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }

            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

states! {
    Established = kernel::ESTABLISHED, "ESTABLISHED";
    SynSent = kernel::SYN_SENT, "SYN_SENT";
    SynRecv = kernel::SYN_RECV, "SYN_RECV";
    FinWait1 = kernel::FIN_WAIT1, "FIN_WAIT1";
    FinWait2 = kernel::FIN_WAIT2, "FIN_WAIT2";
    TimeWait = kernel::TIME_WAIT, "TIME_WAIT";
    Close = kernel::CLOSE, "CLOSE";
    CloseWait = kernel::CLOSE_WAIT, "CLOSE_WAIT";
    LastAck = kernel::LAST_ACK, "LAST_ACK";
    Listen = kernel::LISTEN, "LISTEN";
    Closing = kernel::CLOSING, "CLOSING";
}

impl TcpState {
    /// One more than the largest number, for tables indexed by state.
    pub const COUNT: usize = 12;

    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether a socket in this state is or was ESTABLISHED.
    pub fn follows_established(self) -> bool {
        !matches!(self, Self::SynSent | Self::SynRecv | Self::Listen | Self::Close)
    }
}

impl fmt::Display for TcpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

serialized_by_name!(TcpState);

impl FromStr for TcpState {
    type Err = String;

    /// Case does not matter, and `-` serves for `_`: `close-wait` as `ss` writes it.
    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.trim().to_ascii_uppercase().replace('-', "_");
        Self::ALL.iter().copied().find(|state| state.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|state| state.name()).collect();
            format!("not a TCP state; one of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_found_by_its_number_and_both_spellings() {
        for state in TcpState::ALL {
            assert_eq!(TcpState::from_kernel(*state as u8), Some(*state));
            assert_eq!(state.name().parse(), Ok(*state));
            assert_eq!(state.name().to_lowercase().replace('_', "-").parse(), Ok(*state));
            assert!(state.index() < TcpState::COUNT);
        }
        assert_eq!(TcpState::from_kernel(0), None);
        assert!("NEW_SYN_RECV".parse::<TcpState>().is_err());
    }
}
