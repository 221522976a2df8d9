//! Iterators over sockets: files whose reading runs a program for each.

use std::fs::File;

use aya::{maps::Array, programs::Iter};

use crate::kernel::probes::{ProbeError, Probes, Signal, error::explain, load::OPTIONS_OF};

impl Probes {
    /// A file whose reading lists, as `SeenSocket` records, every TCP socket held by a process.
    ///
    /// # Errors
    /// When the kernel refuses the iterator, with its reason.
    pub fn held_sockets(&mut self) -> Result<File, String> {
        let name = self.iterator_program(Signal::Held)?;
        self.iterator(name)
    }

    /// A file whose reading lists, as `SeenSocket` records, every TCP socket of the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the iterator, with its reason.
    pub fn namespace_sockets(&mut self) -> Result<File, String> {
        let name = self.iterator_program(Signal::Unheld)?;
        self.iterator(name)
    }

    /// A file whose reading lists, as `SeenNamespace` records, the machine's network namespaces.
    ///
    /// # Errors
    /// When the kernel refuses the iterator, with its reason.
    pub fn namespaces(&mut self) -> Result<File, String> {
        let name = self.iterator_program(Signal::Namespaces)?;
        self.iterator(name)
    }

    /// A file whose reading gives the `SocketOptions` record of the socket with this identity, if the calling thread's
    /// network namespace has it.
    ///
    /// # Errors
    /// When the kernel refuses the iterator, with its reason.
    pub fn socket_options(&mut self, identity: u64) -> Result<File, String> {
        let name = self.iterator_program(Signal::Options)?;
        let map = self.ebpf.map_mut(OPTIONS_OF).ok_or_else(|| ProbeError::Object(OPTIONS_OF).to_string())?;
        Array::try_from(map)
            .and_then(|mut wanted| wanted.set(0, identity, 0))
            .map_err(|error| format!("{OPTIONS_OF}: {error}"))?;
        self.iterator(name)
    }

    fn iterator_program(&self, signal: Signal) -> Result<&'static str, String> {
        let attached = self.attached.iter().find(|attached| attached.signal == signal);
        // The reason stands in `/status`, as of the start.
        attached
            .map(|attached| attached.program)
            .ok_or_else(|| "this kernel has no iterator for them".to_owned())
    }

    pub(super) fn iterator(&mut self, name: &str) -> Result<File, String> {
        let program: &mut Iter = self.program(name)?;
        let link = program.attach().map_err(explain)?;
        program.take_link(link).map_err(explain)?.into_file().map_err(|error| error.to_string())
    }
}
