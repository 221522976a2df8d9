//! Attaches the programs of a signal: by the first way that this kernel accepts.

use aya::programs::{
    BtfTracePoint, FEntry, FExit, Iter, KProbe, Program as Loadable, ProgramError, RawTracePoint, TracePoint,
};

use crate::kernel::{
    capabilities::VMLINUX_BTF,
    probes::{
        Attempt, Probes, Signal, SignalReport, Way,
        error::explain,
        layout::KernelLayout,
        way::{Attach, Program},
    },
};

/// A program that is attached.
pub(super) struct Attached {
    pub(super) signal: Signal,
    pub(super) program: &'static str,
    pub(super) hook: String,
}

impl Probes {
    /// Attaches the first of the ways that this kernel accepts.
    ///
    /// # Errors
    /// Why it accepts none of them.
    pub(super) fn attach_signal(
        &mut self,
        signal: Signal,
        layout: &KernelLayout<'_>,
        ways: impl Iterator<Item = &'static Way>,
    ) -> Result<SignalReport, Vec<Attempt>> {
        let mut tried: Vec<Attempt> = Vec::new();
        for way in ways {
            let hook = way.hook();
            match self.attach_way(signal, way, layout) {
                Ok(()) => {
                    // Another program for the same hook was refused before: the hook itself works.
                    tried.retain(|attempt| attempt.hook != hook);
                    return Ok(SignalReport::given(signal, way, tried));
                }
                Err(error) => {
                    tracing::info!(%signal, hook, error, "hook not available");
                    // Of two programs for one hook the first is the newer: its error says more.
                    if tried.iter().all(|attempt| attempt.hook != hook) {
                        tried.push(Attempt { hook, error });
                    }
                }
            }
        }
        Err(tried)
    }

    /// Attaches all programs of a way, or none.
    fn attach_way(
        &mut self,
        signal: Signal,
        way: &'static Way,
        layout: &KernelLayout<'_>,
    ) -> Result<(), String> {
        if let Some(reason) = layout.obstacle(signal, way) {
            return Err(reason);
        }
        let before = self.attached.len();
        for program in way.programs() {
            if let Err(error) = self.attach_program(program, layout) {
                for attached in self.attached.split_off(before) {
                    self.detach(attached.program);
                }
                return Err(layout.explain_refusal(error));
            }
            self.attached.push(Attached { signal, program: program.name, hook: way.hook() });
        }
        Ok(())
    }

    /// Detaches a program of a way whose other program this kernel refuses.
    fn detach(&mut self, name: &str) {
        let detached = match self.ebpf.program_mut(name) {
            Some(Loadable::FExit(program)) => program.unload(),
            Some(Loadable::KProbe(program)) => program.unload(),
            _ => Ok(()),
        };
        if let Err(error) = detached {
            tracing::warn!(
                program = name,
                error = explain(error),
                "a program that is not needed stays attached"
            );
        }
    }

    fn attach_program(&mut self, program: &Program, layout: &KernelLayout<'_>) -> Result<(), String> {
        let name = program.name;
        let btf = || {
            layout
                .published
                .as_ref()
                .ok_or_else(|| format!("this kernel does not publish its types at {VMLINUX_BTF}"))
        };
        match program.attach {
            Attach::TpBtf(tracepoint) => {
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
            Attach::Fexit(function) => {
                let program: &mut FExit = self.program(name)?;
                program.load(function, btf()?).and_then(|()| program.attach().map(drop))
            }
            Attach::Kprobe(function) | Attach::Kretprobe(function) => {
                let program: &mut KProbe = self.program(name)?;
                program.load().and_then(|()| program.attach(function, 0).map(drop))
            }
            Attach::Tracepoint(tracepoint) => {
                let program: &mut TracePoint = self.program(name)?;
                program.load().and_then(|()| program.attach(tracepoint.category, tracepoint.name).map(drop))
            }
            Attach::Iter(target) => {
                let program: &mut Iter = self.program(name)?;
                program.load(target, btf()?).map_err(explain)?;
                // A program that loads may still be refused as an iterator: one is made, and dropped unread.
                return self.iterator(name).map(drop);
            }
        }
        .map_err(explain)
    }

    pub(super) fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, String>
    where
        &'a mut P: TryFrom<&'a mut Loadable, Error = ProgramError>,
    {
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| format!("the BPF object does not contain the program {name}"))?;
        program.try_into().map_err(explain)
    }
}
