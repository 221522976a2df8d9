//! tcpwatch: knows the whole life of every TCP connection on a Linux node and names what is wrong with it.
//!
//! The modules stand in the order in which data flows through them; see docs/ARCHITECTURE.md.

pub mod btf;
pub mod inbox;
pub mod kernel;
pub mod offsets;
pub mod probes;

pub mod state;

pub mod histogram;
pub mod stall;

pub mod decode;

pub mod container;
mod index;
pub mod process;

pub mod connect;
pub mod first_close;
pub mod reset;
pub mod tally;

pub mod aggregate;
pub mod life;
pub mod table;
pub mod ticks;

pub mod attempts;
pub mod live;
pub mod owners;
pub mod resets;
pub mod retransmits;
pub mod sweep;
pub mod tracker;
pub mod traffic;

pub mod clock;

pub mod transition;

pub mod findings;

pub mod proc;
pub mod recording;

pub mod node;

mod netlink;
pub mod netns;

pub mod answers;
pub mod local_ports;
pub mod sock_diag;

pub mod conntrack;

pub mod socket_options;

pub mod sweeper;

pub mod http;

pub mod pipeline;

pub mod check;
pub mod options;

pub mod replay;
pub mod trace;
