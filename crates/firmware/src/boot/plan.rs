//! What goes where in memory, and how the bootstrap processor starts.

use super::entry::Entry;
use base::{Result, bail};
use cpu::CpuState;
use memory::AddressSpace;

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Linux64,
    Linux32,
    Pvh,
    Multiboot,
}

#[derive(Debug)]
struct Piece {
    what: &'static str,
    start: u64,
    bytes: Vec<u8>,
    /// Zero bytes that follow.
    zeroes: u64,
}

impl Piece {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64 + self.zeroes
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Plan {
    pieces: Vec<Piece>,
    ram: u64,
    top: u64,
    kernel_end: u64,
    pub(super) rsdp: Option<u64>,
    pub(super) entry: Option<Entry>,
}

impl Plan {
    /// RAM from 0 to `ram`, of which kernels and initrds may use what is below `top`.
    pub(super) fn new(ram: u64, top: u64) -> Self {
        let kernel_end = super::place::HIGH;
        Plan { pieces: Vec::new(), ram, top, kernel_end, rsdp: None, entry: None }
    }

    pub(super) fn add(&mut self, what: &'static str, start: u64, bytes: Vec<u8>) -> Result<()> {
        self.put(Piece { what, start, bytes, zeroes: 0 }, self.top)
    }

    /// Like [`Plan::add`] above `top`.
    pub(super) fn add_tables(&mut self, what: &'static str, start: u64, bytes: Vec<u8>) -> Result<()> {
        self.put(Piece { what, start, bytes, zeroes: 0 }, self.ram)
    }

    /// Adds a part of the kernel, zero-filled to `len` bytes.
    pub(super) fn add_kernel(&mut self, start: u64, bytes: &[u8], len: u64) -> Result<()> {
        let zeroes = len.saturating_sub(bytes.len() as u64);
        let end = start.saturating_add(len.max(bytes.len() as u64));
        if end > self.top {
            bail!("the guest's memory is too small for it: {:#x} bytes are needed", end);
        }
        self.put(Piece { what: "kernel", start, bytes: bytes.to_vec(), zeroes }, self.top)?;
        self.reserve_kernel(end)
    }

    /// Keeps everything below `end` free of what is placed later.
    pub(super) fn reserve_kernel(&mut self, end: u64) -> Result<()> {
        if end > self.top {
            bail!("the guest's memory is too small for it: {end:#x} bytes are needed");
        }
        let end = end.next_multiple_of(4096);
        self.kernel_end = self.kernel_end.max(end);
        Ok(())
    }

    fn put(&mut self, piece: Piece, limit: u64) -> Result<()> {
        let len = (piece.bytes.len() as u64).checked_add(piece.zeroes);
        let end = len.and_then(|len| piece.start.checked_add(len));
        let Some(end) = end.filter(|&end| end <= limit) else {
            bail!("{} at {:#x} does not fit into the guest's memory", piece.what, piece.start);
        };
        if end == piece.start {
            return Ok(());
        }
        if let Some(other) = self.pieces.iter().find(|other| other.start < end && piece.start < other.end()) {
            bail!("{} at {:#x} would overlap {} at {:#x}", piece.what, piece.start, other.what, other.start);
        }
        self.pieces.push(piece);
        Ok(())
    }

    pub(super) fn top(&self) -> u64 {
        self.top
    }

    pub(super) fn kernel_end(&self) -> u64 {
        self.kernel_end
    }

    pub(super) fn set_entry(&mut self, entry: Entry) -> Result<()> {
        for (what, start, bytes) in entry.tables() {
            self.add(what, start, bytes)?;
        }
        self.entry = Some(entry);
        Ok(())
    }

    pub fn protocol(&self) -> Option<Protocol> {
        self.entry.as_ref().map(|entry| entry.protocol)
    }

    /// Names, addresses and lengths of all that is loaded (`info roms`).
    pub fn pieces(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        self.pieces.iter().map(|piece| (piece.what, piece.start, piece.end() - piece.start))
    }

    /// Writes everything to guest memory.
    pub fn write(&self, memory: &AddressSpace) {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        for piece in &self.pieces {
            memory.write(piece.start, &piece.bytes);
            let mut at = piece.start + piece.bytes.len() as u64;
            while at < piece.end() {
                let step = (piece.end() - at).min(ZEROES.len() as u64);
                memory.write(at, &ZEROES[..step as usize]);
                at += step;
            }
        }
    }

    /// Makes the reset state of the bootstrap processor the kernel's entry state.
    pub fn enter(&self, state: &mut CpuState) {
        if let Some(entry) = &self.entry {
            entry.apply(state);
        }
    }
}
