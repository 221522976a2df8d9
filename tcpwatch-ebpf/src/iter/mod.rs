//! Which sockets are there? The kernel's iterators over processes and sockets in; one record for each TCP socket out,
//! to the reader of the iterator.
//!
//! They run only when the daemon reads them. Nothing here goes to the ring or the queues, and nothing here counts.

mod options;
mod seen_socket;
mod seq;
mod socket_list;
mod task_file;
mod tcp;
