//! A run written down: everything that came from the kernel and /proc, so that all behind it can run again.
//!
//! A line of JSON ([`Header`]), then frames: length of the payload (u32), kind (u8), payload. Numbers are
//! little-endian; payloads of records are the kernel's bytes as they were.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tcpwatch_common::ABI;
use thiserror::Error;

use crate::{
    probes::{Lost, OnlyCounted, Told},
    process::ProcDetails,
    sweep::Coverage,
    ticks::TickRate,
};

#[derive(Debug, Error)]
pub enum RecordingError {
    #[error("cannot write the recording {0}: {1}")]
    Write(PathBuf, io::Error),
    #[error("cannot read the recording {0}: {1}")]
    Read(PathBuf, io::Error),
    #[error("{0} is not a recording of tcpwatch")]
    Format(PathBuf),
    #[error("the recording {0} has records of version {1}; this tcpwatch reads version {ABI}")]
    Abi(PathBuf, u32),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Header {
    /// Version of the records; this key also marks the file.
    pub tcpwatch_records: u32,
    pub node: String,
    pub kernel: String,
    /// Nanoseconds since 1970 minus CLOCK_MONOTONIC.
    pub wall_offset_ns: u64,
    /// Of the kernel.
    pub ticks_per_second: TickRate,
    pub told: Told,
}

/// One thing that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A record of the ring.
    Record(Bytes),
    /// A sweep begins, at this time of CLOCK_MONOTONIC.
    SweepBegin(u64),
    /// Something of what the sweep found: `SeenSocket` records.
    Seen(Bytes),
    /// It found no more.
    SweepEnd(Coverage),
    /// What /proc said of a process.
    Process(ProcessFrame),
    /// CLOCK_MONOTONIC, once a second and at the end.
    Tick(u64),
    /// Records lost since the start.
    Lost(Lost),
    /// What the programs only counted since the start.
    OnlyCounted(OnlyCounted),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFrame {
    pub pid: u32,
    pub start_ns: u64,
    #[serde(flatten)]
    pub details: ProcDetails,
}

const RECORD: u8 = 1;
const SWEEP_BEGIN: u8 = 2;
const SEEN: u8 = 3;
const PROCESS: u8 = 4;
const TICK: u8 = 5;
const LOST: u8 = 6;
const SWEEP_END: u8 = 7;
const ONLY_COUNTED: u8 = 8;

pub struct Recorder {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Recorder {
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path, header: &Header) -> Result<Self, RecordingError> {
        let failed = |error| RecordingError::Write(path.to_owned(), error);
        let mut file = BufWriter::new(File::create(path).map_err(failed)?);
        serde_json::to_writer(&mut file, header).map_err(|error| failed(error.into()))?;
        file.write_all(b"\n").map_err(failed)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// A record of the ring, without the copy that a [`Frame`] would need.
    ///
    /// # Errors
    /// When the file cannot be written, a full disk for one.
    pub fn record(&mut self, bytes: &[u8]) -> Result<(), RecordingError> {
        self.frame(RECORD, bytes)
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn write(&mut self, frame: &Frame) -> Result<(), RecordingError> {
        match frame {
            Frame::Record(bytes) => self.frame(RECORD, bytes),
            Frame::SweepBegin(now_ns) => self.frame(SWEEP_BEGIN, &now_ns.to_le_bytes()),
            Frame::Seen(records) => self.frame(SEEN, records),
            Frame::SweepEnd(coverage) => {
                let mut payload = BytesMut::new();
                payload.put_u8(coverage.all.into());
                for namespace in &coverage.namespaces {
                    payload.put_u32_le(*namespace);
                }
                self.frame(SWEEP_END, &payload)
            }
            Frame::Process(process) => {
                let json = serde_json::to_vec(process)
                    .map_err(|error| RecordingError::Write(self.path.clone(), error.into()))?;
                self.frame(PROCESS, &json)
            }
            Frame::Tick(now_ns) => self.frame(TICK, &now_ns.to_le_bytes()),
            Frame::Lost(lost) => {
                let counts = [lost.ring_full.to_le_bytes(), lost.run_skipped.to_le_bytes()];
                self.frame(LOST, counts.as_flattened())
            }
            Frame::OnlyCounted(counted) => {
                let OnlyCounted { held_back, no_socket_resets, listener_resets, policy_resets } = *counted;
                let counts = [held_back, no_socket_resets, listener_resets, policy_resets];
                self.frame(ONLY_COUNTED, counts.map(u64::to_le_bytes).as_flattened())
            }
        }
    }

    /// # Errors
    /// When the file cannot be written.
    pub fn flush(&mut self) -> Result<(), RecordingError> {
        self.file.flush().map_err(|error| RecordingError::Write(self.path.clone(), error))
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) -> Result<(), RecordingError> {
        let mut put = || -> io::Result<()> {
            let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
            self.file.write_all(&length.to_le_bytes())?;
            self.file.write_all(&[kind])?;
            self.file.write_all(payload)
        };
        put().map_err(|error| RecordingError::Write(self.path.clone(), error))
    }
}

/// A recording read back. Iterating ends at the end of the file, or where it is cut short or malformed:
/// [`Recording::remaining`] is then not 0.
pub struct Recording {
    pub header: Header,
    rest: Bytes,
}

impl Recording {
    /// # Errors
    /// When the file cannot be read or is not a recording of this version.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let mut rest: Bytes =
            std::fs::read(path).map_err(|error| RecordingError::Read(path.to_owned(), error))?.into();
        let not_one = || RecordingError::Format(path.to_owned());
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or_else(not_one)?;
        let header: Header = serde_json::from_slice(&rest.split_to(end)).map_err(|_| not_one())?;
        if header.tcpwatch_records != ABI {
            return Err(RecordingError::Abi(path.to_owned(), header.tcpwatch_records));
        }
        rest.advance(1);
        Ok(Self { header, rest })
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
                let namespaces = std::iter::from_fn(|| payload.try_get_u32_le().ok()).collect();
                Frame::SweepEnd(Coverage { namespaces, all })
            }
            PROCESS => Frame::Process(serde_json::from_slice(&payload).ok()?),
            TICK => Frame::Tick(payload.try_get_u64_le().ok()?),
            LOST => Frame::Lost(Lost {
                ring_full: payload.try_get_u64_le().ok()?,
                run_skipped: payload.try_get_u64_le().ok()?,
            }),
            ONLY_COUNTED => Frame::OnlyCounted(OnlyCounted {
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

    fn header() -> Header {
        Header {
            tcpwatch_records: ABI,
            node: "n".into(),
            kernel: "k".into(),
            wall_offset_ns: 1,
            ticks_per_second: TickRate(NonZeroU16::MIN),
            told: Told::default(),
        }
    }

    struct TempFile(PathBuf);

    impl TempFile {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("tcpwatch-{name}-{}", std::process::id())))
        }
    }

    impl Drop for TempFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn what_was_written_is_read_back_and_a_cut_file_gives_what_is_whole() {
        let file = TempFile::new("roundtrip");
        let details = ProcDetails { exe: Some("/bin/x".into()), cgroup: None };
        let frames = [
            Frame::SweepBegin(7),
            Frame::Record(Bytes::from_static(b"abc")),
            Frame::Seen(Bytes::from_static(b"xyz")),
            Frame::SweepEnd(Coverage { namespaces: [4, 5].into_iter().collect(), all: true }),
            Frame::Process(ProcessFrame { pid: 1, start_ns: 2, details }),
            Frame::Lost(Lost { ring_full: 3, run_skipped: 4 }),
            Frame::OnlyCounted(OnlyCounted {
                held_back: 5,
                no_socket_resets: 6,
                listener_resets: 7,
                policy_resets: 8,
            }),
            Frame::Tick(4),
        ];
        let mut recorder = Recorder::create(&file.0, &header()).unwrap();
        for frame in &frames {
            recorder.write(frame).unwrap();
        }
        recorder.flush().unwrap();
        let mut recording = Recording::open(&file.0).unwrap();
        assert!(recording.by_ref().eq(frames.iter().cloned()));
        assert_eq!(recording.remaining(), 0);

        let whole = std::fs::read(&file.0).unwrap();
        std::fs::write(&file.0, &whole[..whole.len() - 1]).unwrap();
        let mut recording = Recording::open(&file.0).unwrap();
        assert_eq!(recording.by_ref().count(), frames.len() - 1);
        assert_ne!(recording.remaining(), 0);
    }

    #[test]
    fn other_files_and_other_versions_are_refused() {
        let file = TempFile::new("refused");
        std::fs::write(&file.0, b"#!/bin/sh\nexit\n").unwrap();
        assert!(matches!(Recording::open(&file.0), Err(RecordingError::Format(_))));
        Recorder::create(&file.0, &Header { tcpwatch_records: ABI + 1, ..header() }).unwrap();
        assert!(matches!(Recording::open(&file.0), Err(RecordingError::Abi(_, _))));
    }
}
