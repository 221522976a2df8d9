//! Every network namespace that exists: the kernel's own list of them (`net_namespace_list`). In: the reader's namespace,
//! where the walk begins. Out: one record for each namespace. Deliberately absent: what is in them, and how to enter
//! them.

use aya_ebpf::helpers::bpf_get_current_task;
use tcpwatch_common::{MAX_NAMESPACES, SeenNamespace};

use crate::{
    iter::seq::{self, MapContext},
    read::{
        identity,
        offsets::{
            self, OFF_NET_COOKIE, OFF_NET_HASH_MIX, OFF_NET_INUM, OFF_NET_LIST, OFF_NET_NS_OPS,
            OFF_NET_NS_REF, OFF_NSPROXY_NET, OFF_TASK_NSPROXY,
        },
        pointer::{KernelPtr, ProbedPtr},
    },
};

/// The maps that this iterator is made for do not matter: it has few elements, and runs the program once more behind the
/// last, under the RCU lock that keeps what the walk reads.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map")]
pub extern "C" fn namespaces_iter(ctx: *const MapContext) -> i32 {
    // SAFETY: the kernel passes a context of this layout.
    let (meta, map) = unsafe { ((*ctx).meta, (*ctx).map) };
    if !map.is_null() {
        return 0;
    }
    let Some(first) = own() else { return 0 };
    let ops = first.read::<u64>(&OFF_NET_NS_OPS);
    let mut net = first;
    for _ in 0..=MAX_NAMESPACES {
        // The list's head lies in no namespace: what would be there is something else.
        let is_head = net.read::<u64>(&OFF_NET_NS_OPS) ^ ops;
        report(meta, net, is_zero(is_head));
        let next = net.read::<u64>(&OFF_NET_LIST).wrapping_sub(offsets::value(&OFF_NET_LIST) as u64);
        match ProbedPtr::new(next as *const u8) {
            Some(next) if next.as_ptr() != first.as_ptr() => net = next,
            _ => break,
        }
    }
    0
}

/// The reader's namespace.
#[inline(always)]
fn own() -> Option<ProbedPtr> {
    // SAFETY: no arguments.
    let task = ProbedPtr::new(unsafe { bpf_get_current_task() } as *const u8)?;
    task.follow(&OFF_TASK_NSPROXY)?.follow(&OFF_NSPROXY_NET)
}

/// `is_namespace`: 1, or 0 where there is none. Without branches, each of which the verifier would follow for every
/// namespace anew.
#[inline(always)]
fn report(meta: *const seq::Meta, net: ProbedPtr, is_namespace: u32) {
    // Nothing refers to one that is being removed.
    let lives = 1 - is_zero(net.read::<u32>(&OFF_NET_NS_REF).into());
    let record = SeenNamespace {
        cookie: net.read(&OFF_NET_COOKIE),
        inode: net.read::<u32>(&OFF_NET_INUM) * is_namespace * lives,
        // The kernel's own secret against collisions of hashes must not become known.
        identity: identity::hide_address(net.read::<u32>(&OFF_NET_HASH_MIX).into()) as u32,
    };
    seq::write(meta, &record);
}

/// 1 or 0.
#[inline(always)]
fn is_zero(number: u64) -> u32 {
    1 - ((number | number.wrapping_neg()) >> 63) as u32
}
