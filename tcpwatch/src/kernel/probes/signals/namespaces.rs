//! Network namespaces, listed by sweeps.

use super::Spec;
use crate::kernel::{
    btf::offsets::Member,
    probes::way::{Arguments, Attach, Program, Way},
};

pub(super) const SPEC: Spec = Spec {
    key: "namespaces",
    title: "network namespaces",
    ways: &[Way::by(&[Program::new("namespaces_iter", Attach::Iter("bpf_map"), Arguments::Unchecked)])],
    members: &[&[
        Member::new("OFF_NET_LIST", "net", "list"),
        Member::new("OFF_NET_HASH_MIX", "net", "hash_mix"),
        Member::new("OFF_NET_NS_OPS", "net", "ns.ops"),
        // Linux 6.18 and later; 5.11; 5.10.
        Member::new("OFF_NET_NS_REF", "net", "ns.__ns_ref|ns.count|count"),
        Member::new("OFF_TASK_NSPROXY", "task_struct", "nsproxy"),
        Member::new("OFF_NSPROXY_NET", "nsproxy", "net_ns"),
    ]],
    lost: "namespaces in which no process is, and which nothing names or holds a socket of, are not found, and whether one \
           is gone is not known: full sockets of a namespace stay listed if their ends were lost",
};
