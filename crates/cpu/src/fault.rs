//! Exceptions as values: what an instruction raised, before its delivery through the IDT.

/// Exception vectors (SDM vol. 3A §6.3.1, table 6-1).
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// Page-fault error code bits (SDM vol. 3A §4.7).
pub mod page_fault {
    pub const PRESENT: u32 = 1;
    pub const WRITE: u32 = 2;
    pub const USER: u32 = 4;
    pub const RESERVED: u32 = 8;
    pub const FETCH: u32 = 16;
}

/// An exception that an instruction raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub vector: u8,
    pub error: Option<u32>,
    /// #PF: the linear address for CR2. #DB: the bits to set in DR6. Otherwise zero.
    pub payload: u64,
}

impl Fault {
    pub const UD: Fault = Fault::plain(vector::UD);
    pub const NM: Fault = Fault::plain(vector::NM);
    pub const DE: Fault = Fault::plain(vector::DE);
    pub const GP0: Fault = Fault::coded(vector::GP, 0);
    pub const SS0: Fault = Fault::coded(vector::SS, 0);

    pub const fn plain(vector: u8) -> Self {
        Fault { vector, error: None, payload: 0 }
    }

    pub const fn coded(vector: u8, error: u32) -> Self {
        Fault { vector, error: Some(error), payload: 0 }
    }

    /// A fault whose error code names a selector (RPL cleared).
    pub const fn selector(vector: u8, selector: u16) -> Self {
        Fault::coded(vector, (selector & 0xfffc) as u32)
    }

    pub const fn gp(selector: u16) -> Self {
        Fault::selector(vector::GP, selector)
    }

    pub const fn page(code: u32, linear: u64) -> Self {
        Fault { vector: vector::PF, error: Some(code), payload: linear }
    }

    /// Contributory exceptions of the double-fault table (SDM vol. 3A table 6-5).
    pub fn is_contributory(&self) -> bool {
        matches!(self.vector, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP)
    }
}

/// What a second fault during the delivery of a first one becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escalation {
    /// The second is delivered in the first one's place.
    Serial(Fault),
    DoubleFault,
    TripleFault,
}

/// SDM vol. 3A §6.15 (interrupt 8): `first` was being delivered when `second` came up.
pub fn escalate(first: Option<Fault>, second: Fault) -> Escalation {
    match first {
        Some(f) if f.vector == vector::DF => Escalation::TripleFault,
        Some(f) if f.vector == vector::PF && (second.is_contributory() || second.vector == vector::PF) => {
            Escalation::DoubleFault
        }
        Some(f) if f.is_contributory() && second.is_contributory() => Escalation::DoubleFault,
        _ => Escalation::Serial(second),
    }
}
