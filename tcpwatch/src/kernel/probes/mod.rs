//! The border to the kernel: loads the BPF object, attaches its programs and says which hook serves which
//! signal.
//!
//! In: the object built into this binary, the running kernel's types. Out: the ring, the counters, iterators over
//! all sockets, and a [`Signal`] for each thing that can be known. It decodes nothing. What a kernel offers is
//! found out by trying, never by its version.

mod tracefs;
mod ways;

use std::{
    fs::File,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, Map, MapData, RingBuf},
    programs::{
        BtfTracePoint, FEntry, FExit, Iter, KProbe, Program, ProgramError, RawTracePoint, TracePoint,
    },
};
use schemars::JsonSchema;
use serde::Serialize;
use tcpwatch_common::{ABI, ABI_SYMBOL};
use thiserror::Error;

pub use self::ways::{Attempt, Choice, Signal};
use crate::{
    events::frame::ReportedFacts,
    kernel::{
        btf::{
            Btf, BtfError,
            offsets::{self, Offsets},
        },
        capabilities::{Kernel, VMLINUX_BTF},
        probes::{
            tracefs::Formats,
            ways::{Attach, OTHERS, OUT_OF_ORDER, STATE, Spec, Way},
        },
        transport::{CountedRetransmits, LossCounters, Queues, buffer_sizes::BufferSizes},
    },
};

/// Built by `cargo xtask bpf`; `include_bytes_aligned` because ELF parsers want their headers aligned.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/tcpwatch.bpf.o"));

/// The daemon wakes when the ring is this share full (one eighth), and else on its timer.
const WAKEUP_SHARE: u32 = 8;

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
    #[error("the kernel's types at {0} do not serve: {1}")]
    Btf(PathBuf, BtfError),
    #[error("this kernel does not load the BPF object: {0}; has it CONFIG_BPF_SYSCALL=y?")]
    Load(Box<aya::EbpfError>),
    #[error("the BPF object has no {0} in it: rebuild it with `cargo xtask bpf`")]
    Object(&'static str),
    #[error("no way to see state changes on this kernel: {0}")]
    NoStateChanges(String),
    #[error("cannot tell how many processors there are: {0}: {1}")]
    Processors(&'static str, io::Error),
    #[error("cannot map the queues of state changes: {0}")]
    Queues(io::Error),
    #[error("cannot map {map}: {error}")]
    Map { map: &'static str, error: aya::maps::MapError },
}

/// How this kernel is watched.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct Hooks {
    pub kernel: Kernel,
    /// What tells one socket from another.
    pub identity: &'static str,
    pub signals: Vec<Signal>,
    pub programs: Vec<LoadedProgram>,
}

impl Hooks {
    /// Whether something is missing or less exact than on the best kernel.
    pub fn is_reduced(&self) -> bool {
        self.signals.iter().any(|signal| signal.lost.is_some())
    }
}

impl Hooks {
    /// What the records tell.
    pub fn reported(&self) -> ReportedFacts {
        let attached = |signal: &str| self.programs.iter().any(|one| serves(one.program, signal));
        ReportedFacts {
            minisock_ends: attached("minisock"),
            accepts: attached("accept"),
            identity_is_address: self.identity == BY_ADDRESS,
            errnos_missing: self.programs.iter().any(|one| one.program == "state_tracepoint"),
        }
    }
}

/// The object's programs are named `<signal>_<way>`.
fn serves(program: &str, signal: &str) -> bool {
    program.strip_prefix(signal).is_some_and(|rest| rest.starts_with('_'))
}

const BY_COOKIE: &str = "socket cookie";
const BY_ADDRESS: &str = "socket address";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LoadedProgram {
    pub program: &'static str,
    pub hook: &'static str,
    /// How many instructions the verifier walked through; `null` before Linux 5.16, which does not tell.
    pub verified_instructions: Option<u32>,
}

/// The loaded programs; they stay attached while this lives.
pub struct Probes {
    ebpf: Ebpf,
    /// Loaded, with their hooks.
    programs: Vec<(&'static str, &'static str)>,
}

/// What loading gives: each part goes to another owner.
pub struct Loaded {
    pub probes: Probes,
    pub hooks: Hooks,
    pub queues: Queues,
    pub ring: RingBuf<MapData>,
    pub lost: LossCounters,
    pub retransmits: CountedRetransmits,
}

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Memory for records on their way, a power of two and at least one page.
    pub record_bytes: Option<u32>,
    /// Of 2^32 records so many are dropped on purpose, and counted as lost: a test of the repair.
    pub drop_share: u32,
    /// The kernel's types, where it does not publish them itself.
    pub btf: Option<PathBuf>,
    /// Ways that were asked for.
    pub choices: Vec<Choice>,
    /// Full verifier logs in errors, and the programs' own log.
    pub debug: bool,
}

/// `Level::Debug` of aya-log-common, which aya-log does not pass on; 0 switches the log off.
const DEBUG_LEVEL: u8 = 4;
/// How often the programs' log is read.
const LOG_INTERVAL: Duration = Duration::from_millis(500);

/// What tells one socket from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SocketIdentity {
    /// The kernel's socket cookie: never given twice.
    Cookie,
    /// The socket's address: used again when its socket is gone.
    Address,
}

/// What is known of the kernel before anything is loaded.
struct Known<'a> {
    kernel: &'a Kernel,
    types: Option<Btf<'a>>,
    /// The types as the kernel publishes them; typed programs are attached by them.
    published: Option<aya::Btf>,
    offsets: Offsets,
    formats: Formats,
}

impl Probes {
    /// Loads and attaches everything this kernel takes.
    ///
    /// # Errors
    /// Without privilege or BPF, or when state changes cannot be had.
    pub fn load(options: &LoadOptions) -> Result<Loaded, ProbeError> {
        let kernel = Kernel::ask(options.btf.as_deref());
        if !kernel.is_new_enough() {
            return Err(ProbeError::TooOld(kernel.release));
        }
        if let Some(missing) = kernel.missing_privilege() {
            return Err(ProbeError::Privilege(missing));
        }
        let path = kernel.btf.clone().unwrap_or_default();
        let read =
            |path| std::fs::read(path).map_err(|error| ProbeError::ReadBtf(PathBuf::from(path), error));
        let bytes = kernel.btf.as_ref().map(read).transpose()?;
        let unfit = |error| ProbeError::Btf(path.clone(), error);
        let types = bytes.as_deref().map(Btf::parse).transpose().map_err(unfit)?;
        let offsets = types.as_ref().map(offsets::resolve).transpose().map_err(unfit)?;
        let known = Known {
            kernel: &kernel,
            types,
            published: aya::Btf::from_sys_fs().ok(),
            offsets: offsets.unwrap_or_default(),
            formats: tracefs::resolve(),
        };
        let room = BufferSizes::new(options.record_bytes)
            .map_err(|(path, error)| ProbeError::Processors(path, error))?;
        let (mut probes, identity, state) = Self::see_states(options, room, &known)?;
        let mut signals = vec![state];
        for spec in &OTHERS {
            signals.push(probes.serve(spec, &known, spec.open(&options.choices)).unwrap_or_else(|tried| {
                tracing::warn!(signal = spec.signal, lost = spec.without, "no hook serves");
                spec.unserved(tried)
            }));
        }
        drop(known);
        give_memory_back();
        let ring = take_map(&mut probes.ebpf, "RING")?;
        let (queues, slots) =
            (take_array(&mut probes.ebpf, "QUEUES")?, take_array(&mut probes.ebpf, "SLOTS")?);
        let queues =
            Queues::map(queues.fd(), slots.fd(), room.processors, room.slots).map_err(ProbeError::Queues)?;
        let lost = probes.loss_counters()?;
        let retransmits = CountedRetransmits::new(take_map(&mut probes.ebpf, "COUNTED")?);
        let identity = match identity {
            SocketIdentity::Cookie => BY_COOKIE,
            SocketIdentity::Address => BY_ADDRESS,
        };
        let hooks = Hooks { kernel, identity, signals, programs: probes.loaded() };
        Ok(Loaded { probes, hooks, queues, ring, lost, retransmits })
    }

    /// Loads the object and attaches to state changes: by cookies where a program may ask for them.
    fn see_states(
        options: &LoadOptions,
        room: BufferSizes,
        known: &Known<'_>,
    ) -> Result<(Self, SocketIdentity, Signal), ProbeError> {
        let ways = || STATE.open(&options.choices);
        let is_typed = |way: &&Way| way.programs.iter().flatten().any(|one| one.attach.is_typed());
        let typed = || ways().filter(is_typed);
        if known.published.is_some() && typed().next().is_some() {
            let mut probes = Self::open(options, room, known, SocketIdentity::Cookie)?;
            if let Ok(signal) = probes.serve(&STATE, known, typed()) {
                return Ok((probes, SocketIdentity::Cookie, signal));
            }
        }
        let mut probes = Self::open(options, room, known, SocketIdentity::Address)?;
        match probes.serve(&STATE, known, ways()) {
            Ok(signal) => Ok((probes, SocketIdentity::Address, signal)),
            Err(tried) => Err(ways::no_state_changes(&tried)),
        }
    }

    fn open(
        options: &LoadOptions,
        room: BufferSizes,
        known: &Known<'_>,
        identity: SocketIdentity,
    ) -> Result<Self, ProbeError> {
        let wakeup_bytes = room.ring_bytes / WAKEUP_SHARE;
        let log_level = if options.debug { DEBUG_LEVEL } else { 0 };
        let by_address = u32::from(identity == SocketIdentity::Address);
        let mut choices = options.choices.iter();
        let follows_out_of_order =
            u32::from(choices.any(|choice| choice.key == OUT_OF_ORDER && choice.way == "fexit"));
        let address_key = RandomState::new().build_hasher().finish();
        let mut loader = EbpfLoader::new();
        loader
            .btf(known.published.as_ref())
            .map_max_entries("RING", room.ring_bytes)
            .map_max_entries("QUEUES", room.processors)
            .map_max_entries("SLOTS", room.processors * room.slots)
            .override_global("QUEUE_SLOTS", &room.slots, true)
            .override_global("WAKEUP_BYTES", &wakeup_bytes, true)
            .override_global(aya_log::LEVEL, &log_level, true)
            .override_global("DROP_SHARE", &options.drop_share, true)
            .override_global("IDENTITY_IS_ADDRESS", &by_address, true)
            .override_global("ADDRESS_KEY", &address_key, true)
            .override_global("FOLLOWS_OUT_OF_ORDER", &follows_out_of_order, true)
            // Refuses an object whose records this daemon would misread.
            .override_global(ABI_SYMBOL, &ABI, true)
            .verifier_log_level(if options.debug {
                VerifierLogLevel::VERBOSE
            } else {
                VerifierLogLevel::DISABLE
            });
        for (global, offset) in known.offsets.globals.iter().chain(&known.formats.globals) {
            loader.override_global(global, offset, true);
        }
        let ebpf = loader.load(OBJECT).map_err(|error| ProbeError::Load(Box::new(error)))?;
        Ok(Self { ebpf, programs: Vec::new() })
    }

    /// The first of the ways that this kernel takes, or why it takes none.
    fn serve(
        &mut self,
        spec: &Spec,
        known: &Known<'_>,
        ways: impl Iterator<Item = &'static Way>,
    ) -> Result<Signal, Vec<Attempt>> {
        let mut tried: Vec<Attempt> = Vec::new();
        for way in ways {
            match self.take(spec, way, known) {
                Ok(()) => {
                    // What one program could not, another could at the same hook.
                    tried.retain(|attempt| attempt.hook != way.hook);
                    return Ok(spec.served(way, tried));
                }
                Err(error) => {
                    tracing::info!(signal = spec.signal, hook = way.hook, error, "hook not available");
                    // Of two programs for one hook the first says more.
                    if tried.iter().all(|attempt| attempt.hook != way.hook) {
                        tried.push(Attempt { hook: way.hook, error });
                    }
                }
            }
        }
        Err(tried)
    }

    fn take(&mut self, spec: &Spec, way: &'static Way, known: &Known<'_>) -> Result<(), String> {
        let programs = || way.programs.iter().flatten();
        if let Some(reason) = programs().find_map(|program| known.obstacle(spec, program.attach)) {
            return Err(reason);
        }
        let before = self.programs.len();
        for program in programs() {
            if let Err(error) = self.attach(program.name, program.attach, known) {
                for (attached, _) in self.programs.split_off(before) {
                    self.let_go(attached);
                }
                return Err(known.why(error));
            }
            self.programs.push((program.name, way.hook));
        }
        Ok(())
    }

    /// Of a way whose other program this kernel does not take.
    fn let_go(&mut self, name: &str) {
        let released = match self.ebpf.program_mut(name) {
            Some(Program::FExit(program)) => program.unload(),
            Some(Program::KProbe(program)) => program.unload(),
            _ => Ok(()),
        };
        if let Err(error) = released {
            tracing::warn!(
                program = name,
                error = explain(error),
                "a program stays attached that is not needed"
            );
        }
    }

    fn attach(&mut self, name: &'static str, attach: Attach, known: &Known<'_>) -> Result<(), String> {
        let btf = || {
            known
                .published
                .as_ref()
                .ok_or_else(|| format!("this kernel does not publish its types at {VMLINUX_BTF}"))
        };
        match attach {
            Attach::TpBtf(tracepoint, _) => {
                let program: &mut BtfTracePoint = self.program(name)?;
                program.load(tracepoint, btf()?).and_then(|()| program.attach().map(drop))
            }
            Attach::RawTp(tracepoint) => {
                let program: &mut RawTracePoint = self.program(name)?;
                program.load().and_then(|()| program.attach(tracepoint).map(drop))
            }
            Attach::Fentry(function) => {
                let program: &mut FEntry = self.program(name)?;
                program.load(function, btf()?).and_then(|()| program.attach().map(drop))
            }
            Attach::Fexit(function, _) => {
                let program: &mut FExit = self.program(name)?;
                program.load(function, btf()?).and_then(|()| program.attach().map(drop))
            }
            Attach::Kprobe(function) | Attach::KprobeUntyped(function) | Attach::Kretprobe(function) => {
                let program: &mut KProbe = self.program(name)?;
                program.load().and_then(|()| program.attach(function, 0).map(drop))
            }
            Attach::Tracepoint(category, tracepoint) => {
                let program: &mut TracePoint = self.program(name)?;
                program.load().and_then(|()| program.attach(category, tracepoint).map(drop))
            }
            Attach::Iter(kind) => {
                let program: &mut Iter = self.program(name)?;
                program.load(kind, btf()?).map_err(explain)?;
                // Loaded is not yet able: one iterator is made, and dropped unread.
                return self.iterate(name).map(drop);
            }
        }
        .map_err(explain)
    }

    fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, String>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program =
            self.ebpf.program_mut(name).ok_or_else(|| format!("the object has no program {name}"))?;
        program.try_into().map_err(explain)
    }

    fn loaded(&self) -> Vec<LoadedProgram> {
        let verified = |name: &str| self.ebpf.program(name)?.info().ok()?.verified_instruction_count();
        let told = |(program, hook): &(&'static str, &'static str)| LoadedProgram {
            program,
            hook,
            verified_instructions: verified(program),
        };
        self.programs.iter().map(told).collect()
    }

    fn program_of(&self, signal: &str) -> Option<&'static str> {
        self.programs.iter().map(|(name, _)| *name).find(|name| serves(name, signal))
    }

    /// Hands what the programs log to this process's log. Only for `--debug`, so a failure is only told. Wants a
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

    /// A file whose reading lists, as `SeenSocket` records, every TCP socket held by a process.
    ///
    /// # Errors
    /// When the kernel refuses the iterator, with its reason.
    pub fn held_sockets(&mut self) -> Result<File, String> {
        let name = self.program_of("held").ok_or(NO_ITERATOR)?;
        self.iterate(name)
    }

    /// The same for every TCP socket of the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the iterator, with its reason.
    pub fn namespace_sockets(&mut self) -> Result<File, String> {
        let name = self.program_of("unheld").ok_or(NO_ITERATOR)?;
        self.iterate(name)
    }

    /// A file whose reading gives the `SocketOptions` record of the socket with this identity, if it is one of the
    /// calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the iterator, with its reason.
    pub fn socket_options(&mut self, identity: u64) -> Result<File, String> {
        const MAP: &str = "OPTIONS_OF";
        let name = self.program_of("options").ok_or(NO_ITERATOR)?;
        let map = self.ebpf.map_mut(MAP).ok_or_else(|| ProbeError::Object(MAP).to_string())?;
        Array::try_from(map)
            .and_then(|mut wanted| wanted.set(0, identity, 0))
            .map_err(|error| format!("{MAP}: {error}"))?;
        self.iterate(name)
    }

    fn iterate(&mut self, name: &str) -> Result<File, String> {
        let program: &mut Iter = self.program(name)?;
        let link = program.attach().map_err(explain)?;
        program.take_link(link).map_err(explain)?.into_file().map_err(|error| error.to_string())
    }

    /// What to ask for [`LostRecords`]; apart from the programs, which another thread keeps.
    fn loss_counters(&mut self) -> Result<LossCounters, ProbeError> {
        let fd = |name: &str| Some(self.ebpf.program(name)?.fd().ok()?.as_fd().as_raw_fd());
        let programs = self.programs.iter().filter_map(|(name, _)| fd(name)).collect();
        Ok(LossCounters { counters: take_map(&mut self.ebpf, "COUNTERS")?, programs })
    }
}

/// ReportedFacts at the start, in `/status`; a sweep tells it again.
const NO_ITERATOR: &str = "this kernel has no iterator for them";

impl Known<'_> {
    /// Why it is no use to try.
    fn obstacle(&self, spec: &Spec, attach: Attach) -> Option<String> {
        if let Attach::Tracepoint(category, name) = attach {
            let tracepoint = format!("{category}:{name}");
            let problem = self.formats.problems.iter().find(|(of, _)| *of == tracepoint);
            return problem.map(|(_, problem)| problem.clone());
        }
        let Some(types) = &self.types else {
            return Some(format!(
                "this kernel's types are not known: it has no {VMLINUX_BTF}, and no --btf was given"
            ));
        };
        let unavailable = self.offsets.unavailable.iter().find(|(signal, _)| *signal == spec.key);
        unavailable.map(|(_, error)| error.to_string()).or_else(|| attach.mismatch(types))
    }

    /// The error, with what a refusal is due to.
    fn why(&self, error: String) -> String {
        if !error.contains("(os error 1)") {
            return error;
        }
        let lacks: Vec<_> =
            self.kernel.capabilities.iter().filter(|one| !one.held).map(|one| one.name).collect();
        match (lacks.as_slice(), self.kernel.lockdown.as_deref()) {
            ([], Some("confidentiality")) => {
                format!("{error}: the kernel's lockdown mode is confidentiality")
            }
            ([], _) => {
                format!("{error}: no capability is missing, so this kernel or its security policy forbids it")
            }
            (lacks, _) => format!("{error}: {} missing", lacks.join(" and ")),
        }
    }
}

/// An array that is to be mapped.
fn take_array(ebpf: &mut Ebpf, map: &'static str) -> Result<MapData, ProbeError> {
    match ebpf.take_map(map) {
        Some(Map::Array(data)) => Ok(data),
        _ => Err(ProbeError::Object(map)),
    }
}

/// The kernel's types took some 40 MiB for a moment. The C library would keep half of that for later, and nothing later
/// needs it.
#[allow(unsafe_code, reason = "a call that has no other name in Rust")]
fn give_memory_back() {
    // SAFETY: takes no pointer and may be called at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

fn take_map<T: TryFrom<Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    map: &'static str,
) -> Result<T, ProbeError> {
    let found = ebpf.take_map(map).ok_or(ProbeError::Object(map))?;
    T::try_from(found).map_err(|error| ProbeError::Map { map, error })
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
    text.trim_end().trim_end_matches("Verifier output:").trim_end().trim_end_matches('.').to_owned()
}
