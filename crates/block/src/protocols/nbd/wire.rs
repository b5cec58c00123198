//! Numbers of the NBD protocol (doc/proto.md of the NetworkBlockDevice project).

#![allow(missing_docs)]

pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
pub const OPT_MAGIC: u64 = 0x4948_4156_454f_5054;
pub const REP_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
pub const STRUCTURED_MAGIC: u32 = 0x668e_33ef;

pub const FIXED_NEWSTYLE: u16 = 1;
pub const NO_ZEROES: u16 = 2;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;
pub const OPT_LIST_META: u32 = 9;
pub const OPT_SET_META: u32 = 10;

pub const REP_ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
pub const REP_META: u32 = 4;
pub const REP_ERR: u32 = 1 << 31;
pub const REP_ERR_UNSUP: u32 = REP_ERR | 1;
pub const REP_ERR_POLICY: u32 = REP_ERR | 2;
pub const REP_ERR_INVALID: u32 = REP_ERR | 3;
pub const REP_ERR_TLS_REQD: u32 = REP_ERR | 5;
pub const REP_ERR_UNKNOWN: u32 = REP_ERR | 6;
pub const REP_ERR_TOO_BIG: u32 = REP_ERR | 9;

pub const INFO_EXPORT: u16 = 0;
pub const INFO_NAME: u16 = 1;
pub const INFO_DESCRIPTION: u16 = 2;
pub const INFO_BLOCK_SIZE: u16 = 3;

pub const HAS_FLAGS: u16 = 1;
pub const READ_ONLY: u16 = 2;
pub const SEND_FLUSH: u16 = 4;
pub const SEND_FUA: u16 = 8;
pub const SEND_TRIM: u16 = 32;
pub const SEND_WRITE_ZEROES: u16 = 64;
pub const SEND_DF: u16 = 128;
pub const MULTI_CONN: u16 = 256;
pub const SEND_CACHE: u16 = 1024;
pub const FAST_ZERO: u16 = 2048;

pub const CMD_READ: u16 = 0;
pub const CMD_WRITE: u16 = 1;
pub const CMD_DISC: u16 = 2;
pub const CMD_FLUSH: u16 = 3;
pub const CMD_TRIM: u16 = 4;
pub const CMD_CACHE: u16 = 5;
pub const CMD_WRITE_ZEROES: u16 = 6;
pub const CMD_BLOCK_STATUS: u16 = 7;

pub const FLAG_FUA: u16 = 1;
pub const FLAG_NO_HOLE: u16 = 2;
pub const FLAG_DF: u16 = 4;
pub const FLAG_REQ_ONE: u16 = 8;
pub const FLAG_FAST_ZERO: u16 = 16;

pub const CHUNK_DONE: u16 = 1;
pub const CHUNK_NONE: u16 = 0;
pub const CHUNK_DATA: u16 = 1;
pub const CHUNK_HOLE: u16 = 2;
pub const CHUNK_STATUS: u16 = 5;
/// Chunks of this kind tell of an error.
pub const CHUNK_FAILED: u16 = 1 << 15;
pub const CHUNK_ERROR: u16 = CHUNK_FAILED | 1;
pub const CHUNK_ERROR_OFFSET: u16 = CHUNK_FAILED | 2;

pub const STATE_HOLE: u32 = 1;
pub const STATE_ZERO: u32 = 2;

/// Longest payload of a request or answer in bytes.
pub const MAX_PAYLOAD: u32 = 32 << 20;
pub const MAX_NAME: usize = 4096;

/// A big-endian number of up to 8 bytes.
pub fn be(data: &[u8]) -> u64 {
    data.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// An errno as the protocol numbers it.
pub fn to_wire(code: i32) -> u32 {
    match code {
        0 => 0,
        libc::EPERM | libc::EROFS => 1,
        libc::ENOMEM => 12,
        libc::ENOSPC | libc::EFBIG | libc::EDQUOT => 28,
        libc::EOVERFLOW => 75,
        libc::ENOTSUP => 95,
        libc::ESHUTDOWN => 108,
        libc::EIO => 5,
        _ => 22,
    }
}

/// An error number of the protocol as an errno.
pub fn from_wire(code: u32) -> i32 {
    match code {
        1 => libc::EPERM,
        5 => libc::EIO,
        12 => libc::ENOMEM,
        28 => libc::ENOSPC,
        75 => libc::EOVERFLOW,
        95 => libc::ENOTSUP,
        108 => libc::ESHUTDOWN,
        _ => libc::EINVAL,
    }
}
