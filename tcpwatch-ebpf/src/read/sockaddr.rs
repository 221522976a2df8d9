//! The address that a caller passes to connect(), which the kernel has copied. In: its pointer and length. Out:
//! address and port, as `endpoints.rs` gives them. Deliberately absent: scopes and flow labels.

use aya_ebpf::helpers::bpf_probe_read_kernel;

use crate::read::{endpoints::v4_mapped, pointer::AF_INET};

/// The beginning of `struct sockaddr_in` (include/uapi/linux/in.h).
#[derive(Clone, Copy)]
#[repr(C)]
struct SockaddrIn {
    family: u16,
    port: u16,
    addr: u32,
}

/// Bytes of `struct sockaddr_in` with its padding.
const SOCKADDR_IN_LEN: i32 = 16;

/// `struct sockaddr_in6` (include/uapi/linux/in6.h) without its scope, which callers may leave out.
#[derive(Clone, Copy)]
#[repr(C)]
struct SockaddrIn6 {
    family: u16,
    port: u16,
    flowinfo: u32,
    addr: [u64; 2],
}

/// The address and port; `None` where the caller gave none of `family`, `AF_INET` or else `AF_INET6`.
#[inline(always)]
pub fn read(uaddr: *const u8, addr_len: i32, family: u16) -> Option<([u64; 2], u16)> {
    // SAFETY: the helper checks the address; any bytes are numbers.
    let (found, port, addr) = unsafe {
        if family == AF_INET {
            if addr_len < SOCKADDR_IN_LEN {
                return None;
            }
            let uaddr = bpf_probe_read_kernel(uaddr.cast::<SockaddrIn>()).ok()?;
            (uaddr.family, uaddr.port, v4_mapped(uaddr.addr))
        } else {
            if addr_len < size_of::<SockaddrIn6>() as i32 {
                return None;
            }
            let uaddr = bpf_probe_read_kernel(uaddr.cast::<SockaddrIn6>()).ok()?;
            (uaddr.family, uaddr.port, uaddr.addr)
        }
    };
    (found == family).then_some((addr, u16::from_be(port)))
}
