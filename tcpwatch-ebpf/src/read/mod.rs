//! How is the kernel's memory read? Pointers and offsets in, plain numbers out.
//!
//! Nothing here writes a record or counts anything, and nothing here knows which hook asks. The one thing kept is what
//! reading it again would cost a cache miss (`netns.rs`).

pub mod clock;
pub mod endpoints;
pub mod identity;
pub mod netns;
pub mod offsets;
pub mod pointer;
pub mod process;
pub mod registers;
pub mod segment;
pub mod sockaddr;
pub mod socket_options;
pub mod tcp_sock;
pub mod tracepoint;
