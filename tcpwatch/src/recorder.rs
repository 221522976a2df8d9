//! Files of recordings: `--record` writes them, `tcpwatch replay` opens them.
//!
//! In: frames as they arrive. Out: a file in the format of `events/recording.rs`, that ends with a whole frame. A thread
//! writes it, so that nobody waits for a disk: a recording for which the disk is too slow or too small ends.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use rustix::process::geteuid;
use thiserror::Error;

use crate::{
    events::{
        frame::Frame,
        recording::{self, FormatError, Header, Recording},
    },
    kernel::capabilities::{self, Thread},
};

#[derive(Debug, Error)]
pub enum RecordingError {
    #[error("cannot write the recording {0}: {1}")]
    Write(PathBuf, io::Error),
    #[error("the recording {0} ends at {1} bytes, its greatest size (--record-max-size)")]
    MaxSize(PathBuf, u64),
    #[error("the disk is too slow for the recording {0}: {MAX_WAITING_BYTES} bytes wait to be written")]
    Slow(PathBuf),
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

/// Frames are handed to the thread in parts of this size, or when [`Recorder::flush`] is called.
const PART_BYTES: usize = 64 << 10;
/// Limit for what the thread has not written yet: more than a sweep of a hundred thousand sockets.
const MAX_WAITING_BYTES: usize = 32 << 20;
/// How long the end of the daemon waits for the disk.
const FINISH_LIMIT: Duration = Duration::from_secs(5);

/// A recording that is being written.
pub struct Recorder {
    path: PathBuf,
    /// Frames that were not handed over.
    part: Vec<u8>,
    parts: Sender<Vec<u8>>,
    /// Bytes that were handed over and are not written.
    waiting: Arc<AtomicUsize>,
    /// The thread's result.
    end: Receiver<io::Result<()>>,
    size: u64,
    max_size: u64,
}

impl Recorder {
    /// Creates the file, for its owner alone, and writes the header. The recording ends before it has more than `max_size`
    /// bytes.
    ///
    /// # Errors
    /// When the file cannot be created, or is not one that only this user has.
    pub fn create(path: &Path, header: &Header, max_size: u64) -> Result<Self, RecordingError> {
        create_file(path)
            .and_then(|file| Self::write_to(file, path, header, max_size))
            .map_err(|error| RecordingError::Write(path.to_owned(), error))
    }

    fn write_to(mut file: File, path: &Path, header: &Header, max_size: u64) -> io::Result<Self> {
        let mut part = Vec::new();
        recording::write_header(&mut part, header)?;
        file.write_all(&part)?;
        let size = part.len() as u64;
        let (parts, received) = channel();
        let (ended, end) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&waiting);
        std::thread::Builder::new().name("recorder".into()).spawn(move || {
            if let Err(error) = capabilities::become_thread(Thread::Recorder) {
                tracing::error!(%error, "the recorder keeps more capabilities than it needs");
            }
            // Before `received` is closed: who finds it closed finds the result. Nobody may be there any more.
            let _ = ended.send(write_parts(&mut file, size, &received, &left));
            drop(received);
        })?;
        part.clear();
        Ok(Self { path: path.to_owned(), part, parts, waiting, end, size, max_size })
    }

    /// Adds a record from the kernel, without the copy that a [`Frame`] would need.
    ///
    /// # Errors
    /// When the recording has ended.
    pub fn record(&mut self, bytes: &[u8]) -> Result<(), RecordingError> {
        self.add(|part| recording::write_record(part, bytes))
    }

    /// Adds a frame.
    ///
    /// # Errors
    /// When the recording has ended.
    pub fn write(&mut self, frame: &Frame) -> Result<(), RecordingError> {
        self.add(|part| recording::write_frame(part, frame))
    }

    fn add(&mut self, write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> Result<(), RecordingError> {
        let before = self.part.len();
        write(&mut self.part).map_err(|error| RecordingError::Write(self.path.clone(), error))?;
        let size = self.size + (self.part.len() - before) as u64;
        if size > self.max_size {
            self.part.truncate(before);
            self.flush()?;
            return Err(RecordingError::MaxSize(self.path.clone(), self.size));
        }
        self.size = size;
        if self.part.len() >= PART_BYTES { self.flush() } else { Ok(()) }
    }

    /// Hands over what was added.
    ///
    /// # Errors
    /// When the recording has ended, for example on a full disk.
    pub fn flush(&mut self) -> Result<(), RecordingError> {
        let part = std::mem::take(&mut self.part);
        let bytes = part.len();
        if self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_WAITING_BYTES {
            return Err(RecordingError::Slow(self.path.clone()));
        }
        self.parts.send(part).map_err(|_| self.failed())
    }

    /// Ends the recording.
    ///
    /// # Errors
    /// When it could not be written as a whole within some seconds.
    pub fn finish(mut self) -> Result<(), RecordingError> {
        self.flush()?;
        let Self { path, parts, end, .. } = self;
        drop(parts);
        let written = end.recv_timeout(FINISH_LIMIT).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        written.map_err(|error| RecordingError::Write(path, error))
    }

    /// Why the thread has ended.
    fn failed(&self) -> RecordingError {
        let error = self.end.try_recv().ok().and_then(Result::err);
        RecordingError::Write(self.path.clone(), error.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()))
    }
}

/// A new file, or one that is of this user alone. Not where a symbolic link leads: who may write into the directory would
/// choose the file.
fn create_file(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
    let file = options.open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => io::Error::other("it is a symbolic link; choose another name, or remove it"),
        _ => error,
    })?;
    let there = file.metadata()?;
    if !there.is_file() || there.nlink() != 1 || there.uid() != geteuid().as_raw() {
        return Err(io::Error::other("it exists, and is not a file of this user under one name"));
    }
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.set_len(0)?;
    Ok(file)
}

/// Writes the parts behind the `size` bytes that are there. Where one cannot be written as a whole, the file is cut where
/// it began.
fn write_parts(
    file: &mut File,
    mut size: u64,
    parts: &Receiver<Vec<u8>>,
    waiting: &AtomicUsize,
) -> io::Result<()> {
    for part in parts {
        if let Err(error) = file.write_all(&part) {
            // What cannot be cut is as replay finds it after a crash: it says so, and plays the rest.
            let _ = file.set_len(size);
            return Err(error);
        }
        size += part.len() as u64;
        waiting.fetch_sub(part.len(), Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Read as _,
        num::NonZeroU16,
        os::{fd::OwnedFd, unix::fs::symlink},
        sync::atomic::AtomicU32,
        time::Instant,
    };

    use bytes::Bytes;

    use super::*;
    use crate::{events::frame::ReportedFacts, tcp::ticks::TickRate};

    /// A directory that is removed with what is in it.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(format!("tcpwatch-recorder-{process}-{number}"));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn header() -> Header {
        Header {
            tcpwatch_records: tcpwatch_common::ABI,
            node: "n".into(),
            kernel: "k".into(),
            wall_offset_ns: 1,
            ticks_per_second: TickRate(NonZeroU16::MIN),
            reported: ReportedFacts::default(),
        }
    }

    fn create(path: &Path) -> Result<Recorder, RecordingError> {
        Recorder::create(path, &header(), u64::MAX)
    }

    fn frame() -> Frame {
        Frame::Seen(Bytes::from(vec![7; 100_000]))
    }

    /// Adds frames until the recording ends, and returns how many were added, and why it ended.
    fn add_until_the_end(recorder: &mut Recorder) -> (usize, RecordingError) {
        let deadline = Instant::now() + Duration::from_secs(20);
        for added in 0.. {
            if let Err(error) = recorder.write(&frame()) {
                return (added, error);
            }
            assert!(Instant::now() < deadline, "it does not end");
        }
        unreachable!()
    }

    #[test]
    fn a_recording_is_read_back_as_it_was_written_and_is_for_its_owner_alone() {
        let folder = Folder::new();
        let path = folder.0.join("new");
        for _ in 0..2 {
            let mut recorder = create(&path).unwrap();
            recorder.record(b"abc").unwrap();
            recorder.write(&frame()).unwrap();
            recorder.write(&Frame::Tick(7)).unwrap();
            recorder.finish().unwrap();
            let mut read = open(&path).unwrap();
            let frames: Vec<_> = read.by_ref().collect();
            assert_eq!(frames, [Frame::Record(Bytes::from_static(b"abc")), frame(), Frame::Tick(7)]);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
            // Again over what was there.
            fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        }
    }

    #[test]
    fn what_others_may_have_put_there_is_not_written_to() {
        let folder = Folder::new();
        let at = |name: &str| folder.0.join(name);
        fs::write(at("precious"), "as it was").unwrap();
        symlink(at("precious"), at("link")).unwrap();
        symlink(at("missing"), at("dangling")).unwrap();
        fs::hard_link(at("precious"), at("second-name")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
        for name in ["link", "dangling", "second-name", "fifo", "."] {
            assert!(matches!(create(&at(name)), Err(RecordingError::Write(..))), "{name}");
        }
        assert!(create(Path::new("/dev/null")).is_err());
        assert_eq!(fs::read_to_string(at("precious")).unwrap(), "as it was");
        assert!(!at("missing").exists());
    }

    #[test]
    fn a_recording_ends_before_it_is_too_large_with_a_whole_frame() {
        let folder = Folder::new();
        let path = folder.0.join("limited");
        let mut recorder = Recorder::create(&path, &header(), 350_000).unwrap();
        let (added, error) = add_until_the_end(&mut recorder);
        assert!(added == 3 && matches!(error, RecordingError::MaxSize(..)), "{added} {error}");
        recorder.finish().unwrap();
        let mut read = open(&path).unwrap();
        assert_eq!((read.by_ref().count(), read.remaining()), (3, 0));
        assert!(fs::metadata(&path).unwrap().len() <= 350_000);
    }

    #[test]
    fn a_full_disk_ends_a_recording() {
        // The header was written while there was room.
        let (reader, writer) = io::pipe().unwrap();
        let mut recorder =
            Recorder::write_to(File::from(OwnedFd::from(writer)), Path::new("x"), &header(), u64::MAX)
                .unwrap();
        drop(reader);
        assert!(matches!(add_until_the_end(&mut recorder).1, RecordingError::Write(..)));
        let (parts, received) = channel();
        parts.send(vec![1; 10]).unwrap();
        let mut full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = write_parts(&mut full, 0, &received, &AtomicUsize::new(10)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn nobody_waits_for_a_disk_that_hangs() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut recorder =
            Recorder::write_to(File::from(OwnedFd::from(writer)), Path::new("x"), &header(), u64::MAX)
                .unwrap();
        let (added, error) = add_until_the_end(&mut recorder);
        assert!(matches!(error, RecordingError::Slow(_)), "{error}");
        assert!((300..=340).contains(&added), "{added} frames of 100 kB are what may wait");
        // What was handed over is still written when the disk is there again.
        drop(recorder);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        let mut read = Recording::parse(bytes.into()).unwrap();
        assert_eq!((read.by_ref().count(), read.remaining()), (added, 0));
    }
}
