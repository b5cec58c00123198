//! Tables in one blob, with what has to be patched once its address is known; as commands of
//! the linker-loader (SeaBIOS `src/fw/romfile_loader.h`) or patched here.

/// A blob of tables relative to its own start.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    pub bytes: Vec<u8>,
    /// (offset, size) of little-endian pointers that now hold offsets in this blob.
    pub pointers: Vec<(usize, usize)>,
    /// (start, length, offset of the checksum byte).
    pub sums: Vec<(usize, usize, usize)>,
}

impl Layout {
    pub const HEADER: usize = 36;
    const CHECKSUM: usize = 9;

    /// Appends bytes at an alignment; their offset.
    pub fn append(&mut self, bytes: &[u8], align: usize) -> usize {
        let at = self.bytes.len().next_multiple_of(align);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(bytes);
        at
    }

    /// Appends a table: its length is filled in, its checksum will be.
    pub fn table(&mut self, mut bytes: Vec<u8>) -> usize {
        let len = bytes.len();
        bytes[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        let at = self.append(&bytes, 16);
        self.sums.push((at, len, at + Self::CHECKSUM));
        at
    }

    /// Makes `size` bytes at `at` a pointer to offset `to`.
    pub fn point(&mut self, at: usize, size: usize, to: usize) {
        self.bytes[at..at + size].copy_from_slice(&(to as u64).to_le_bytes()[..size]);
        self.pointers.push((at, size));
    }

    /// The bytes as they stand at address `base`; checksums included.
    pub fn placed(&self, base: u64) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for &(at, size) in &self.pointers {
            let field = &mut bytes[at..at + size];
            let mut offset = [0; 8];
            offset[..size].copy_from_slice(field);
            let address = u64::from_le_bytes(offset) + base;
            field.copy_from_slice(&address.to_le_bytes()[..size]);
        }
        for &(start, len, at) in &self.sums {
            bytes[at] = 0;
            bytes[at] = checksum(&bytes[start..start + len]);
        }
        bytes
    }
}

/// The byte that makes the sum of all bytes zero.
pub fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_sub(byte))
}

/// Commands of the linker-loader: 128 bytes each.
#[derive(Default)]
pub struct Loader(Vec<u8>);

/// Where the firmware puts a file.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Zone {
    High = 1,
    /// F0000h-FFFFFh, where the RSDP is searched.
    FSegment = 2,
}

impl Loader {
    fn command(&mut self, number: u32, file: &str) -> &mut [u8] {
        let at = self.0.len();
        self.0.resize(at + 128, 0);
        let entry = &mut self.0[at..];
        entry[..4].copy_from_slice(&number.to_le_bytes());
        entry[4..4 + file.len()].copy_from_slice(file.as_bytes());
        entry
    }

    pub fn allocate(&mut self, file: &str, align: u32, zone: Zone) {
        let entry = self.command(1, file);
        entry[60..64].copy_from_slice(&align.to_le_bytes());
        entry[64] = zone as u8;
    }

    /// Adds the address of `target` to `size` bytes at `offset` of `file`.
    pub fn pointer(&mut self, file: &str, target: &str, offset: usize, size: usize) {
        let entry = self.command(2, file);
        entry[60..60 + target.len()].copy_from_slice(target.as_bytes());
        entry[116..120].copy_from_slice(&(offset as u32).to_le_bytes());
        entry[120] = size as u8;
    }

    /// Puts the checksum of `start..start + len` at `at`.
    pub fn sum(&mut self, file: &str, (start, len, at): (usize, usize, usize)) {
        let entry = self.command(3, file);
        for (i, value) in [at, start, len].into_iter().enumerate() {
            entry[60 + 4 * i..64 + 4 * i].copy_from_slice(&(value as u32).to_le_bytes());
        }
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}
