//! The error numbers that the kernel gives for a TCP connection, for the BPF programs and the daemon alike.
//!
//! In: nothing. Out: the numbers of include/uapi/asm-generic/errno-base.h and errno.h, positive, as `sk_err` holds
//! them; a few old architectures (alpha, mips, parisc, sparc) have others. All fit the 8 bits in which a record
//! carries an errno. Deliberately absent: what an errno means for a connection, which the daemon decides, and every
//! errno that no code here distinguishes.

pub const EPERM: u8 = 1;
pub const EAGAIN: u8 = 11;
pub const ENOMEM: u8 = 12;
pub const EACCES: u8 = 13;
pub const EBUSY: u8 = 16;
pub const ENONET: u8 = 64;
pub const EPROTO: u8 = 71;
pub const ENOPROTOOPT: u8 = 92;
pub const EOPNOTSUPP: u8 = 95;
pub const ENETUNREACH: u8 = 101;
pub const ECONNABORTED: u8 = 103;
pub const ECONNRESET: u8 = 104;
pub const ENOBUFS: u8 = 105;
pub const ETIMEDOUT: u8 = 110;
pub const ECONNREFUSED: u8 = 111;
pub const EHOSTDOWN: u8 = 112;
pub const EHOSTUNREACH: u8 = 113;
