//! Files of recordings: `--record` writes them, `tcpwatch replay` opens them.
//!
//! In: frames as they arrive. Out: a file in the format of `events/recording.rs`.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::events::{
    frame::Frame,
    recording::{self, FormatError, Header, Recording},
};

#[derive(Debug, Error)]
pub enum RecordingError {
    #[error("cannot write the recording {0}: {1}")]
    Write(PathBuf, io::Error),
    #[error("cannot read the recording {0}: {1}")]
    Read(PathBuf, io::Error),
    #[error("{0} {1}")]
    Format(PathBuf, FormatError),
}

/// Opens a recording for replay.
///
/// # Errors
/// When the file cannot be read, or is not a recording of this format version.
pub fn open(path: &Path) -> Result<Recording, RecordingError> {
    let bytes = std::fs::read(path).map_err(|error| RecordingError::Read(path.to_owned(), error))?;
    Recording::parse(bytes.into()).map_err(|error| RecordingError::Format(path.to_owned(), error))
}

/// A recording that is being written.
pub struct Recorder {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Recorder {
    /// Creates the file and writes the header.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(path: &Path, header: &Header) -> Result<Self, RecordingError> {
        let failed = |error| RecordingError::Write(path.to_owned(), error);
        let mut file = BufWriter::new(File::create(path).map_err(failed)?);
        recording::write_header(&mut file, header).map_err(failed)?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Writes a record from the kernel, without the copy that a [`Frame`] would need.
    ///
    /// # Errors
    /// When the file cannot be written, for example on a full disk.
    pub fn record(&mut self, bytes: &[u8]) -> Result<(), RecordingError> {
        let written = recording::write_record(&mut self.file, bytes);
        written.map_err(|error| self.failed(error))
    }

    /// Writes a frame.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&mut self, frame: &Frame) -> Result<(), RecordingError> {
        let written = recording::write_frame(&mut self.file, frame);
        written.map_err(|error| self.failed(error))
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn flush(&mut self) -> Result<(), RecordingError> {
        self.file.flush().map_err(|error| self.failed(error))
    }

    fn failed(&self, error: io::Error) -> RecordingError {
        RecordingError::Write(self.path.clone(), error)
    }
}
