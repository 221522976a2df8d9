//! Why the kernel cannot be watched.

use std::{io, path::PathBuf};

use aya::programs::ProgramError;
use thiserror::Error;

use crate::kernel::{btf::BtfError, probes::hooks::Attempt};

#[derive(Debug, Error)]
pub enum ProbeError {
    #[error("Linux {0} is too old: tcpwatch needs 5.8 or later, and is tested from 5.10 on")]
    TooOld(String),
    #[error(
        "this process may not load BPF programs: {0}; run tcpwatch as root (sudo), or give it CAP_BPF and CAP_PERFMON"
    )]
    Privilege(String),
    #[error("cannot read the kernel's types at {0}: {1}")]
    ReadBtf(PathBuf, io::Error),
    #[error("the kernel's types at {0} cannot be used: {1}")]
    Btf(PathBuf, BtfError),
    #[error("this kernel does not load the BPF object: {0}; does it have CONFIG_BPF_SYSCALL=y?")]
    Load(Box<aya::EbpfError>),
    #[error("the BPF object does not contain {0}: rebuild it with `cargo xtask bpf`")]
    Object(&'static str),
    #[error("state changes cannot be observed on this kernel: {0}")]
    NoStateChanges(String),
    #[error("cannot read the number of processors: {0}: {1}")]
    Processors(&'static str, io::Error),
    #[error("cannot map the queues of state changes: {0}")]
    Queues(io::Error),
    #[error("cannot open /proc/self/fdinfo of the BPF programs, which counts their skipped runs: {0}")]
    LossCounters(io::Error),
    #[error("cannot use the map {map}: {error}")]
    Map { map: &'static str, error: aya::maps::MapError },
}

impl ProbeError {
    pub(super) fn no_state_changes(tried: &[Attempt]) -> Self {
        let tried: Vec<_> =
            tried.iter().map(|attempt| format!("{}: {}", attempt.hook, attempt.error)).collect();
        Self::NoStateChanges(tried.join("; "))
    }
}

/// The error with the kernel's reason, which aya keeps in the source chain.
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn explain(error: ProgramError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    // Without `--debug` aya announces a verifier log that is empty.
    text.trim_end().trim_end_matches("Verifier output:").trim_end().trim_end_matches('.').to_owned()
}
