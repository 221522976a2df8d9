//! The BPF programs: kernel hooks in, records of `tcpwatch-common` out through one ring buffer.
//!
//! A file for each signal, with a program for each way to get it, named `<signal>_<way>`; the loader
//! (`tcpwatch/src/probes`) takes the first that this kernel takes. Nothing here runs per packet or per send, nothing
//! keeps a table of sockets. What cannot be written (the ring is full) is counted, never waited for.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod accept;
mod close;
mod connect;
mod counted;
mod event;
mod field;
mod fill;
mod format;
mod iter;
mod minisock;
mod options;
mod out_of_order;
mod policy_reset;
mod queue;
mod registers;
mod reset;
mod retransmit;
mod ring;
mod stall;
mod state;
mod synack;
mod task;
mod task_file;
mod tcp;

use tcpwatch_common::ABI;

/// Read by the loader before anything is loaded (`tcpwatch_common::ABI_SYMBOL`).
#[unsafe(no_mangle)]
static TCPWATCH_ABI: u32 = ABI;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

// An endless loop: a program that could reach it does not pass the verifier.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
