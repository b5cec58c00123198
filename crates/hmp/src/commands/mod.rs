//! What the commands do, a file an area.

pub mod block;
pub mod blockjobs;
pub mod debug;
pub mod drives;
pub mod info;
pub mod io;
pub mod lifecycle;
pub mod log;
pub mod memory;
pub mod nbd;
pub mod objects;
pub mod paging;
pub mod registers;
pub mod tree;

/// Longer output is cut off: page tables and repeat counts are a guest's or a client's choice.
pub const MAX_OUTPUT: usize = 4 << 20;

/// Appends unless the limit has been reached; says so once. Returns whether to go on.
pub fn push(out: &mut String, text: &str) -> bool {
    if out.len() > MAX_OUTPUT {
        return false;
    }
    out.push_str(text);
    if out.len() > MAX_OUTPUT {
        out.push_str("(output is cut off here)\n");
        return false;
    }
    true
}
