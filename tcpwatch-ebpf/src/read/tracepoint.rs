//! Fields of a tracepoint's record, at the offsets that its `format` file in tracefs states: all there is where the
//! kernel's types are not known. In: a tracepoint's context. Out: the field. Deliberately absent: what no record
//! prints, which is the namespace, unread bytes, and the start of a process.

use aya_ebpf::{EbpfContext as _, helpers::bpf_probe_read_kernel, programs::TracePointContext};

use crate::read::offsets;

macro_rules! fields {
    ($($name:ident)*) => { $( #[unsafe(no_mangle)] pub static $name: u32 = 0; )* };
}

// `TP_<tracepoint>_<field>`: the field's offset in the tracepoint's record, in bytes. The loader sets them.
fields! {
    TP_STATE_SKADDR TP_STATE_OLDSTATE TP_STATE_NEWSTATE TP_STATE_PROTOCOL TP_STATE_SPORT TP_STATE_DPORT
    TP_STATE_SADDR_V6 TP_STATE_DADDR_V6
    TP_RETRANSMIT_SKADDR TP_RETRANSMIT_STATE TP_RETRANSMIT_SPORT TP_RETRANSMIT_DPORT
    TP_RETRANSMIT_SADDR_V6 TP_RETRANSMIT_DADDR_V6
    TP_SYNACK_SKADDR TP_SYNACK_SPORT TP_SYNACK_SADDR_V6
}

/// The field of type `T` at `offset`; `None` where the kernel refuses to read it.
#[inline(always)]
pub fn read<T>(ctx: &TracePointContext, offset: &'static u32) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe {
        bpf_probe_read_kernel(ctx.as_ptr().cast::<u8>().wrapping_add(offsets::value(offset)).cast()).ok()
    }
}
