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

    /// `movups xmm, [pointer]` or the store; `wide`: `vmovups ymm`.
    pub fn move_vector(&mut self, vector: u8, pointer: Reg, wide: bool, store: bool) {
        let opcode = 0x10 | u8::from(store);
        let high = pointer as u8 >> 3;
        if wide {
            self.bytes(&[0xc4, 0xc1 | (1 - high) << 5, 0x7c, opcode]);
        } else {
            if high != 0 {
                self.0.push(0x41);
            }
            self.bytes(&[0x0f, opcode]);
        }
        self.0.push((vector & 7) << 3 | pointer as u8 & 7);
    }

    /// `movups xmm0, [rdi + offset]` or the store; `wide`: `vmovups ymm0`.
    pub fn move_vector_zero(&mut self, offset: usize, wide: bool, store: bool) {
        let opcode = 0x10 | u8::from(store);
        if wide {
            self.bytes(&[0xc5, 0xfc, opcode]);
        } else {
            self.bytes(&[0x0f, opcode]);
        }
        self.context_operand(0, offset);
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
