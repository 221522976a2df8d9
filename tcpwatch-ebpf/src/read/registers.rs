//! The arguments and the return value of a probed function. In: a kprobe's context, and the places that the loader
//! resolved for this processor (`struct pt_regs` of the kernel's BTF), so that one object serves all processors. Out:
//! registers as numbers. Deliberately absent: which argument is what, which the hook knows.

use aya_ebpf::{
    EbpfContext as _,
    helpers::bpf_probe_read_kernel,
    programs::{ProbeContext, RetProbeContext},
};

use crate::read::offsets;

/// A context that is a `struct pt_regs`.
pub trait Registers {
    fn registers(&self) -> *const u8;
}

impl Registers for ProbeContext {
    #[inline(always)]
    fn registers(&self) -> *const u8 {
        self.as_ptr().cast_const().cast()
    }
}

impl Registers for RetProbeContext {
    #[inline(always)]
    fn registers(&self) -> *const u8 {
        self.as_ptr().cast_const().cast()
    }
}

/// The register at `offset`. By the probing helper: older verifiers take only offsets into the context that
/// the program was built with.
#[inline(always)]
pub fn read(ctx: &impl Registers, offset: &'static u32) -> u64 {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(ctx.registers().wrapping_add(offsets::value(offset)).cast()).unwrap_or(0) }
}
