//! Ways to get a signal: the programs of the BPF object and what each is attached to.

use std::fmt;

use crate::kernel::{btf::Btf, probes::tracefs::Tracepoint};

/// The kind of a way, by the mechanism of the kernel that it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayKind {
    TpBtf,
    RawTp,
    Fentry,
    Fexit,
    Kprobe,
    Kretprobe,
    Tracepoint,
    Iter,
    /// No program: other signals imply this one.
    Inferred,
}

impl WayKind {
    /// As `--hook` spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::RawTp => "raw_tp",
            Self::Fentry => "fentry",
            Self::Fexit => "fexit",
            Self::Kprobe => "kprobe",
            Self::Kretprobe => "kretprobe",
            Self::Tracepoint => "tracepoint",
            Self::Iter => "iter",
            Self::Inferred => "inferred",
        }
    }
}

impl fmt::Display for WayKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One way to get a signal.
#[derive(Debug)]
pub struct Way {
    source: Source,
    /// What is missing or less exact compared with the best way.
    pub lost: Option<&'static str>,
    /// The first version of Linux that has the hook, where tcpwatch also runs on older ones. For documents: at run time
    /// only an attempt decides.
    pub since: Option<&'static str>,
    /// A global of the object that is 1 where the user asked for this way, for programs of other signals.
    pub(crate) asked_global: Option<&'static str>,
}

#[derive(Debug)]
enum Source {
    /// They are attached together or not at all; at least one.
    Programs(&'static [Program]),
    /// What the signal is inferred from.
    Inferred(&'static str),
}

impl Way {
    pub(crate) const fn by(programs: &'static [Program]) -> Self {
        assert!(!programs.is_empty());
        Self { source: Source::Programs(programs), lost: None, since: None, asked_global: None }
    }

    pub(crate) const fn inferred(from: &'static str) -> Self {
        Self { source: Source::Inferred(from), lost: None, since: None, asked_global: None }
    }

    pub(crate) const fn losing(self, what: &'static str) -> Self {
        Self { lost: Some(what), ..self }
    }

    pub(crate) const fn since(self, linux: &'static str) -> Self {
        Self { since: Some(linux), ..self }
    }

    pub(crate) const fn setting(self, global: &'static str) -> Self {
        Self { asked_global: Some(global), ..self }
    }

    pub(crate) fn programs(&self) -> &'static [Program] {
        match self.source {
            Source::Programs(programs) => programs,
            Source::Inferred(_) => &[],
        }
    }

    pub fn kind(&self) -> WayKind {
        match self.source {
            Source::Programs(programs) => programs[0].attach.kind(),
            Source::Inferred(_) => WayKind::Inferred,
        }
    }

    /// What it is attached to, or inferred from.
    pub fn target(&self) -> String {
        match self.source {
            Source::Programs(programs) => {
                let targets: Vec<_> = programs.iter().map(|program| program.attach.target()).collect();
                targets.join(", ")
            }
            Source::Inferred(from) => from.to_owned(),
        }
    }

    /// As `/status` and `tcpwatch check` show it: the kind and the target.
    pub fn hook(&self) -> String {
        format!("{} {}", self.kind(), self.target())
    }

    /// Whether the verifier has to know the types of what the kernel passes.
    pub(crate) fn is_typed(&self) -> bool {
        matches!(self.kind(), WayKind::TpBtf | WayKind::Fentry | WayKind::Fexit | WayKind::Iter)
    }
}

/// A program of the BPF object.
#[derive(Debug)]
pub(crate) struct Program {
    /// Its name in the object.
    pub(crate) name: &'static str,
    pub(crate) attach: Attach,
    pub(crate) arguments: Arguments,
}

impl Program {
    pub(crate) const fn new(name: &'static str, attach: Attach, arguments: Arguments) -> Self {
        Self { name, attach, arguments }
    }

    /// How the arguments that the kernel passes differ from those that the program reads; `None` where they fit.
    pub(crate) fn mismatch(&self, btf: &Btf<'_>) -> Option<String> {
        if matches!(self.arguments, Arguments::Unchecked) {
            return None;
        }
        let passed = match self.attach {
            Attach::TpBtf(name) | Attach::RawTp(name) => btf.tracepoint_parameters(name),
            Attach::Fentry(name) | Attach::Fexit(name) | Attach::Kprobe(name) | Attach::Kretprobe(name) => {
                btf.parameters(name)
            }
            Attach::Tracepoint(_) | Attach::Iter(_) => return None,
        };
        match passed {
            Ok(Some(passed)) => self.arguments.mismatch(&passed),
            Ok(None) => Some("this kernel's types do not have it".to_owned()),
            Err(error) => Some(error.to_string()),
        }
    }
}

/// What a program is attached to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Attach {
    TpBtf(&'static str),
    RawTp(&'static str),
    Fentry(&'static str),
    Fexit(&'static str),
    Kprobe(&'static str),
    Kretprobe(&'static str),
    Tracepoint(&'static Tracepoint),
    Iter(&'static str),
}

impl Attach {
    const fn kind(self) -> WayKind {
        match self {
            Self::TpBtf(_) => WayKind::TpBtf,
            Self::RawTp(_) => WayKind::RawTp,
            Self::Fentry(_) => WayKind::Fentry,
            Self::Fexit(_) => WayKind::Fexit,
            Self::Kprobe(_) => WayKind::Kprobe,
            Self::Kretprobe(_) => WayKind::Kretprobe,
            Self::Tracepoint(_) => WayKind::Tracepoint,
            Self::Iter(_) => WayKind::Iter,
        }
    }

    fn target(self) -> String {
        match self {
            Self::TpBtf(name)
            | Self::RawTp(name)
            | Self::Fentry(name)
            | Self::Fexit(name)
            | Self::Kprobe(name)
            | Self::Kretprobe(name)
            | Self::Iter(name) => name.to_owned(),
            Self::Tracepoint(tracepoint) => tracepoint.to_string(),
        }
    }
}

/// The arguments that a program was written for, compared with the kernel's types before it is loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arguments {
    /// At least this many, the first of them a pointer to this struct.
    First(&'static str, usize),
    /// As many as this.
    Exactly(usize),
    /// The types do not say (a function of a module), or the program reads none.
    Unchecked,
}

impl Arguments {
    /// `passed`: the struct that each argument points to, `None` for any other.
    fn mismatch(self, passed: &[Option<&[u8]>]) -> Option<String> {
        let fits_in_number = match self {
            Self::First(_, least) => passed.len() >= least,
            Self::Exactly(count) => passed.len() == count,
            Self::Unchecked => true,
        };
        if !fits_in_number {
            return Some(format!("it has {} arguments on this kernel", passed.len()));
        }
        match self {
            Self::First(wanted, _) if passed.first() != Some(&Some(wanted.as_bytes())) => {
                Some(format!("its first argument is not a `struct {wanted} *` on this kernel"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_differ_from_the_programs_are_named() {
        let sock = Some(&b"sock"[..]);
        for (arguments, passed, said) in [
            (Arguments::First("sock", 2), &[sock, None][..], None),
            (Arguments::First("sock", 2), &[sock, None, None], None),
            (Arguments::First("sock", 2), &[sock], Some("1 arguments")),
            (Arguments::First("sock", 1), &[None, sock], Some("`struct sock *`")),
            (Arguments::First("sock", 1), &[], Some("0 arguments")),
            (Arguments::Exactly(1), &[None], None),
            (Arguments::Exactly(1), &[None, None], Some("2 arguments")),
            (Arguments::Unchecked, &[], None),
        ] {
            let mismatch = arguments.mismatch(passed);
            assert_eq!(mismatch.is_some(), said.is_some(), "{arguments:?} {passed:?}: {mismatch:?}");
            assert!(mismatch.is_none_or(|text| text.contains(said.unwrap())), "{arguments:?} {passed:?}");
        }
    }
}
