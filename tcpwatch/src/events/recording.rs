//! The format of a recording: all input from the kernel and /proc, so that the rest of the daemon can run on it again.
//!
//! A line of JSON ([`Header`]), then frames: length of the payload (u32), kind (u8), payload. Numbers are
//! little-endian; the payload of a record is the kernel's bytes, unchanged. Files are opened elsewhere (`recorder.rs`).

use std::io::{self, Write};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use tcpwatch_common::ABI;
use thiserror::Error;

use crate::{
    events::frame::{Coverage, Frame, LostRecords, ReportedFacts, UnrecordedCounts},
    tcp::ticks::TickRate,
};

/// Why bytes are not a recording that can be played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FormatError {
    #[error("is not a recording of tcpwatch")]
    Header,
    #[error("has records of version {0}; this tcpwatch reads version {ABI}")]
    Abi(u32),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Header {
    /// Version of the records; this key also marks the file.
    pub tcpwatch_records: u32,
    pub node: String,
    pub kernel: String,
    /// Nanoseconds since 1970 minus CLOCK_MONOTONIC.
    pub wall_offset_ns: u64,
    /// Ticks a second of the kernel (CONFIG_HZ).
    pub ticks_per_second: TickRate,
    pub reported: ReportedFacts,
}

const RECORD: u8 = 1;
const SWEEP_BEGIN: u8 = 2;
const SEEN: u8 = 3;
const PROCESS: u8 = 4;
const TICK: u8 = 5;
const LOST: u8 = 6;
const SWEEP_END: u8 = 7;
const ONLY_COUNTED: u8 = 8;
const INTERFACES: u8 = 9;
const QUEUES: u8 = 10;
const NAMESPACE: u8 = 11;
const DESCRIPTORS: u8 = 12;
const LOOKS: u8 = 13;

/// Writes the header, which must come first.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_header(out: &mut impl Write, header: &Header) -> io::Result<()> {
    serde_json::to_writer(&mut *out, header)?;
    out.write_all(b"\n")
}

/// Writes a record of the ring, without the copy that a [`Frame`] would need.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_record(out: &mut impl Write, record: &[u8]) -> io::Result<()> {
    write(out, RECORD, record)
}

/// Writes one frame.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_frame(out: &mut impl Write, frame: &Frame) -> io::Result<()> {
    match frame {
        Frame::Record(bytes) => write(out, RECORD, bytes),
        Frame::SweepBegin(now_ns) => write(out, SWEEP_BEGIN, &now_ns.to_le_bytes()),
        Frame::Seen(records) => write(out, SEEN, records),
        Frame::SweepEnd(coverage) => {
            let mut payload = BytesMut::new();
            payload.put_u8(coverage.all.into());
            payload.put_u32_le(u32::try_from(coverage.namespaces.len()).map_err(io::Error::other)?);
            for namespace in &coverage.namespaces {
                payload.put_u32_le(*namespace);
            }
            payload.put_u32_le(u32::try_from(coverage.overflows.len()).map_err(io::Error::other)?);
            for (namespace, overflows) in &coverage.overflows {
                payload.put_u32_le(*namespace);
                payload.put_u64_le(*overflows);
            }
            // Nothing where they are not known.
            for (namespace, identity) in coverage.existing.iter().flatten() {
                payload.put_u32_le(*namespace);
                payload.put_u32_le(*identity);
            }
            write(out, SWEEP_END, &payload)
        }
        Frame::Process(process) => write(out, PROCESS, &serde_json::to_vec(process)?),
        Frame::Interfaces(read) => write(out, INTERFACES, &serde_json::to_vec(read)?),
        Frame::Queues(read) => write(out, QUEUES, &serde_json::to_vec(read)?),
        Frame::Namespace(settings) => write(out, NAMESPACE, &serde_json::to_vec(settings)?),
        Frame::Descriptors(count) => write(out, DESCRIPTORS, &serde_json::to_vec(count)?),
        Frame::Looks(looks) => write(out, LOOKS, &serde_json::to_vec(looks)?),
        Frame::Tick(now_ns) => write(out, TICK, &now_ns.to_le_bytes()),
        Frame::Lost(lost) => {
            let counts = [lost.ring_full.to_le_bytes(), lost.run_skipped.to_le_bytes()];
            write(out, LOST, counts.as_flattened())
        }
        Frame::UnrecordedCounts(counted) => {
            let UnrecordedCounts { held_back, no_socket_resets, listener_resets, policy_resets } = *counted;
            let counts = [held_back, no_socket_resets, listener_resets, policy_resets];
            write(out, ONLY_COUNTED, counts.map(u64::to_le_bytes).as_flattened())
        }
    }
}

fn write(out: &mut impl Write, kind: u8, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&[kind])?;
    out.write_all(payload)
}

/// A recording, read back as an iterator of its frames. Where the recording is cut short or malformed, the iterator
/// ends early and [`Recording::remaining`] is not 0.
pub struct Recording {
    pub header: Header,
    rest: Bytes,
}

impl Recording {
    /// Reads the header.
    ///
    /// # Errors
    /// When the bytes are not a recording of this version.
    pub fn parse(mut bytes: Bytes) -> Result<Self, FormatError> {
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(FormatError::Header)?;
        let header: Header = serde_json::from_slice(&bytes.split_to(end)).map_err(|_| FormatError::Header)?;
        if header.tcpwatch_records != ABI {
            return Err(FormatError::Abi(header.tcpwatch_records));
        }
        bytes.advance(1);
        Ok(Self { header, rest: bytes })
    }

    /// Bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }
}

impl Iterator for Recording {
    type Item = Frame;

    fn next(&mut self) -> Option<Frame> {
        let mut at = self.rest.clone();
        let length = at.try_get_u32_le().ok()? as usize;
        let kind = at.try_get_u8().ok()?;
        if at.len() < length {
            return None;
        }
        let mut payload = at.split_to(length);
        let frame = match kind {
            RECORD => Frame::Record(payload),
            SWEEP_BEGIN => Frame::SweepBegin(payload.try_get_u64_le().ok()?),
            SEEN => Frame::Seen(payload),
            SWEEP_END => {
                let all = payload.try_get_u8().ok()? != 0;
                let count = payload.try_get_u32_le().ok()?;
                let namespaces = (0..count).map(|_| payload.try_get_u32_le().ok()).collect::<Option<_>>()?;
                let count = payload.try_get_u32_le().ok()?;
                let mut overflow = || Some((payload.try_get_u32_le().ok()?, payload.try_get_u64_le().ok()?));
                let overflows = (0..count).map(|_| overflow()).collect::<Option<_>>()?;
                let mut number = || payload.try_get_u32_le().ok();
                let existing: FxHashMap<_, _> = std::iter::from_fn(|| Some((number()?, number()?))).collect();
                // There is always one.
                let existing = (!existing.is_empty()).then_some(existing);
                Frame::SweepEnd(Coverage { namespaces, existing, all, overflows })
            }
            PROCESS => Frame::Process(serde_json::from_slice(&payload).ok()?),
            INTERFACES => Frame::Interfaces(serde_json::from_slice(&payload).ok()?),
            QUEUES => Frame::Queues(serde_json::from_slice(&payload).ok()?),
            NAMESPACE => Frame::Namespace(serde_json::from_slice(&payload).ok()?),
            DESCRIPTORS => Frame::Descriptors(serde_json::from_slice(&payload).ok()?),
            LOOKS => Frame::Looks(serde_json::from_slice(&payload).ok()?),
            TICK => Frame::Tick(payload.try_get_u64_le().ok()?),
            LOST => Frame::Lost(LostRecords {
                ring_full: payload.try_get_u64_le().ok()?,
                run_skipped: payload.try_get_u64_le().ok()?,
            }),
            ONLY_COUNTED => Frame::UnrecordedCounts(UnrecordedCounts {
                held_back: payload.try_get_u64_le().ok()?,
                no_socket_resets: payload.try_get_u64_le().ok()?,
                listener_resets: payload.try_get_u64_le().ok()?,
                policy_resets: payload.try_get_u64_le().ok()?,
            }),
            _ => return None,
        };
        self.rest = at;
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::events::{
        decode::Identity,
        frame::{
            DescriptorCount, InterfaceNames, ListenQueues, Look, NamespaceQueues, NamespaceSettings,
            ProcDetails, ProcessFrame, QueueRead, SenderLook,
        },
    };

    fn header() -> Header {
        Header {
            tcpwatch_records: ABI,
            node: "n".into(),
            kernel: "k".into(),
            wall_offset_ns: 1,
            ticks_per_second: TickRate(NonZeroU16::MIN),
            reported: ReportedFacts::default(),
        }
    }

    fn recording(header: &Header, frames: &[Frame]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_header(&mut bytes, header).unwrap();
        for frame in frames {
            write_frame(&mut bytes, frame).unwrap();
        }
        bytes
    }

    #[test]
    fn frames_are_read_back_and_a_cut_file_yields_its_whole_frames() {
        let identity = Identity { pid: 1, start_ns: 2, exec_id: 3, comm: "x".into() };
        let details = ProcDetails { exe: Some("/bin/x".into()), exe_deleted: Some(true), cgroup: None };
        let frames = [
            Frame::SweepBegin(7),
            Frame::Record(Bytes::from_static(b"abc")),
            Frame::Seen(Bytes::from_static(b"xyz")),
            Frame::SweepEnd(Coverage {
                namespaces: [4, 5].into_iter().collect(),
                existing: Some([(4, 40), (5, 50), (6, 60)].into_iter().collect()),
                all: true,
                overflows: [(5, 6)].into_iter().collect(),
            }),
            Frame::Process(ProcessFrame { identity, details }),
            Frame::Interfaces(InterfaceNames { netns: 4, names: vec![(2, "eth0".into())] }),
            Frame::Queues(ListenQueues {
                time_ns: 3,
                namespaces: vec![NamespaceQueues {
                    netns: 4,
                    overflows: Some(9),
                    listeners: vec![QueueRead {
                        cookie: 1,
                        addr: [0; 4].into(),
                        port: 80,
                        waiting: 2,
                        limit: 1,
                        drops: 3,
                    }],
                }],
            }),
            Frame::Namespace(NamespaceSettings {
                netns: 4,
                somaxconn: Some(4096),
                tw_reuse: None,
                local_ports: Some((32_768, 60_999)),
                reserved_ports: vec![(40_000, 40_009)],
            }),
            Frame::Descriptors(DescriptorCount { pid: 1, start_ns: 2, at_ns: 3, open: 4, limit: 5 }),
            Frame::Looks(vec![
                Look { cookie: 5, sender: Some(SenderLook { min_rtt_us: Some(7), ..SenderLook::default() }) },
                Look { cookie: 6, sender: None },
            ]),
            Frame::Lost(LostRecords { ring_full: 3, run_skipped: 4 }),
            Frame::UnrecordedCounts(UnrecordedCounts {
                held_back: 5,
                no_socket_resets: 6,
                listener_resets: 7,
                policy_resets: 8,
            }),
            Frame::Tick(4),
        ];
        let bytes = recording(&header(), &frames);
        let mut whole = Recording::parse(bytes.clone().into()).unwrap();
        assert!(whole.by_ref().eq(frames.iter().cloned()));
        assert_eq!(whole.remaining(), 0);

        let mut cut = Recording::parse(Bytes::copy_from_slice(&bytes[..bytes.len() - 1])).unwrap();
        assert_eq!(cut.by_ref().count(), frames.len() - 1);
        assert_ne!(cut.remaining(), 0);
    }

    #[test]
    fn other_files_and_other_versions_are_refused() {
        let refused = |bytes: &[u8]| Recording::parse(Bytes::copy_from_slice(bytes)).err();
        assert_eq!(refused(b"#!/bin/sh\nexit\n"), Some(FormatError::Header));
        let other = recording(&Header { tcpwatch_records: ABI + 1, ..header() }, &[]);
        assert_eq!(refused(&other), Some(FormatError::Abi(ABI + 1)));
    }
}
