//! What does the kernel report as it happens? One file for each signal, with one program for each way to get it, named
//! `<signal>_<way>`; the loader attaches the first way that this kernel takes.
//!
//! In: the kernel's arguments. Out: records, by way of `out` and `counts`. No hook imports another, and none holds a
//! table of sockets.

mod accept;
mod close;
mod congestion;
mod connect;
mod minisock;
mod out_of_order;
mod overflow;
mod policy_reset;
mod reset;
mod retransmit;
mod state;
mod synack;
mod time_wait;
