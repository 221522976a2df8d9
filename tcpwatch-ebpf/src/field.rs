//! Fields of kernel structs, read at offsets that the loader resolved from the running kernel's BTF.
//!
//! Each global below is `OFF_<struct member>`, in bytes, set with `EbpfLoader::override_global` before
//! the load (`tcpwatch/src/offsets.rs` lists the same names). They lie in the frozen `.rodata`, so the
//! verifier sees constants.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{
    bpf_get_socket_cookie, bpf_skc_to_tcp_sock, bpf_skc_to_tcp_timewait_sock,
    generated::bpf_probe_read_kernel,
};
use tcpwatch_common::state::TIME_WAIT;

macro_rules! offsets {
    ($($name:ident)*) => { $( #[unsafe(no_mangle)] pub static $name: u32 = 0; )* };
}

offsets! {
    OFF_SKC_DADDR OFF_SKC_RCV_SADDR OFF_SKC_DPORT OFF_SKC_FAMILY OFF_SKC_STATE OFF_SKC_FLAGS
    OFF_SKC_NET OFF_SKC_V6_DADDR OFF_SKC_V6_RCV_SADDR OFF_SKC_COOKIE
    OFF_SK_TYPE OFF_SK_PROTOCOL OFF_SK_ERR OFF_SK_SOCKET OFF_SK_DROPS OFF_SK_ACK_BACKLOG
    OFF_SK_MAX_ACK_BACKLOG
    OFF_INET_SPORT
    OFF_RCV_NXT OFF_COPIED_SEQ OFF_WRITE_SEQ OFF_SND_NXT OFF_SND_UNA OFF_SK_LINGERTIME
    OFF_TOTAL_RETRANS OFF_BYTES_SENT OFF_BYTES_RETRANS OFF_BYTES_RECEIVED OFF_DSACK_DUPS OFF_SEGS_OUT OFF_DATA_SEGS_OUT
    OFF_ICSK_CA_STATE OFF_ICSK_PENDING OFF_UNDO_MARKER OFF_FIRST_TX_MSTAMP OFF_TCP_RTX_QUEUE OFF_RB_LEFT
    OFF_SKB_SK OFF_SKB_HEAD OFF_SKB_NETWORK_HEADER
    OFF_SKB_LEN OFF_SKB_MSTAMP_NS OFF_SKB_RBNODE
    OFF_SKB_CB OFF_SKB_CB_SEGMENTS OFF_SKB_CB_SACKED OFF_SKB_CB_END_SEQ
    OFF_OUT_OF_ORDER_QUEUE OFF_OOO_LAST_SKB OFF_RCV_OOOPACK OFF_SKB_CB_SEQ
    OFF_TCP_CLOCK_CACHE OFF_RCV_TSTAMP OFF_LSNDTIME OFF_LRCVTIME OFF_SRTT_US OFF_CHRONO_TYPE OFF_CHRONO_START OFF_CHRONO_STAT
    OFF_RATE_DELIVERED OFF_RATE_INTERVAL_US OFF_MSS_CACHE OFF_ICSK_PROBES_OUT OFF_RTT_MIN OFF_MDEV_US
    OFF_SK_SNDBUF OFF_SK_RCVBUF OFF_ICSK_CA_OPS OFF_CA_OPS_NAME
    OFF_NONAGLE OFF_ICSK_USER_TIMEOUT OFF_KEEPALIVE_TIME OFF_KEEPALIVE_INTVL OFF_KEEPALIVE_PROBES
    OFF_NET_KEEPALIVE_TIME OFF_NET_KEEPALIVE_INTVL OFF_NET_KEEPALIVE_PROBES
    OFF_TW_SUBSTATE OFF_TW_SPORT OFF_TW_EXPIRES OFF_SKC_NUM
    OFF_NET_INUM OFF_NET_COOKIE
    OFF_SOCKET_SK OFF_FILE_PRIVATE_DATA OFF_FILE_INODE OFF_INODE_SB OFF_SB_MAGIC
    OFF_TASK_TGID OFF_TASK_FLAGS OFF_TASK_COMM OFF_TASK_GROUP_LEADER OFF_TASK_START_BOOTTIME
    OFF_REGS_ARG0 OFF_REGS_ARG1 OFF_REGS_ARG2 OFF_REGS_ARG3 OFF_REGS_RETURN
}

/// include/linux/socket.h
pub const AF_INET: u16 = 2;
/// include/linux/socket.h
pub const AF_INET6: u16 = 10;
/// include/linux/net.h
const SOCK_STREAM: u16 = 1;
/// include/uapi/linux/in.h
const IPPROTO_TCP: u16 = 6;

/// A non-null pointer to a kernel object, and a way to read what it points to.
pub trait Kernel: Copy {
    /// `None` for null.
    fn new(pointer: *const u8) -> Option<Self>;

    fn as_ptr(self) -> *const u8;

    /// What lies `offset` bytes from its beginning.
    fn read_at<T: Copy>(self, offset: usize) -> T;

    /// The member of type `T` at `offset`.
    #[inline(always)]
    fn read<T: Copy>(self, offset: &'static u32) -> T {
        self.read_at(value(offset))
    }

    /// The socket as a `struct tcp_sock`, if it is one: SCTP, DCCP and MPTCP sockets pass through the same
    /// hooks, raw sockets carry protocol numbers too.
    fn tcp_sock(self) -> Option<Self>;

    /// The socket as a `struct inet_timewait_sock`, if it is one: to be asked before `tcp_sock` where it may be.
    fn minisock(self) -> Option<Self>;

    /// The socket as it is best asked for members of `struct sock`.
    #[inline(always)]
    fn sock(self) -> Self {
        self
    }

    /// The kernel's own identity of the socket.
    fn cookie(self) -> u64;

    /// The pointer member at `offset`.
    #[inline(always)]
    fn follow(self, offset: &'static u32) -> Option<Self> {
        Self::new(self.read::<*const u8>(offset))
    }

    /// The 16 bytes at `offset` (an address, a name).
    #[inline(always)]
    fn read_16_bytes(self, offset: &'static u32) -> [u64; 2] {
        self.read(offset)
    }
}

/// A pointer whose type the verifier knows (`PTR_TO_BTF_ID`): an argument of a BTF tracepoint, fentry or
/// iterator, or what was read from such a pointer. Read by plain loads, which the verifier checks against the
/// kernel's own types.
#[derive(Clone, Copy)]
pub struct Typed {
    pointer: *const u8,
    /// The same object as `pointer`, as `Typed::given_tcp_sock` has it.
    sock: *const u8,
}

impl Typed {
    /// `Kernel::tcp_sock` of a hook's argument whose type is `struct sock`. The argument itself the verifier trusts;
    /// what the helper makes of it can fault for all that it knows, so each load from there is checked at run time.
    #[inline(always)]
    pub fn given_tcp_sock(self) -> Option<Self> {
        // SAFETY: the verifier checks that the argument is a socket.
        let tcp = unsafe { bpf_skc_to_tcp_sock(self.pointer.cast_mut().cast()) };
        let stream = self.read::<u16>(&OFF_SK_TYPE) == SOCK_STREAM;
        (!tcp.is_null() && stream).then_some(Self { pointer: tcp.cast(), sock: self.sock })
    }
}

impl Kernel for Typed {
    #[inline(always)]
    fn new(pointer: *const u8) -> Option<Self> {
        if pointer.is_null() { None } else { Some(Self { pointer, sock: pointer }) }
    }

    #[inline(always)]
    fn as_ptr(self) -> *const u8 {
        self.pointer
    }

    #[inline(always)]
    fn sock(self) -> Self {
        Self { pointer: self.sock, ..self }
    }

    #[inline(always)]
    fn read_at<T: Copy>(self, offset: usize) -> T {
        // SAFETY: the verifier checks this load against the BTF of the object behind the pointer; a
        // fault on a stale pointer reads zeros (the kernel's exception table).
        unsafe { core::ptr::read_volatile(self.pointer.add(offset).cast()) }
    }

    /// In two loads of eight bytes: there are no larger ones.
    #[inline(always)]
    fn read_16_bytes(self, offset: &'static u32) -> [u64; 2] {
        let at = value(offset);
        [self.read_at(at), self.read_at(at + 8)]
    }

    #[inline(always)]
    fn tcp_sock(self) -> Option<Self> {
        // SAFETY: the verifier checks that the argument is a socket.
        let tcp = unsafe { bpf_skc_to_tcp_sock(self.pointer.cast_mut().cast()) };
        Self::new(tcp.cast()).filter(|sk| sk.read::<u16>(&OFF_SK_TYPE) == SOCK_STREAM)
    }

    #[inline(always)]
    fn minisock(self) -> Option<Self> {
        // SAFETY: the verifier checks that the argument is a socket.
        Self::new(unsafe { bpf_skc_to_tcp_timewait_sock(self.pointer.cast_mut().cast()) }.cast())
    }

    /// Made on first request.
    #[inline(always)]
    fn cookie(self) -> u64 {
        let made = self.read::<u64>(&OFF_SKC_COOKIE);
        if made != 0 {
            return made;
        }
        // SAFETY: the verifier checks that the argument is a socket.
        unsafe { bpf_get_socket_cookie(self.pointer.cast_mut().cast()) }
    }
}

/// A pointer that is a plain number to the verifier: an argument of a kprobe or a raw tracepoint. Read with the
/// probing helper; what cannot be read is 0.
#[derive(Clone, Copy)]
pub struct Raw(*const u8);

impl Kernel for Raw {
    #[inline(always)]
    fn new(pointer: *const u8) -> Option<Self> {
        if pointer.is_null() { None } else { Some(Self(pointer)) }
    }

    #[inline(always)]
    fn as_ptr(self) -> *const u8 {
        self.0
    }

    #[inline(always)]
    fn read_at<T: Copy>(self, offset: usize) -> T {
        let mut read = MaybeUninit::<T>::uninit();
        // SAFETY: the helper checks the address, and writes zeros where it cannot read (bpf_probe_read_kernel_common in
        // kernel/trace/bpf_trace.c); `T` is a number, a pointer or an array of them: 0 is a value. What it returns is
        // not asked: older verifiers follow both ways from each such question to the program's end.
        unsafe {
            bpf_probe_read_kernel(
                read.as_mut_ptr().cast(),
                size_of::<T>() as u32,
                self.0.wrapping_add(offset).cast(),
            );
            read.assume_init()
        }
    }

    #[inline(always)]
    fn tcp_sock(self) -> Option<Self> {
        let family = self.read::<u16>(&OFF_SKC_FAMILY);
        let inet = family == AF_INET || family == AF_INET6;
        let stream = self.read::<u16>(&OFF_SK_TYPE) == SOCK_STREAM;
        (inet && stream && self.read::<u16>(&OFF_SK_PROTOCOL) == IPPROTO_TCP).then_some(self)
    }

    /// A minisock in FIN_WAIT2 also has this state, and its own in `tw_substate`.
    #[inline(always)]
    fn minisock(self) -> Option<Self> {
        (self.read::<u8>(&OFF_SKC_STATE) == TIME_WAIT).then_some(self)
    }

    /// 0 until somebody asked the kernel for it. The typed programs that see the socket first have.
    #[inline(always)]
    fn cookie(self) -> u64 {
        self.read(&OFF_SKC_COOKIE)
    }
}

/// What the loader set the global to.
#[inline(always)]
pub fn value(global: &'static u32) -> usize {
    // SAFETY: a live static. Volatile, or the compiler folds its value at build time.
    unsafe { core::ptr::read_volatile(global) as usize }
}
