//! The border to the kernel: loads the BPF object, attaches its programs, and reports which hook gives which signal.
//!
//! In: the object built into this binary, the running kernel's types. Out: the ring, the queues, the counters,
//! iterators over all sockets, and a [`SignalReport`] for each [`Signal`]. It decodes nothing. What a kernel offers is
//! found out by trying, never by its version.

mod attach;
mod choice;
mod error;
mod hooks;
mod iterate;
mod layout;
mod load;
mod signals;
mod tracefs;
mod way;

use std::time::Duration;

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};

use self::attach::Attached;
pub use self::{
    choice::Choice,
    error::ProbeError,
    hooks::{Attempt, Hooks, LoadedProgram, SignalReport, SocketIdentity},
    load::LoadOptions,
    signals::{Signal, Spec},
    tracefs::field_offset,
    way::{Way, WayKind},
};
use crate::kernel::transport::{CountedRetransmits, LossCounters, Queues};

/// The loaded programs; they stay attached while this lives.
pub struct Probes {
    ebpf: Ebpf,
    attached: Vec<Attached>,
}

/// The results of loading, each for another owner.
pub struct Loaded {
    pub probes: Probes,
    pub hooks: Hooks,
    pub queues: Queues,
    pub ring: RingBuf<MapData>,
    pub lost: LossCounters,
    pub retransmits: CountedRetransmits,
}

/// How often the programs' log is read.
const LOG_INTERVAL: Duration = Duration::from_millis(500);

impl Probes {
    /// Passes what the programs log to this process's log. Only for `--debug`, so a failure is only logged. Needs a
    /// tokio runtime.
    pub fn follow_log(&mut self) {
        let mut logger = match aya_log::EbpfLogger::init(&mut self.ebpf) {
            Ok(logger) => logger,
            Err(error) => {
                tracing::warn!(%error, "the BPF programs' log cannot be read");
                return;
            }
        };
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(LOG_INTERVAL);
            loop {
                interval.tick().await;
                logger.flush();
            }
        });
    }
}
