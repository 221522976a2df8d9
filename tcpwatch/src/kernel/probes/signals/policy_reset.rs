//! Resets that a packet filter of this machine sends.

use super::Spec;
use crate::kernel::{
    btf::offsets::Member,
    probes::way::{Arguments, Attach, Program, Way},
};

const LOST: &str = "resets that a packet filter of this machine sends appear as sent by the peer, and those it sends \
                    to peers are not reported; its functions may be absent until the first rule that rejects is \
                    loaded";

pub(super) const SPEC: Spec = Spec {
    key: "policy_reset",
    title: "resets by a packet filter",
    ways: &[
        // Functions of modules, which the kernel's types do not have. Their arguments changed; the programs recognise
        // the packet among them.
        Way::by(&[
            Program::new("policy_reset_v4_kprobe", Attach::Kprobe("nf_send_reset"), Arguments::Unchecked),
            Program::new("policy_reset_v6_kprobe", Attach::Kprobe("nf_send_reset6"), Arguments::Unchecked),
        ]),
        Way::inferred("from resets received").losing(LOST),
    ],
    members: &[&[
        Member::new("OFF_SKB_SK", "sk_buff", "sk"),
        Member::new("OFF_SKB_HEAD", "sk_buff", "head"),
        Member::new("OFF_SKB_NETWORK_HEADER", "sk_buff", "network_header"),
    ]],
    lost: LOST,
};
