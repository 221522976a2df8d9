//! The border to the kernel: loads the BPF object, attaches its programs and says which hook serves which
//! signal.
//!
//! In: the object built into this binary, the running kernel's BTF. Out: the ring, the counters, an iterator
//! over held sockets, and a [`Signal`] for each thing that can be known. It decodes nothing.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{MapData, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, FEntry, Iter, Program, ProgramError},
};
use serde::Serialize;
use tcpwatch_common::{ABI, ABI_SYMBOL, counter};
use thiserror::Error;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{btf, offsets};

/// Built by `cargo xtask bpf`; `include_bytes_aligned` because ELF parsers want their headers aligned.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/tcpwatch.bpf.o"));

/// Where a kernel with CONFIG_DEBUG_INFO_BTF publishes its types.
const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The daemon wakes when the ring is this share full (one eighth), and else on its timer.
const WAKEUP_SHARE: u32 = 8;

#[derive(Debug, Error)]
pub enum ProbeError {
    #[error(
        "this process may not load BPF programs: {0}; run tcpwatch as root (sudo), or give it CAP_BPF and CAP_PERFMON"
    )]
    Privilege(String),
    #[error(
        "cannot read the kernel's types at {VMLINUX_BTF}: {0}; tcpwatch needs a kernel built with CONFIG_DEBUG_INFO_BTF=y (5.12 or later)"
    )]
    NoBtf(io::Error),
    #[error("the kernel's types at {VMLINUX_BTF} do not serve: {0}")]
    Btf(#[from] btf::BtfError),
    #[error("cannot read the kernel's types at {VMLINUX_BTF} for loading: {0}")]
    LoaderBtf(#[from] aya::BtfError),
    #[error("this kernel does not load the BPF object: {0}; is it 5.12 or later, with CONFIG_BPF_SYSCALL=y?")]
    Load(Box<aya::EbpfError>),
    #[error("the BPF object has no {0} in it: rebuild it with `cargo xtask bpf`")]
    Object(&'static str),
    #[error("no way to see state changes on this kernel: tp_btf inet_sock_set_state: {0}")]
    NoStateChanges(String),
    #[error("cannot map {map}: {error}")]
    Map { map: &'static str, error: aya::maps::MapError },
}

/// One thing tcpwatch can know, and how it gets to know it here.
#[derive(Clone, Debug, Serialize)]
pub struct Signal {
    pub signal: &'static str,
    /// The hook that serves it; `null` when nothing does.
    pub hook: Option<&'static str>,
    /// Why a better hook is not used, with the kernel's own words.
    pub tried: Vec<Attempt>,
    /// What is missing or less exact because of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<&'static str>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Attempt {
    pub hook: &'static str,
    pub error: String,
}

/// The loaded programs; they stay attached while this lives.
pub struct Probes {
    ebpf: Ebpf,
    programs: Vec<&'static str>,
    pub signals: Vec<Signal>,
}

/// What loading gives: each part goes to another owner.
pub struct Loaded {
    pub probes: Probes,
    pub ring: RingBuf<MapData>,
    pub ring_bytes: u32,
    pub lost: LossCounters,
}

/// How to load.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// A power of two, at least one page.
    pub ring_bytes: u32,
    /// Of 2^32 records so many are dropped on purpose, and counted as lost: a test of the repair.
    pub drop_share: u32,
    /// Full verifier logs in errors, and the programs' own log.
    pub debug: bool,
}

/// `Level::Debug` of aya-log-common, which aya-log does not pass on; 0 switches the log off.
const DEBUG_LEVEL: u8 = 4;
/// How often the programs' log is read.
const LOG_INTERVAL: Duration = Duration::from_millis(500);

const STATE: &str = "tp_btf inet_sock_set_state";
const RETRANSMIT: &str = "tp_btf tcp_retransmit_skb";
const CLOSE: &str = "fentry tcp_close";
const CLOSE_INFERRED: &str = "inferred from state changes";
const MINISOCK_END: &str = "fentry inet_twsk_kill";
const MINISOCK_END_INFERRED: &str = "computed from the kernel's timer wheel, corrected by iter tcp";
const HELD: &str = "iter task_file";
const UNHELD: &str = "iter tcp";

impl Probes {
    /// Loads and attaches everything this kernel takes.
    ///
    /// # Errors
    /// Without privilege, BTF or BPF, or when state changes cannot be had.
    pub fn load(options: LoadOptions) -> Result<Loaded, ProbeError> {
        check_privilege()?;
        let offsets = {
            let vmlinux = std::fs::read(VMLINUX_BTF).map_err(ProbeError::NoBtf)?;
            offsets::resolve(&btf::Btf::parse(&vmlinux)?)?
        };
        let kernel_btf = aya::Btf::from_sys_fs()?;
        let wakeup_bytes = options.ring_bytes / WAKEUP_SHARE;
        let log_level = if options.debug { DEBUG_LEVEL } else { 0 };
        let mut loader = EbpfLoader::new();
        loader
            .btf(Some(&kernel_btf))
            .map_max_entries("RING", options.ring_bytes)
            .override_global("WAKEUP_BYTES", &wakeup_bytes, true)
            .override_global(aya_log::LEVEL, &log_level, true)
            .override_global("DROP_SHARE", &options.drop_share, true)
            // Refuses an object whose records this daemon would misread.
            .override_global(ABI_SYMBOL, &ABI, true)
            .verifier_log_level(if options.debug {
                VerifierLogLevel::VERBOSE
            } else {
                VerifierLogLevel::DISABLE
            });
        for (global, offset) in &offsets {
            loader.override_global(global, offset, true);
        }
        let mut ebpf = loader.load(OBJECT).map_err(load_error)?;
        let ring = take_map(&mut ebpf, "RING")?;
        let mut probes = Self { ebpf, programs: Vec::new(), signals: Vec::new() };
        let states = probes.attach_btf_tracepoint("inet_sock_set_state", &kernel_btf);
        probes.report("state changes", STATE, states, None, "everything");
        if let Some(failed) = probes.signals[0].tried.first() {
            return Err(ProbeError::NoStateChanges(failed.error.clone()));
        }
        let retransmits = probes.attach_btf_tracepoint("tcp_retransmit_skb", &kernel_btf);
        probes.report(
            "retransmits",
            RETRANSMIT,
            retransmits,
            None,
            "retransmits are seen only when a connection ends",
        );
        let close = probes.attach_fentry("tcp_close", &kernel_btf);
        probes.report(
            "close by the owner",
            CLOSE,
            close,
            Some(CLOSE_INFERRED),
            "who closed is not known for abortive closes and for closes after shutdown()",
        );
        let held = probes.load_iterator("task_file", &kernel_btf);
        probes.report(
            "sockets held by processes",
            HELD,
            held,
            None,
            "connections opened before the start stay unknown until they change; which of several workers \
             accepted is known only when it closes",
        );
        let unheld = probes.load_iterator("tcp", &kernel_btf);
        probes.report(
            "sockets held by nobody",
            UNHELD,
            unheld,
            None,
            "TIME_WAIT and orphaned FIN_WAIT2 are inferred; lost records are repaired only for held sockets",
        );
        let minisocks = probes.attach_fentry("inet_twsk_kill", &kernel_btf);
        probes.report(
            "end of TIME_WAIT and orphaned FIN_WAIT2",
            MINISOCK_END,
            minisocks,
            Some(MINISOCK_END_INFERRED),
            "a minisock that a reset or a reused port ends early is noticed up to 10 s late",
        );
        if options.debug {
            follow_log(&mut probes.ebpf);
        }
        let lost = probes.loss_counters()?;
        Ok(Loaded { probes, ring, ring_bytes: options.ring_bytes, lost })
    }

    fn report(
        &mut self,
        signal: &'static str,
        best: &'static str,
        result: Result<(), String>,
        fallback: Option<&'static str>,
        lost: &'static str,
    ) {
        self.signals.push(match result {
            Ok(()) => Signal { signal, hook: Some(best), tried: Vec::new(), lost: None },
            Err(error) => {
                tracing::info!(signal, hook = best, error, "hook not available");
                Signal {
                    signal,
                    hook: fallback,
                    tried: vec![Attempt { hook: best, error }],
                    lost: Some(lost),
                }
            }
        });
    }

    fn attach_btf_tracepoint(&mut self, name: &'static str, btf: &aya::Btf) -> Result<(), String> {
        let program: &mut BtfTracePoint = self.program(name)?;
        program.load(name, btf).map_err(explain)?;
        program.attach().map_err(explain)?;
        self.programs.push(name);
        Ok(())
    }

    fn attach_fentry(&mut self, name: &'static str, btf: &aya::Btf) -> Result<(), String> {
        let program: &mut FEntry = self.program(name)?;
        program.load(name, btf).map_err(explain)?;
        program.attach().map_err(explain)?;
        self.programs.push(name);
        Ok(())
    }

    fn load_iterator(&mut self, name: &'static str, btf: &aya::Btf) -> Result<(), String> {
        let program: &mut Iter = self.program(name)?;
        program.load(name, btf).map_err(explain)?;
        // Loaded is not yet able: one iterator is made, and dropped unread.
        self.iterate(name).map(drop)
    }

    fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, String>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program =
            self.ebpf.program_mut(name).ok_or_else(|| format!("the object has no program {name}"))?;
        program.try_into().map_err(explain)
    }

    /// Whether a hook tells when minisocks end.
    pub fn tells_minisock_ends(&self) -> bool {
        self.programs.contains(&"inet_twsk_kill")
    }

    /// A file whose reading lists, as `SeenSocket` records, every TCP socket held by a process.
    ///
    /// # Errors
    /// When the kernel refuses the iterator, with its reason.
    pub fn held_sockets(&mut self) -> Result<File, String> {
        self.iterate("task_file")
    }

    /// The same for every TCP socket of the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the iterator, with its reason.
    pub fn namespace_sockets(&mut self) -> Result<File, String> {
        self.iterate("tcp")
    }

    fn iterate(&mut self, name: &str) -> Result<File, String> {
        let program: &mut Iter = self.program(name)?;
        let link = program.attach().map_err(explain)?;
        program.take_link(link).map_err(explain)?.into_file().map_err(|error| error.to_string())
    }

    /// What to ask for [`Lost`]; apart from the programs, which another thread keeps.
    fn loss_counters(&mut self) -> Result<LossCounters, ProbeError> {
        let fd = |name: &&str| Some(self.ebpf.program(name)?.fd().ok()?.as_fd().as_raw_fd());
        let programs = self.programs.iter().filter_map(fd).collect();
        Ok(LossCounters { counters: take_map(&mut self.ebpf, "COUNTERS")?, programs })
    }
}

/// Counts of lost records. Valid while the [`Probes`] that it came with live.
pub struct LossCounters {
    counters: PerCpuArray<MapData, u64>,
    /// Descriptors of the attached programs.
    programs: Vec<RawFd>,
}

impl LossCounters {
    /// Records lost since the start: those without room in the ring, and runs of a program that the kernel
    /// skipped because they would have run inside itself (Linux 5.12 and later tell).
    pub fn read(&self) -> Lost {
        let full = (0..counter::COUNT)
            .filter_map(|index| self.counters.get(&index, 0).ok())
            .map(|values| values.iter().sum::<u64>())
            .sum();
        let skipped = self.programs.iter().filter_map(|fd| recursion_misses(*fd)).sum();
        Lost { ring_full: full, run_skipped: skipped }
    }
}

fn recursion_misses(program: RawFd) -> Option<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{program}")).ok()?;
    info.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?.trim().parse().ok()
}

/// Hands what the programs log to this process's log. Only for `--debug`, so a failure is only told.
fn follow_log(ebpf: &mut Ebpf) {
    let mut logger = match aya_log::EbpfLogger::init(ebpf) {
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

/// The ring, ready to be waited for.
///
/// # Errors
/// When it cannot be polled. Wants a tokio runtime.
#[allow(unsafe_code, reason = "tokio cannot know that the ring keeps its descriptor")]
pub fn pollable(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: a RingBuf owns its map's descriptor, always names that one, and closes it when dropped.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
        .map_err(|error| io::Error::other(error.to_string()))
}

/// Why records were lost, and how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    pub ring_full: u64,
    pub run_skipped: u64,
}

impl Lost {
    pub fn total(self) -> u64 {
        self.ring_full + self.run_skipped
    }
}

fn take_map<T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    map: &'static str,
) -> Result<T, ProbeError> {
    let found = ebpf.take_map(map).ok_or(ProbeError::Object(map))?;
    T::try_from(found).map_err(|error| ProbeError::Map { map, error })
}

/// Capability numbers: include/uapi/linux/capability.h.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

fn check_privilege() -> Result<(), ProbeError> {
    let status = procfs::process::Process::myself()
        .and_then(|me| me.status())
        .map_err(|error| ProbeError::Privilege(error.to_string()))?;
    let has = |capability: u32| status.capeff & (1 << capability) != 0;
    if has(CAP_SYS_ADMIN) || (has(CAP_BPF) && has(CAP_PERFMON)) {
        return Ok(());
    }
    let missing = [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
        .iter()
        .filter(|(capability, _)| !has(*capability))
        .map(|(_, name)| *name)
        .collect::<Vec<_>>()
        .join(" and ");
    Err(ProbeError::Privilege(format!("{missing} missing")))
}

fn load_error(error: aya::EbpfError) -> ProbeError {
    ProbeError::Load(Box::new(error))
}

/// The error with the kernel's reason, which aya keeps in the source chain.
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn explain(error: ProgramError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    // Without `--debug` there is no verifier log to announce.
    text.trim_end().trim_end_matches("Verifier output:").trim_end().to_owned()
}
