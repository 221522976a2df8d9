//! Which sockets are there, and which network namespaces? The kernel's iterators in; one record for each TCP socket or
//! namespace out, to the reader of the iterator.
//!
//! They run only when the daemon reads them. Nothing here goes to the ring or the queues, and nothing here counts.

mod holder;
mod namespaces;
mod options;
mod seen_socket;
mod seq;
mod socket_list;
mod task_file;
mod tcp;
