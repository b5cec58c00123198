//! ELF images (System V ABI, gABI 4.1), 32 and 64 bits, of untrusted origin.

use super::plan::Plan;
use base::{Result, bail, fail};

const LOAD: u32 = 1;
const NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY` (Xen `public/elfnote.h`).
const PHYS32_ENTRY: u32 = 18;
const MAX_SEGMENTS: u16 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    kind: u32,
    offset: u64,
    virtual_: u64,
    physical: u64,
    file_len: u64,
    memory_len: u64,
}

pub struct Image<'a> {
    bytes: &'a [u8],
    wide: bool,
    entry: u64,
    segments: Vec<Segment>,
}

pub fn is(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

fn invalid() -> base::Failure {
    fail!("its ELF headers are corrupt")
}

/// An unsigned little-endian field of `len` bytes.
fn field(bytes: &[u8], at: u64, len: usize) -> Result<u64> {
    let start = usize::try_from(at).map_err(|_| invalid())?;
    let end = start.checked_add(len).ok_or_else(invalid)?;
    let mut word = [0; 8];
    word[..len].copy_from_slice(bytes.get(start..end).ok_or_else(invalid)?);
    Ok(u64::from_le_bytes(word))
}

impl<'a> Image<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Image<'a>> {
        let wide = match field(bytes, 4, 2)? {
            0x101 => false,
            0x102 => true,
            _ => bail!("it is not a little-endian ELF file"),
        };
        match (wide, field(bytes, 18, 2)?) {
            (false, 3) | (true, 62) => {}
            (_, machine) => bail!("it is an ELF file for another machine (number {machine})"),
        }
        let word = if wide { 8 } else { 4 };
        let entry = field(bytes, 24, word)?;
        let table = field(bytes, 24 + word as u64, word)?;
        let (size_at, count_at) = if wide { (54, 56) } else { (42, 44) };
        let size = field(bytes, size_at, 2)?;
        let count = field(bytes, count_at, 2)? as u16;
        if count > MAX_SEGMENTS || size < if wide { 56 } else { 32 } {
            return Err(invalid());
        }
        let segments = (0..u64::from(count)).map(|i| {
            let at = table.checked_add(i * size).ok_or_else(invalid)?;
            segment(bytes.get(usize::try_from(at).map_err(|_| invalid())?..).ok_or_else(invalid)?, wide)
        });
        Ok(Image { bytes, wide, entry, segments: segments.collect::<Result<_>>()? })
    }

    pub fn is_64bit(&self) -> bool {
        self.wide
    }

    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// The entry as a physical address, if it was given as a virtual one.
    pub fn physical_entry(&self) -> u64 {
        let inside = |s: &&Segment| {
            s.kind == LOAD && self.entry.checked_sub(s.virtual_).is_some_and(|by| by < s.memory_len)
        };
        match self.segments.iter().find(inside) {
            Some(s) => s.physical.wrapping_add(self.entry - s.virtual_),
            None => self.entry,
        }
    }

    fn contents(&self, segment: &Segment) -> Result<&'a [u8]> {
        let start = usize::try_from(segment.offset).map_err(|_| invalid())?;
        let len = usize::try_from(segment.file_len).map_err(|_| invalid())?;
        let end = start.checked_add(len).ok_or_else(invalid)?;
        self.bytes.get(start..end).ok_or_else(|| fail!("the file is cut short"))
    }

    /// Adds all loadable segments at their physical addresses.
    pub fn place(&self, plan: &mut Plan) -> Result<()> {
        let mut any = false;
        for segment in self.segments.iter().filter(|s| s.kind == LOAD && s.memory_len > 0) {
            if segment.file_len > segment.memory_len {
                return Err(invalid());
            }
            plan.add_kernel(segment.physical, self.contents(segment)?, segment.memory_len)?;
            any = true;
        }
        if any { Ok(()) } else { bail!("it has nothing to load") }
    }

    /// The 32-bit entry point that a PVH note names.
    pub fn pvh_entry(&self) -> Result<Option<u32>> {
        for segment in self.segments.iter().filter(|s| s.kind == NOTE) {
            let notes = self.contents(segment)?;
            let mut at = 0u64;
            while at + 12 <= notes.len() as u64 {
                let name_len = field(notes, at, 4)?;
                let len = field(notes, at + 4, 4)?;
                let kind = field(notes, at + 8, 4)? as u32;
                let name = at + 12;
                let data = name + name_len.next_multiple_of(4);
                if kind == PHYS32_ENTRY && name_len == 4 && field(notes, name, 4)? == 0x6e_6558 {
                    let value = field(notes, data, if len >= 8 { 8 } else { 4 })?;
                    let entry = u32::try_from(value).map_err(|_| invalid())?;
                    return Ok(Some(entry));
                }
                at = data + len.next_multiple_of(4);
            }
        }
        Ok(None)
    }
}

fn segment(header: &[u8], wide: bool) -> Result<Segment> {
    let get = |at, len| field(header, at, len);
    Ok(if wide {
        Segment {
            kind: get(0, 4)? as u32,
            offset: get(8, 8)?,
            virtual_: get(16, 8)?,
            physical: get(24, 8)?,
            file_len: get(32, 8)?,
            memory_len: get(40, 8)?,
        }
    } else {
        Segment {
            kind: get(0, 4)? as u32,
            offset: get(4, 4)?,
            virtual_: get(8, 4)?,
            physical: get(12, 4)?,
            file_len: get(16, 4)?,
            memory_len: get(20, 4)?,
        }
    })
}
