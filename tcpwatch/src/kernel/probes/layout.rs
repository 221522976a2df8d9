//! The running kernel's own description of its structs, functions and tracepoints, read before anything is loaded.

use crate::kernel::{
    btf::{
        Btf, BtfError,
        offsets::{self, Global},
    },
    capabilities::{Kernel, VMLINUX_BTF},
    probes::{
        Signal,
        tracefs::Tracepoint,
        way::{Attach, Way},
    },
};

pub(super) struct KernelLayout<'a> {
    kernel: &'a Kernel,
    types: Option<Btf<'a>>,
    /// The types as the kernel publishes them; typed programs are attached by them.
    pub(super) published: Option<aya::Btf>,
    /// Values of the object's globals that carry offsets.
    pub(super) globals: Vec<Global>,
    /// Signals whose programs read a struct member that this kernel does not have.
    without_member: Vec<(Signal, BtfError)>,
    /// Tracepoints whose record is unknown, and why.
    without_record: Vec<(&'static Tracepoint, String)>,
}

impl<'a> KernelLayout<'a> {
    /// `btf`: the kernel's types, `None` where there are none.
    ///
    /// # Errors
    /// When the types are malformed, or lack a member that every program needs.
    pub(super) fn read(kernel: &'a Kernel, btf: Option<&'a [u8]>) -> Result<Self, BtfError> {
        let types = btf.map(Btf::parse).transpose()?;
        let mut globals = Vec::new();
        let mut without_member = Vec::new();
        if let Some(types) = &types {
            offsets::resolve(types, offsets::COMMON, &mut globals)?;
            let _ = offsets::resolve(types, offsets::OPTIONAL, &mut globals);
            let mut of_mptcp = Vec::new();
            if offsets::resolve(types, offsets::MPTCP, &mut of_mptcp).is_ok() {
                globals.append(&mut of_mptcp);
            }
            for signal in Signal::ALL {
                if let Err(error) = offsets::resolve(types, signal.spec().members(), &mut globals) {
                    without_member.push((signal, error));
                }
            }
        }
        let mut without_record = Vec::new();
        let ways = Signal::ALL.into_iter().flat_map(|signal| signal.spec().ways);
        for program in ways.flat_map(Way::programs) {
            if let Attach::Tracepoint(tracepoint) = program.attach
                && let Err(reason) = tracepoint.resolve(&mut globals)
            {
                without_record.push((tracepoint, reason));
            }
        }
        let published = aya::Btf::from_sys_fs().ok();
        Ok(Self { kernel, types, published, globals, without_member, without_record })
    }

    /// Why a way to a signal cannot work on this kernel, if that is known without an attempt.
    pub(super) fn obstacle(&self, signal: Signal, way: &Way) -> Option<String> {
        way.programs().iter().find_map(|program| {
            if let Attach::Tracepoint(tracepoint) = program.attach {
                let unknown = self.without_record.iter().find(|(of, _)| *of == tracepoint);
                return unknown.map(|(_, reason)| reason.clone());
            }
            let Some(types) = &self.types else {
                return Some(format!(
                    "this kernel's types are unknown: it has no {VMLINUX_BTF}, and no --btf was given"
                ));
            };
            let without = self.without_member.iter().find(|(of, _)| *of == signal);
            without.map(|(_, error)| error.to_string()).or_else(|| program.mismatch(types))
        })
    }

    /// Adds to an error the likely cause of a refusal (EPERM).
    pub(super) fn explain_refusal(&self, error: String) -> String {
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
