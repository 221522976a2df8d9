//! The identity of a socket, `SocketEvent::cookie`. In: a socket. Out: the kernel's cookie for it, or where the
//! programs cannot have that, its address combined with a secret. Deliberately absent: whether an address is used
//! again, which the daemon finds out.

use aya_ebpf::helpers::bpf_probe_read_kernel;

use crate::read::{
    offsets,
    pointer::{BtfPtr, KernelPtr},
};

/// 1 where sockets are identified by their address, because this kernel, or the hook that sees them first, has
/// no cookie for them. Set by the loader.
#[unsafe(no_mangle)]
static IDENTITY_IS_ADDRESS: u32 = 0;

/// A secret of the loader, new at each start: addresses of the kernel must not become known.
#[unsafe(no_mangle)]
static ADDRESS_KEY: u64 = 0;

/// Whether sockets are identified by their address.
#[inline(always)]
pub fn is_address() -> bool {
    offsets::value(&IDENTITY_IS_ADDRESS) != 0
}

/// The identity of the socket.
#[inline(always)]
pub fn of(sk: impl KernelPtr) -> u64 {
    let sk = sk.sock();
    if !is_address() {
        return sk.cookie();
    }
    let pointer = sk.as_ptr();
    // SAFETY: a pointer is eight bytes. Through a helper, because the verifier refuses arithmetic on pointers.
    hide_address(unsafe { bpf_probe_read_kernel((&raw const pointer).cast::<u64>()) }.unwrap_or(0))
}

/// The same of a socket that was reached through another one, without a branch: a loop over many would double with each what
/// the verifier has to follow.
#[inline(always)]
pub fn of_walked(sk: BtfPtr) -> u64 {
    if is_address() { of(sk) } else { sk.made_cookie() }
}

/// An address of the kernel as the daemon may see it.
#[inline(always)]
pub fn hide_address(address: u64) -> u64 {
    // SAFETY: a live static. Volatile, or the compiler folds its value at build time.
    address ^ unsafe { core::ptr::read_volatile(&raw const ADDRESS_KEY) }
}
