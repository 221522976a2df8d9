//! `tcpwatch check`: which hooks of this kernel tcpwatch can use, what is lost without the others, and why.

use std::fmt::Write as _;

use serde::Serialize;

use crate::{
    http::{signals, table},
    kernel::{
        capabilities::{Capability, Kernel},
        probes::{Hooks, LoadOptions, LoadedProgram, Probes},
    },
};

/// How much of tcpwatch works on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything.
    Full,
    /// Something is missing or less exact.
    Reduced,
    /// It cannot run.
    Unusable,
}

impl Verdict {
    pub fn exit_code(self) -> u8 {
        self as u8
    }
}

#[derive(Debug, Serialize)]
pub struct Checked {
    pub verdict: Verdict,
    /// Why it cannot run.
    error: Option<String>,
    #[serde(flatten)]
    hooks: Hooks,
}

impl Checked {
    /// Loads and attaches everything as `run` would, and detaches it again.
    pub fn now(options: &LoadOptions) -> Self {
        match Probes::load(options) {
            Ok(loaded) => {
                let verdict = if loaded.hooks.is_reduced() { Verdict::Reduced } else { Verdict::Full };
                Self { verdict, error: None, hooks: loaded.hooks }
            }
            Err(error) => {
                let kernel = Kernel::read(options.btf.as_deref());
                let hooks = Hooks { kernel, ..Hooks::default() };
                Self { verdict: Verdict::Unusable, error: Some(error.to_string()), hooks }
            }
        }
    }

    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub fn text(&self) -> String {
        let kernel = &self.hooks.kernel;
        let mut text = String::new();
        let mut line = |label: &str, value: &str| {
            let _ = writeln!(text, "{label:<11}{value}");
        };
        let verdict = match self.verdict {
            Verdict::Full => "everything works",
            Verdict::Reduced => "tcpwatch works, but something is missing or less exact: see below",
            Verdict::Unusable => "tcpwatch cannot run here",
        };
        line("verdict", verdict);
        if let Some(error) = &self.error {
            line("error", error);
        }
        line("kernel", &kernel.release);
        let btf = kernel.btf.as_ref().map(|path| path.display().to_string());
        line("types", btf.as_deref().unwrap_or("none"));
        line("lockdown", kernel.lockdown.as_deref().unwrap_or("unknown (no /sys/kernel/security/lockdown)"));
        if let Some(identity) = self.hooks.identity {
            line("identity", identity.name());
        }
        let rows: Vec<_> = kernel.capabilities.iter().map(capability_row).collect();
        let _ = write!(text, "\n{}", table(&["CAPABILITY", "HELD", "WITHOUT IT"], &rows));
        if self.error.is_some() {
            return text;
        }
        let _ = write!(text, "\n{}", signals(&self.hooks));
        let rows: Vec<_> = self.hooks.programs.iter().map(program_row).collect();
        let _ = write!(text, "\n{}", table(&["PROGRAM", "HOOK", "VERIFIED INSTRUCTIONS"], &rows));
        text
    }
}

fn capability_row(one: &Capability) -> Vec<String> {
    let held = if one.held { "yes" } else { "no" };
    vec![one.name.to_owned(), held.to_owned(), one.without.to_owned()]
}

fn program_row(one: &LoadedProgram) -> Vec<String> {
    let verified = one.verified_instructions.map_or("unknown".to_owned(), |count| count.to_string());
    vec![one.program.to_owned(), one.hook.clone(), verified]
}
