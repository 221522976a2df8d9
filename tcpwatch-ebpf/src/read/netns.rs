//! The network namespace of a socket. In: a socket. Out: the namespace's inode number, as /proc shows it.
//! Deliberately absent: anything else about a namespace.

use aya_ebpf::{macros::map, maps::Array};

use crate::read::{
    offsets::{OFF_NET_COOKIE, OFF_NET_INUM, OFF_SKC_NET},
    pointer::KernelPtr,
};

/// Entries of the cache, 2 KiB together. Two namespaces whose cookies share the lower 8 bits replace each other in one
/// entry, which costs the cache miss that the cache avoids. Never full.
const NETNS_COUNT: u32 = 256;

/// Inode numbers of network namespaces (the lower half), each with the lower half of the namespace's cookie, which the
/// kernel never gives twice. The kernel keeps the inode number beside a count that each new and each gone socket
/// changes (struct ns_common), so reading it there costs a cache miss for nearly every record.
#[map]
static NETNS: Array<u64> = Array::with_max_entries(NETNS_COUNT, 0);

/// Inode number of the socket's network namespace, 0 where there is none.
#[inline(always)]
pub fn inode(sk: impl KernelPtr) -> u32 {
    let Some(net) = sk.sock().follow(&OFF_SKC_NET) else { return 0 };
    // 0 on 5.10, until something asks the kernel for it.
    let cookie = net.read::<u64>(&OFF_NET_COOKIE) as u32;
    let Some(known) = NETNS.get_ptr_mut(cookie % NETNS_COUNT) else { return 0 };
    // SAFETY: a value of the map; read and written at once, so another processor's is seen as a whole.
    let last = unsafe { known.read_volatile() };
    if (last >> 32) as u32 == cookie && cookie != 0 {
        return last as u32;
    }
    let inum = net.read::<u32>(&OFF_NET_INUM);
    if cookie != 0 {
        // SAFETY: as above.
        unsafe { known.write_volatile((cookie as u64) << 32 | inum as u64) };
    }
    inum
}
