//! Cases and outcomes, laid out to live in memory shared with the child process.

/// The address space of a case, the same natively and in the guest.
pub mod layout {
    pub const PAGE: u64 = 4096;
    /// Two pages of code, readable and executable; unmapped around.
    pub const CODE: u64 = 0x4000_0000;
    pub const CODE_SIZE: u64 = 2 * PAGE;
    /// Two pages of data, readable and writable; unmapped below.
    pub const DATA: u64 = 0x4010_0000;
    pub const DATA_SIZE: u64 = 2 * PAGE;
    /// One page of read-only data right above; unmapped above.
    pub const READ_ONLY: u64 = DATA + DATA_SIZE;
    pub const DATA_END: u64 = READ_ONLY + PAGE;
    /// Selectors of a 64-bit Linux process; 32-bit code runs in compatibility mode.
    pub const USER_CS: u16 = 0x33;
    pub const USER_CS32: u16 = 0x23;
    pub const USER_SS: u16 = 0x2b;
}

pub const MAX_CODE: usize = 120;
/// Bytes of a memory patch.
pub const PATCH: usize = 64;

/// Bytes put over the memory template before a case.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Patch {
    /// Offset from [`layout::DATA`]; with the bytes it lies inside the writable pages.
    pub offset: u32,
    pub len: u32,
    pub bytes: [u8; PATCH],
}

/// The registers that a case starts from or ends with.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub zmm: [[u64; 8]; 32],
    /// K0..K7.
    pub opmask: [u64; 8],
    /// Relative to TOP.
    pub st: [[u8; 16]; 8],
    pub fcw: u16,
    pub fsw: u16,
    /// Abridged: bit i = physical register i is not empty.
    pub ftw: u16,
    pub reserved: u16,
    pub mxcsr: u32,
    pub reserved2: u32,
}

impl Default for Registers {
    fn default() -> Self {
        Registers {
            gpr: [0; 16],
            rip: 0,
            rflags: 0x202,
            zmm: [[0; 8]; 32],
            opmask: [0; 8],
            st: [[0; 16]; 8],
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            reserved: 0,
            mxcsr: 0x1f80,
            reserved2: 0,
        }
    }
}

/// One test case.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Case {
    pub registers: Registers,
    /// Code at `registers.rip`, which lies in the code pages with all of it that fits.
    pub code: [u8; MAX_CODE],
    pub code_len: u64,
    /// 64 or 32.
    pub bits: u64,
    pub patches: [Patch; 2],
    /// Flags that may differ at the end if the case runs through (see [`crate::compare`]).
    pub undefined_flags: u64,
    /// The same if it is cut short after its first instruction.
    pub undefined_midway: u64,
    /// The instruction's result may differ at will: only fault or no fault is judged.
    pub undefined_result: u64,
    /// For a gather: the mask register's number plus one, and its element bits times 256.
    pub gather_mask: u64,
    /// Memory that is not compared: addresses and lengths.
    pub open_memory: [(u64, u64); 2],
    /// Bits of CR2 that are compared.
    pub address_mask: u64,
}

impl Default for Case {
    fn default() -> Self {
        Case {
            registers: Registers { rip: layout::CODE, ..Registers::default() },
            code: [0xcc; MAX_CODE],
            code_len: 0,
            bits: 64,
            patches: [Patch { offset: 0, len: 0, bytes: [0; PATCH] }; 2],
            undefined_flags: 0,
            undefined_midway: 0,
            undefined_result: 0,
            gather_mask: 0,
            open_memory: [(0, 0); 2],
            address_mask: u64::MAX,
        }
    }
}

impl Case {
    pub fn code(&self) -> &[u8] {
        &self.code[..(self.code_len as usize).min(MAX_CODE)]
    }

    pub fn code_selector(&self) -> u16 {
        if self.bits == 32 { layout::USER_CS32 } else { layout::USER_CS }
    }

    /// The part of the code that lies inside the code pages, and its offset there.
    pub fn placed(&self) -> (usize, &[u8]) {
        let offset = self.registers.rip.wrapping_sub(layout::CODE).min(layout::CODE_SIZE) as usize;
        let room = layout::CODE_SIZE as usize - offset;
        (offset, &self.code()[..self.code().len().min(room)])
    }

    pub fn set_code(&mut self, bytes: &[u8]) {
        let len = bytes.len().min(MAX_CODE);
        self.code[..len].copy_from_slice(&bytes[..len]);
        self.code_len = len as u64;
    }
}

/// How a case ended.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Outcome {
    /// The exception: 3 (#BP) if the code ran through.
    pub vector: u64,
    pub error_code: u64,
    /// CR2, for page faults.
    pub address: u64,
    pub registers: Registers,
    /// The writable data pages.
    pub memory: [u8; layout::DATA_SIZE as usize],
}

impl Outcome {
    pub fn empty() -> Box<Outcome> {
        Box::new(Outcome {
            vector: 255,
            error_code: 0,
            address: 0,
            registers: Registers::default(),
            memory: [0; layout::DATA_SIZE as usize],
        })
    }
}
