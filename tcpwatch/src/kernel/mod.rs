//! How is the kernel asked? All I/O with the kernel: BPF programs and the transport of their records, netlink, /proc,
//! namespaces, clocks.
//!
//! In: requests of the pipeline and of HTTP. Out: bytes and plain values for the layers below; nothing here decides
//! what they mean.

pub mod btf;
pub mod capabilities;
pub mod clock;
pub mod conntrack;
mod listen_queues;
pub mod local_ports;
mod namespace_settings;
pub mod netlink;
pub mod netns;
pub mod netstat;
pub mod probes;
pub mod procfs;
pub mod sock_diag;
pub mod socket_options;
pub mod sweeper;
pub mod transport;
