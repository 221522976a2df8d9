//! The error numbers that the kernel gives for a TCP connection, for the BPF programs and the daemon alike.
//!
//! In: nothing. Out: the numbers of include/uapi/asm-generic/errno-base.h and errno.h, positive, as `sk_err` holds
//! them; a few old architectures (alpha, mips, parisc, sparc) have others. All fit the 8 bits in which a record
//! carries an errno. Deliberately absent: what an errno means for a connection, which the daemon decides, and every
//! errno that TCP and what sits on it (TLS, cgroup programs, packet filters, memory limits) do not leave on a socket.

macro_rules! errnos {
    ($($name:ident = $number:literal)*) => {
        $(pub const $name: u8 = $number;)*

        /// Every number of this module with its name, in the order of the numbers.
        pub const NAMES: &[(u8, &str)] = &[$(($number, stringify!($name))),*];
    };
}

errnos! {
    EPERM = 1
    EINTR = 4
    EIO = 5
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    ENODEV = 19
    EINVAL = 22
    EPIPE = 32
    ENONET = 64
    EPROTO = 71
    EBADMSG = 74
    ENOTSOCK = 88
    EDESTADDRREQ = 89
    EMSGSIZE = 90
    ENOPROTOOPT = 92
    EPROTONOSUPPORT = 93
    EOPNOTSUPP = 95
    EAFNOSUPPORT = 97
    EADDRINUSE = 98
    EADDRNOTAVAIL = 99
    ENETDOWN = 100
    ENETUNREACH = 101
    ENETRESET = 102
    ECONNABORTED = 103
    ECONNRESET = 104
    ENOBUFS = 105
    EISCONN = 106
    ENOTCONN = 107
    ETIMEDOUT = 110
    ECONNREFUSED = 111
    EHOSTDOWN = 112
    EHOSTUNREACH = 113
    EALREADY = 114
    EINPROGRESS = 115
}
