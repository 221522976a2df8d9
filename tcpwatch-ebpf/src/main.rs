//! The BPF programs. In: kernel hooks and iterators. Out: records of `tcpwatch-common`: state changes through a queue
//! for each processor, what is rarer through one ring buffer, and what a sweep finds to the reader of the iterator.
//!
//! Each folder answers one question, and imports only folders further down in this list, but `hooks` and `iter` do not
//! import each other:
//! - `hooks`: what does the kernel report as it happens?
//! - `iter`: which sockets are there?
//! - `counts`: what is counted of one socket over time?
//! - `out`: how do records leave?
//! - `read`: how is the kernel's memory read?
//!
//! Deliberately absent: a table of all sockets, which the daemon keeps; only sockets on which something is
//! retransmitted, stalls or waits have counts here. No program runs for each packet or each send, but for
//! `out_of_order`, which is attached on request only. A record for which there is no room is counted, never waited
//! for.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod counts;
mod hooks;
mod iter;
mod out;
mod read;

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
