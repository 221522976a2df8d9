//! What came in? Records of the kernel as valid values, and the frames in which all input reaches the owner of the
//! state, live or from a recording.
//!
//! In: bytes. Out: [`decode::Record`], [`seen::Seen`], [`frame::Frame`]. Malformed bytes become an error here and go no
//! further. No I/O, no clock.

pub mod comm;
pub mod decode;
pub mod frame;
pub mod recording;
pub mod seen;
