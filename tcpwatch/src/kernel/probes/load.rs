//! Loads the BPF object with what this kernel and the user's options ask for, and attaches every signal.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    os::fd::AsFd as _,
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Map, MapData},
};
use tcpwatch_common::{ABI, ABI_SYMBOL};

use crate::kernel::{
    capabilities::Kernel,
    probes::{
        Choice, Hooks, Loaded, LoadedProgram, ProbeError, Probes, Signal, SignalReport, SocketIdentity,
        WayKind, choice, layout::KernelLayout,
    },
    transport::{CountedRetransmits, LossCounters, Queues, buffer_sizes::BufferSizes},
};

/// Built by `cargo xtask bpf`; `include_bytes_aligned` because ELF parsers want their headers aligned.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/tcpwatch.bpf.o"));

/// Maps of the object.
const RING: &str = "RING";
const QUEUES: &str = "QUEUES";
const SLOTS: &str = "SLOTS";
const COUNTED: &str = "COUNTED";
const COUNTERS: &str = "COUNTERS";
pub(super) const OPTIONS_OF: &str = "OPTIONS_OF";

/// Globals of the object, beside those that carry offsets and those that a way sets.
const QUEUE_SLOTS: &str = "QUEUE_SLOTS";
const WAKEUP_BYTES: &str = "WAKEUP_BYTES";
const DROP_SHARE: &str = "DROP_SHARE";
const IDENTITY_IS_ADDRESS: &str = "IDENTITY_IS_ADDRESS";
const ADDRESS_KEY: &str = "ADDRESS_KEY";

/// The daemon wakes when the ring is this share full (one eighth), and otherwise on its timer.
const WAKEUP_SHARE: u32 = 8;

/// `Level::Debug` of aya-log-common, which aya-log does not pass on; 0 switches the log off.
const DEBUG_LEVEL: u8 = 4;

/// How to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Memory for records on their way, a power of two and at least one page.
    pub record_bytes: Option<u32>,
    /// Of 2^32 records, how many are dropped on purpose and counted as lost: a test of the repair.
    pub drop_share: u32,
    /// The kernel's types, where it does not publish them itself.
    pub btf: Option<PathBuf>,
    /// Ways that the user asked for.
    pub choices: Vec<Choice>,
    /// Full verifier logs in errors, and the programs' own log.
    pub debug: bool,
}

impl Probes {
    /// Loads and attaches everything that this kernel accepts.
    ///
    /// # Errors
    /// Without privilege or BPF, or when no way to observe state changes works.
    pub fn load(options: &LoadOptions) -> Result<Loaded, ProbeError> {
        let kernel = Kernel::read(options.btf.as_deref());
        if !kernel.is_new_enough() {
            return Err(ProbeError::TooOld(kernel.release));
        }
        if let Some(missing) = kernel.missing_privilege() {
            return Err(ProbeError::Privilege(missing));
        }
        let sizes = BufferSizes::new(options.record_bytes)
            .map_err(|(path, error)| ProbeError::Processors(path, error))?;
        let (mut probes, identity, signals) = Self::attach_everything(options, sizes, &kernel)?;
        release_heap();
        let ring = take_map(&mut probes.ebpf, RING)?;
        let (queues, slots) = (take_array(&mut probes.ebpf, QUEUES)?, take_array(&mut probes.ebpf, SLOTS)?);
        let queues = Queues::map(queues.fd(), slots.fd(), sizes.processors, sizes.slots)
            .map_err(ProbeError::Queues)?;
        let lost = probes.loss_counters()?;
        let retransmits = CountedRetransmits::new(take_map(&mut probes.ebpf, COUNTED)?);
        let hooks = Hooks { kernel, identity: Some(identity), signals, programs: probes.loaded() };
        Ok(Loaded { probes, hooks, queues, ring, lost, retransmits })
    }

    fn attach_everything(
        options: &LoadOptions,
        sizes: BufferSizes,
        kernel: &Kernel,
    ) -> Result<(Self, SocketIdentity, Vec<SignalReport>), ProbeError> {
        let path = kernel.btf.clone().unwrap_or_default();
        let read =
            |path: &PathBuf| std::fs::read(path).map_err(|error| ProbeError::ReadBtf(path.clone(), error));
        let btf = kernel.btf.as_ref().map(read).transpose()?;
        let layout =
            KernelLayout::read(kernel, btf.as_deref()).map_err(|error| ProbeError::Btf(path, error))?;
        let (mut probes, identity, state) = Self::attach_state_changes(options, sizes, &layout)?;
        let mut signals = vec![state];
        for signal in Signal::ALL.into_iter().filter(|signal| *signal != Signal::State) {
            let ways = choice::allowed(&options.choices, signal);
            signals.push(probes.attach_signal(signal, &layout, ways).unwrap_or_else(|tried| {
                tracing::warn!(%signal, lost = signal.spec().lost, "no hook works");
                SignalReport::missing(signal, tried)
            }));
        }
        Ok((probes, identity, signals))
    }

    /// Loads the object and attaches to state changes: with cookies where a program may ask for them.
    fn attach_state_changes(
        options: &LoadOptions,
        sizes: BufferSizes,
        layout: &KernelLayout<'_>,
    ) -> Result<(Self, SocketIdentity, SignalReport), ProbeError> {
        let ways = || choice::allowed(&options.choices, Signal::State);
        let typed = || ways().filter(|way| way.is_typed());
        if layout.published.is_some() && typed().next().is_some() {
            let mut probes = Self::load_object(options, sizes, layout, SocketIdentity::Cookie)?;
            if let Ok(state) = probes.attach_signal(Signal::State, layout, typed()) {
                return Ok((probes, SocketIdentity::Cookie, state));
            }
        }
        let mut probes = Self::load_object(options, sizes, layout, SocketIdentity::Address)?;
        match probes.attach_signal(Signal::State, layout, ways()) {
            Ok(state) => Ok((probes, SocketIdentity::Address, state)),
            Err(tried) => Err(ProbeError::no_state_changes(&tried)),
        }
    }

    fn load_object(
        options: &LoadOptions,
        sizes: BufferSizes,
        layout: &KernelLayout<'_>,
        identity: SocketIdentity,
    ) -> Result<Self, ProbeError> {
        let wakeup_bytes = sizes.ring_bytes / WAKEUP_SHARE;
        let log_level = if options.debug { DEBUG_LEVEL } else { 0 };
        let by_address = u32::from(identity == SocketIdentity::Address);
        let address_key = RandomState::new().build_hasher().finish();
        let mut loader = EbpfLoader::new();
        loader
            .btf(layout.published.as_ref())
            .map_max_entries(RING, sizes.ring_bytes)
            .map_max_entries(QUEUES, sizes.processors)
            .map_max_entries(SLOTS, sizes.processors * sizes.slots)
            .override_global(QUEUE_SLOTS, &sizes.slots, true)
            .override_global(WAKEUP_BYTES, &wakeup_bytes, true)
            .override_global(aya_log::LEVEL, &log_level, true)
            .override_global(DROP_SHARE, &options.drop_share, true)
            .override_global(IDENTITY_IS_ADDRESS, &by_address, true)
            .override_global(ADDRESS_KEY, &address_key, true)
            // Refuses an object whose records this daemon would misread.
            .override_global(ABI_SYMBOL, &ABI, true)
            .verifier_log_level(if options.debug {
                VerifierLogLevel::VERBOSE
            } else {
                VerifierLogLevel::DISABLE
            });
        for (global, offset) in &layout.globals {
            loader.override_global(global, offset, true);
        }
        for global in asked_globals(&options.choices) {
            loader.override_global(global, &1_u32, true);
        }
        let ebpf = loader.load(OBJECT).map_err(|error| ProbeError::Load(Box::new(error)))?;
        Ok(Self { ebpf, attached: Vec::new() })
    }

    fn loaded(&self) -> Vec<LoadedProgram> {
        let verified = |name: &str| self.ebpf.program(name)?.info().ok()?.verified_instruction_count();
        let programs = self.attached.iter().map(|attached| LoadedProgram {
            program: attached.program,
            hook: attached.hook.clone(),
            verified_instructions: verified(attached.program),
        });
        programs.collect()
    }

    /// The counters of lost records, apart from the programs, which another thread keeps.
    fn loss_counters(&mut self) -> Result<LossCounters, ProbeError> {
        let counters = take_map(&mut self.ebpf, COUNTERS)?;
        let fd = |name: &str| Some(self.ebpf.program(name)?.fd().ok()?.as_fd());
        let programs = self.attached.iter().filter_map(|attached| fd(attached.program));
        LossCounters::new(counters, programs).map_err(ProbeError::LossCounters)
    }
}

/// The globals of the ways that the user asked for.
fn asked_globals(choices: &[Choice]) -> impl Iterator<Item = &'static str> {
    Signal::ALL.into_iter().filter_map(|signal| {
        let asked: WayKind = choice::chosen(choices, signal)?;
        signal.spec().ways.iter().find(|way| way.kind() == asked)?.asked_global
    })
}

/// Takes an array map out of the object, to be mapped into memory.
fn take_array(ebpf: &mut Ebpf, map: &'static str) -> Result<MapData, ProbeError> {
    match ebpf.take_map(map) {
        Some(Map::Array(data)) => Ok(data),
        _ => Err(ProbeError::Object(map)),
    }
}

fn take_map<T: TryFrom<Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    map: &'static str,
) -> Result<T, ProbeError> {
    let found = ebpf.take_map(map).ok_or(ProbeError::Object(map))?;
    T::try_from(found).map_err(|error| ProbeError::Map { map, error })
}

/// Returns free memory to the kernel. Its types took some 40 MiB for a moment; the C library would keep half of that
/// for later, and nothing needs it later.
#[allow(unsafe_code, reason = "a call that has no other name in Rust")]
fn release_heap() {
    // SAFETY: takes no pointer and may be called at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::kernel::{
        btf::offsets,
        probes::way::{Attach, Way},
    };

    /// Every NUL-terminated string of the object, symbol names among them.
    fn strings() -> BTreeSet<&'static str> {
        OBJECT.split(|byte| *byte == 0).filter_map(|bytes| std::str::from_utf8(bytes).ok()).collect()
    }

    fn ways() -> impl Iterator<Item = &'static Way> {
        Signal::ALL.into_iter().flat_map(|signal| signal.spec().ways)
    }

    fn offset_globals() -> BTreeSet<&'static str> {
        let members = Signal::ALL.into_iter().flat_map(|signal| signal.spec().members());
        let all = offsets::COMMON.iter().chain(offsets::OPTIONAL).chain(offsets::MPTCP).chain(members);
        let of_members = all.map(|member| member.global);
        let of_records = ways().flat_map(Way::programs).filter_map(|program| match program.attach {
            Attach::Tracepoint(tracepoint) => Some(tracepoint.fields.iter().map(|(global, _)| *global)),
            _ => None,
        });
        of_members.chain(of_records.flatten()).collect()
    }

    #[test]
    fn the_object_contains_every_program_map_and_global_that_is_named_here() {
        let strings = strings();
        let programs = ways().flat_map(Way::programs).map(|program| program.name);
        let maps = [RING, QUEUES, SLOTS, COUNTED, COUNTERS, OPTIONS_OF];
        let globals = [QUEUE_SLOTS, WAKEUP_BYTES, DROP_SHARE, IDENTITY_IS_ADDRESS, ADDRESS_KEY];
        let asked = ways().filter_map(|way| way.asked_global);
        for name in programs.chain(maps).chain(globals).chain(asked).chain(offset_globals()) {
            assert!(strings.contains(name), "{name}");
        }
    }

    #[test]
    fn every_offset_that_the_object_reads_is_set() {
        let read = strings().into_iter().filter(|name| name.starts_with("OFF_") || name.starts_with("TP_"));
        assert_eq!(read.collect::<BTreeSet<_>>(), offset_globals());
    }

    #[test]
    fn a_way_that_is_asked_for_sets_its_global() {
        let choices = |text: &str| text.split(',').map(|one| one.parse().unwrap()).collect::<Vec<_>>();
        let globals = |text| asked_globals(&choices(text)).collect::<Vec<_>>();
        assert_eq!(globals("out_of_order=fexit,close=kprobe"), ["FOLLOWS_OUT_OF_ORDER"]);
        assert_eq!(globals("out_of_order=fexit,out_of_order=inferred"), [] as [&str; 0]);
        assert_eq!(globals("state=tp_btf"), [] as [&str; 0]);
    }
}
