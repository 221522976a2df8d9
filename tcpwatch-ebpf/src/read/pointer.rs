//! Pointers to kernel objects, and the two ways to read through them. In: a hook's argument, or a pointer read
//! before. Out: members as numbers, and the pointer as a more exact type. Deliberately absent: what a member means.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{
    bpf_get_socket_cookie, bpf_skc_to_tcp_sock, bpf_skc_to_tcp_timewait_sock,
    generated::bpf_probe_read_kernel,
};
use tcpwatch_common::state::TIME_WAIT;

use crate::read::offsets::{
    self, OFF_SK_PROTOCOL, OFF_SK_TYPE, OFF_SKC_COOKIE, OFF_SKC_FAMILY, OFF_SKC_STATE,
};

/// include/linux/socket.h
pub const AF_INET: u16 = 2;
/// include/linux/socket.h
pub const AF_INET6: u16 = 10;
/// include/linux/net.h
pub const SOCK_STREAM: u16 = 1;
/// include/uapi/linux/in.h
pub const IPPROTO_TCP: u16 = 6;
/// include/uapi/linux/in.h
pub const IPPROTO_MPTCP: u16 = 262;

/// A non-null pointer to a kernel object, and a way to read what it points to.
pub trait KernelPtr: Copy {
    /// `None` for null.
    fn new(pointer: *const u8) -> Option<Self>;

    fn as_ptr(self) -> *const u8;

    /// The `T` that lies `offset` bytes from its beginning.
    fn read_at<T: Copy>(self, offset: usize) -> T;

    /// The member of type `T` at `offset`.
    #[inline(always)]
    fn read<T: Copy>(self, offset: &'static u32) -> T {
        self.read_at(offsets::value(offset))
    }

    /// The socket as a `struct tcp_sock`, if it is one: SCTP, DCCP and MPTCP sockets pass through the same
    /// hooks, and raw sockets carry protocol numbers too.
    fn tcp_sock(self) -> Option<Self>;

    /// The socket as a `struct inet_timewait_sock`, if it is one. Where it may be one, this comes before `tcp_sock`.
    fn minisock(self) -> Option<Self>;

    /// The socket as the pointer through which members of `struct sock` are read at the least cost.
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
/// iterator, or what was read from one. It is read with plain loads, which the verifier checks against the
/// kernel's own types.
#[derive(Clone, Copy)]
pub struct BtfPtr {
    pointer: *const u8,
    /// The same object as `pointer`, as `KernelPtr::sock` returns it.
    sock: *const u8,
}

impl BtfPtr {
    /// `KernelPtr::tcp_sock` of a BTF tracepoint's argument of type `struct sock`. The verifier trusts the argument,
    /// but not what the helper returns: each load from there is checked at run time. So members of `struct sock` are
    /// read from the argument.
    #[inline(always)]
    pub fn trusted_tcp_sock(self) -> Option<Self> {
        self.as_tcp_sock(|argument, _| argument)
    }

    /// `KernelPtr::cookie`, always asked of the kernel.
    #[inline(always)]
    pub fn made_cookie(self) -> u64 {
        // SAFETY: the verifier checks that the argument is a socket.
        unsafe { bpf_get_socket_cookie(self.pointer.cast_mut().cast()) }
    }

    /// `sock` gives the pointer to read members of `struct sock` from, of the pointer before and after the conversion.
    #[inline(always)]
    fn as_tcp_sock(self, sock: impl FnOnce(*const u8, *const u8) -> *const u8) -> Option<Self> {
        // SAFETY: the verifier checks that the argument is a socket.
        let tcp = unsafe { bpf_skc_to_tcp_sock(self.pointer.cast_mut().cast()) }.cast();
        let tcp = Self { sock: sock(self.pointer, tcp), ..Self::new(tcp)? };
        (tcp.sock().read::<u16>(&OFF_SK_TYPE) == SOCK_STREAM).then_some(tcp)
    }
}

impl KernelPtr for BtfPtr {
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
        let at = offsets::value(offset);
        [self.read_at(at), self.read_at(at + 8)]
    }

    #[inline(always)]
    fn tcp_sock(self) -> Option<Self> {
        self.as_tcp_sock(|_, tcp| tcp)
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
        self.made_cookie()
    }
}

/// A pointer that is a plain number to the verifier: an argument of a kprobe or a raw tracepoint. It is read with the
/// probing helper; what cannot be read is 0.
#[derive(Clone, Copy)]
pub struct ProbedPtr(*const u8);

impl KernelPtr for ProbedPtr {
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
        // kernel/trace/bpf_trace.c); `T` is a number, a pointer or an array of them, for which 0 is a value. Its return
        // value is not used: older verifiers follow both outcomes of each test to the program's end.
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

    /// A minisock in FIN_WAIT2 also has the state TIME_WAIT here, and its own in `tw_substate`.
    #[inline(always)]
    fn minisock(self) -> Option<Self> {
        (self.read::<u8>(&OFF_SKC_STATE) == TIME_WAIT).then_some(self)
    }

    /// 0 until something asked the kernel for it. The typed programs that see the socket first have.
    #[inline(always)]
    fn cookie(self) -> u64 {
        self.read(&OFF_SKC_COOKIE)
    }
}

/// The words as the bytes that they are in memory.
#[inline(always)]
pub fn bytes<const N: usize, const M: usize>(words: [u64; N]) -> [u8; M] {
    const { assert!(N * 8 == M) };
    // SAFETY: the same number of bytes, all bit patterns are valid.
    unsafe { core::mem::transmute_copy(&words) }
}
