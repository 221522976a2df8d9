//! Fields of kernel structs, read at offsets that the loader resolved from the running kernel's BTF.
//!
//! Each global below is `OFF_<struct member>`, in bytes, set with `EbpfLoader::override_global` before
//! the load (`tcpwatch/src/offsets.rs` lists the same names). They lie in the frozen `.rodata`, so the
//! verifier sees constants and checks each load against the kernel's own types.

macro_rules! offsets {
    ($($name:ident)*) => { $( #[unsafe(no_mangle)] pub static $name: u32 = 0; )* };
}

offsets! {
    OFF_SKC_DADDR OFF_SKC_RCV_SADDR OFF_SKC_DPORT OFF_SKC_FAMILY OFF_SKC_STATE OFF_SKC_FLAGS
    OFF_SKC_NET OFF_SKC_V6_DADDR OFF_SKC_V6_RCV_SADDR
    OFF_SK_TYPE OFF_SK_ERR OFF_SK_SOCKET OFF_SK_DROPS OFF_SK_ACK_BACKLOG OFF_SK_MAX_ACK_BACKLOG
    OFF_INET_SPORT
    OFF_RCV_NXT OFF_COPIED_SEQ OFF_TOTAL_RETRANS
    OFF_RCV_TSTAMP OFF_LSNDTIME
    OFF_TW_SUBSTATE OFF_TW_SPORT OFF_TW_EXPIRES OFF_SKC_NUM
    OFF_NET_INUM
    OFF_SOCKET_SK
    OFF_TASK_TGID OFF_TASK_FLAGS OFF_TASK_COMM OFF_TASK_GROUP_LEADER OFF_TASK_START_BOOTTIME
}

/// A pointer whose type the verifier knows (`PTR_TO_BTF_ID`): an argument of a BTF tracepoint, or what
/// was read from such a pointer.
#[derive(Clone, Copy)]
pub struct KernelPtr(*const u8);

impl KernelPtr {
    /// `None` for null, which the verifier wants excluded before some pointers are used.
    #[inline(always)]
    pub fn new(pointer: *const u8) -> Option<Self> {
        if pointer.is_null() { None } else { Some(Self(pointer)) }
    }

    #[inline(always)]
    pub fn as_ptr(self) -> *const u8 {
        self.0
    }

    /// The member of type `T` at `offset`.
    #[inline(always)]
    pub fn read<T: Copy>(self, offset: &'static u32) -> T {
        // SAFETY: `offset` is a live static. Volatile, or the compiler folds its value at build time.
        let offset = unsafe { core::ptr::read_volatile(offset) } as usize;
        // SAFETY: the verifier checks this load against the BTF of the object behind the pointer; a
        // fault on a stale pointer reads zeros (the kernel's exception table).
        unsafe { core::ptr::read_volatile(self.0.add(offset).cast()) }
    }

    /// The pointer member at `offset`.
    #[inline(always)]
    pub fn follow(self, offset: &'static u32) -> Option<Self> {
        Self::new(self.read::<*const u8>(offset))
    }

    /// The 16 bytes at `offset` (an address, a name), in two loads.
    #[inline(always)]
    pub fn read_16_bytes(self, offset: &'static u32) -> [u64; 2] {
        // SAFETY: as in `read`; both halves lie in the same member.
        unsafe {
            let offset = core::ptr::read_volatile(offset) as usize;
            let at = self.0.add(offset).cast::<u64>();
            [core::ptr::read_volatile(at), core::ptr::read_volatile(at.add(1))]
        }
    }
}
