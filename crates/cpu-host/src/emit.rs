//! The few host instructions that surround the guest's own in a thunk (SDM vol. 2).

/// Host registers by their encoding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reg {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    R8 = 8,
    R9 = 9,
    R10 = 10,
    R11 = 11,
}

/// Which part of a guest's vector register a thunk moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    Xmm,
    /// Stores zero the rest.
    Ymm,
    Zmm,
}

/// Code under construction. Every thunk has the context in RDI and the operand buffer in RSI.
#[derive(Default)]
pub struct Code(pub Vec<u8>);

impl Code {
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// `[rdi + offset]` as the r/m operand with `reg` (low three bits) in the reg field.
    fn context_operand(&mut self, reg: u8, offset: usize) {
        self.0.push(0x80 | (reg & 7) << 3 | 7);
        self.bytes(&(offset as u32).to_le_bytes());
    }

    pub fn load_gpr(&mut self, reg: Reg, offset: usize) {
        self.bytes(&[0x48 | (reg as u8 >> 3) << 2, 0x8b]);
        self.context_operand(reg as u8, offset);
    }

    pub fn store_gpr(&mut self, reg: Reg, offset: usize) {
        self.bytes(&[0x48 | (reg as u8 >> 3) << 2, 0x89]);
        self.context_operand(reg as u8, offset);
    }

    /// `movups xmm, [pointer]` or the store, or `vmovups` of the wider register.
    pub fn move_vector(&mut self, vector: u8, pointer: Reg, width: Width, store: bool) {
        let opcode = 0x10 | u8::from(store);
        let high = pointer as u8 >> 3;
        match width {
            Width::Zmm => self.bytes(&[0x62, 0xd1 | (1 - high) << 5, 0x7c, 0x48, opcode]),
            Width::Ymm => self.bytes(&[0xc4, 0xc1 | (1 - high) << 5, 0x7c, opcode]),
            Width::Xmm if high != 0 => self.bytes(&[0x41, 0x0f, opcode]),
            Width::Xmm => self.bytes(&[0x0f, opcode]),
        }
        self.0.push((vector & 7) << 3 | pointer as u8 & 7);
        if store && width == Width::Ymm {
            // vmovups [pointer + 32], ymm5
            self.bytes(&[0xc4, 0xc1 | (1 - high) << 5, 0x7c, 0x11, 0x68 | pointer as u8 & 7, 32]);
        }
    }

    /// `movups xmm0, [rdi + offset]` or the store; [`Width::Ymm`]: `vmovups ymm0`.
    pub fn move_vector_zero(&mut self, offset: usize, width: Width, store: bool) {
        let opcode = 0x10 | u8::from(store);
        let prefix: &[u8] = if width == Width::Ymm { &[0xc5, 0xfc] } else { &[0x0f] };
        self.bytes(prefix);
        self.0.push(opcode);
        self.context_operand(0, offset);
        if store && width == Width::Ymm {
            self.bytes(&[0xc5, 0xfc, 0x11]); // vmovups [rdi + offset + 32], ymm5
            self.context_operand(5, offset + 32);
        }
    }

    /// YMM5 = 0, which a VEX instruction's targets get as their bits 511:256.
    pub fn clear_five(&mut self) {
        self.bytes(&[0xc5, 0xd0, 0x57, 0xed]); // vxorps xmm5, xmm5, xmm5
    }

    /// `kmovq k, [rdi + offset]` or the store.
    pub fn move_mask(&mut self, mask: u8, offset: usize, store: bool) {
        self.bytes(&[0xc4, 0xe1, 0xf8, 0x90 | u8::from(store)]);
        self.context_operand(mask, offset);
    }

    pub fn stmxcsr(&mut self, offset: usize) {
        self.bytes(&[0x0f, 0xae]);
        self.context_operand(3, offset);
    }

    /// CF, PF, AF, ZF, SF from the context's flags; uses RAX.
    pub fn load_flags(&mut self, offset: usize) {
        self.0.push(0x8b); // mov eax, [flags]
        self.context_operand(0, offset);
        self.bytes(&[0x88, 0xc4, 0x9e]); // mov ah, al; sahf
    }

    pub fn store_flags(&mut self, offset: usize) {
        self.bytes(&[0x9c, 0x8f]); // pushfq; pop [flags]
        self.context_operand(0, offset);
    }

    /// `mov byte [rdi + offset], value`.
    pub fn store_byte(&mut self, offset: usize, value: u8) {
        self.0.push(0xc6);
        self.context_operand(0, offset);
        self.0.push(value);
    }

    pub fn vzeroupper(&mut self) {
        self.bytes(&[0xc5, 0xf8, 0x77]);
    }

    pub fn ret(&mut self) {
        self.0.push(0xc3);
    }
}
