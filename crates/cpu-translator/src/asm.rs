//! A small emitter for the fixed sequences. Guest instructions themselves are copied or
//! re-encoded by iced.

use iced_x86::{Encoder, Instruction};

pub const RAX: u8 = 0;
pub const RCX: u8 = 1;
pub const RSP: u8 = 4;
pub const RBP: u8 = 5;
/// The scratch registers.
pub const T0: u8 = 10;
pub const T1: u8 = 11;

/// A place that is jumped to before or after it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

const UNBOUND: u32 = u32::MAX;

pub struct Code {
    pub bytes: Vec<u8>,
    /// Distance from where the bytes stand in `bytes` to their place behind the code's start: those
    /// from [`Code::apart`] on lie elsewhere.
    gap: u32,
    labels: Vec<u32>,
    /// Index in `bytes` and place.
    fixups: Vec<(usize, u32, Label)>,
    encoder: Encoder,
}

impl Code {
    pub fn new() -> Code {
        Code {
            bytes: Vec::with_capacity(4096),
            gap: 0,
            labels: Vec::new(),
            fixups: Vec::new(),
            encoder: Encoder::new(64),
        }
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.gap = 0;
        self.labels.clear();
        self.fixups.clear();
    }

    /// The present place, from the code's start.
    pub fn at(&self) -> u32 {
        self.bytes.len() as u32 + self.gap
    }

    /// What comes now lies `place` behind the code's start, which is farther than the bytes so far.
    pub fn apart(&mut self, place: u32) {
        self.gap = place - self.bytes.len() as u32;
    }

    pub fn label(&mut self) -> Label {
        self.labels.push(UNBOUND);
        Label(self.labels.len() - 1)
    }

    pub fn bind(&mut self, label: Label) {
        self.labels[label.0] = self.at();
    }

    /// Fills in all jumps to labels. Every label that is used must be bound.
    pub fn finish(&mut self) {
        for &(from, at, label) in &self.fixups {
            let target = self.labels[label.0];
            debug_assert_ne!(target, UNBOUND);
            let rel = target.wrapping_sub(at + 4);
            self.bytes[from..from + 4].copy_from_slice(&rel.to_le_bytes());
        }
        self.fixups.clear();
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn imm32(&mut self, value: i32) {
        self.raw(&value.to_le_bytes());
    }

    /// A guest instruction in its new form; `false` if it has no encoding.
    pub fn encode(&mut self, i: &Instruction) -> bool {
        let ok = self.encoder.encode(i, 0).is_ok();
        let mut out = self.encoder.take_buffer();
        if ok {
            self.bytes.extend_from_slice(&out);
        }
        out.clear();
        self.encoder.set_buffer(out);
        ok
    }

    // ---- jumps ----

    pub fn jmp(&mut self, label: Label) {
        self.raw(&[0xe9]);
        self.rel32(label);
    }

    /// The rel32 of a jump whose opcode was emitted by other means.
    pub fn rel32(&mut self, label: Label) {
        self.fixups.push((self.bytes.len(), self.at(), label));
        self.imm32(0);
    }

    /// `lea reg, [label]`.
    pub fn lea_label(&mut self, reg: u8, label: Label) {
        self.rex(true, reg, 0, 0);
        self.raw(&[0x8d, 0x05 | (reg & 7) << 3]);
        self.rel32(label);
    }

    /// `cc` as in the opcode (4: equal, 5: not equal, 7: above, 8: sign).
    pub fn jcc(&mut self, cc: u8, label: Label) {
        self.raw(&[0x0f, 0x80 | cc]);
        self.rel32(label);
    }

    /// `jmp rel32` to a host address given relative to the block's start.
    pub fn jmp_relative(&mut self, target: i64) {
        self.raw(&[0xe9]);
        let rel = target - i64::from(self.at() + 4);
        self.imm32(rel as i32);
    }

    /// JRCXZ over the next `over` bytes.
    pub fn jrcxz(&mut self, over: u8) {
        self.raw(&[0xe3, over]);
    }

    // ---- moves ----

    fn rex(&mut self, wide: bool, reg: u8, index: u8, base: u8) {
        let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        if rex != 0x40 {
            self.raw(&[rex]);
        }
    }

    fn gs_operand(&mut self, wide: bool, opcode: &[u8], reg: u8, disp: i32) {
        self.raw(&[0x65]);
        self.rex(wide, reg, 0, 0);
        self.raw(opcode);
        self.raw(&[0x04 | (reg & 7) << 3, 0x25]);
        self.imm32(disp);
    }

    /// `mov reg, gs:[disp]`, 64 bits.
    pub fn load(&mut self, reg: u8, disp: i32) {
        self.gs_operand(true, &[0x8b], reg, disp);
    }

    pub fn load32(&mut self, reg: u8, disp: i32) {
        self.gs_operand(false, &[0x8b], reg, disp);
    }

    /// `mov gs:[disp], reg`, 64 bits.
    pub fn store(&mut self, disp: i32, reg: u8) {
        self.gs_operand(true, &[0x89], reg, disp);
    }

    pub fn store32(&mut self, disp: i32, reg: u8) {
        self.gs_operand(false, &[0x89], reg, disp);
    }

    /// `mov dword gs:[disp], value`.
    pub fn store_imm32(&mut self, disp: i32, value: u32) {
        self.gs_operand(false, &[0xc7], 0, disp);
        self.imm32(value as i32);
    }

    /// `op reg, gs:[disp]` for a one-byte opcode (0x03 ADD, 0x3b CMP ...), 64 bits.
    pub fn op_gs(&mut self, opcode: u8, reg: u8, disp: i32) {
        self.gs_operand(true, &[opcode], reg, disp);
    }

    /// `mov reg, reg`, 64 bits.
    pub fn mov(&mut self, to: u8, from: u8) {
        self.rex(true, from, 0, to);
        self.raw(&[0x89, 0xc0 | (from & 7) << 3 | to & 7]);
    }

    /// `op rm, reg` for a one-byte opcode (0x39 CMP, ...), 64 bits.
    pub fn op_registers(&mut self, opcode: u8, reg: u8, rm: u8) {
        self.rex(true, reg, 0, rm);
        self.raw(&[opcode, 0xc0 | (reg & 7) << 3 | rm & 7]);
    }

    /// `mov reg, reg`, 32 bits.
    pub fn mov32(&mut self, to: u8, from: u8) {
        self.rex(false, from, 0, to);
        self.raw(&[0x89, 0xc0 | (from & 7) << 3 | to & 7]);
    }

    /// The shortest way to a constant that leaves the flags alone.
    pub fn constant(&mut self, reg: u8, value: u64) {
        if value <= 0xffff_ffff {
            self.rex(false, 0, 0, reg);
            self.raw(&[0xb8 | reg & 7]);
            self.imm32(value as u32 as i32);
        } else if value as i64 >= i64::from(i32::MIN) && (value as i64) < 0 {
            self.rex(true, 0, 0, reg);
            self.raw(&[0xc7, 0xc0 | reg & 7]);
            self.imm32(value as i32);
        } else {
            self.rex(true, 0, 0, reg);
            self.raw(&[0xb8 | reg & 7]);
            self.raw(&value.to_le_bytes());
        }
    }

    /// `lea reg, [base + disp]`, 64 bits or the 32-bit sum.
    pub fn lea_word(&mut self, wide: bool, reg: u8, base: u8, disp: i32) {
        self.lea_address(wide, reg, &Address { base: Some(base), index: None, scale: 0, disp });
    }

    /// `len` bytes that do nothing, in as few instructions as can be (SDM volume 2, NOP).
    pub fn nops(&mut self, mut len: usize) {
        const FORMS: [&[u8]; 9] = [
            &[0x90],
            &[0x66, 0x90],
            &[0x0f, 0x1f, 0],
            &[0x0f, 0x1f, 0x40, 0],
            &[0x0f, 0x1f, 0x44, 0, 0],
            &[0x66, 0x0f, 0x1f, 0x44, 0, 0],
            &[0x0f, 0x1f, 0x80, 0, 0, 0, 0],
            &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
            &[0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
        ];
        while len != 0 {
            let form = FORMS[len.min(FORMS.len()) - 1];
            self.raw(form);
            len -= form.len();
        }
    }

    /// JECXZ over the next `over` bytes.
    pub fn jecxz(&mut self, over: u8) {
        self.raw(&[0x67, 0xe3, over]);
    }

    /// `lea reg, [base + disp]`.
    pub fn lea(&mut self, reg: u8, base: u8, disp: i32) {
        self.rex(true, reg, 0, base);
        self.raw(&[0x8d]);
        self.base_disp(reg, base, disp);
    }

    fn base_disp(&mut self, reg: u8, base: u8, disp: i32) {
        let short = i8::try_from(disp);
        let md = match short {
            Ok(0) if base & 7 != 5 => 0,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        self.raw(&[md | (reg & 7) << 3 | base & 7]);
        if base & 7 == 4 {
            self.raw(&[0x24]);
        }
        match (md, short) {
            (0, _) => {}
            (0x40, Ok(disp)) => self.raw(&[disp as u8]),
            _ => self.imm32(disp),
        }
    }

    /// `lea reg, [base + index * 1 + disp8]`.
    pub fn lea_sum(&mut self, reg: u8, base: u8, index: u8, disp: i8) {
        self.rex(true, reg, index, base);
        self.raw(&[0x8d, 0x44 | (reg & 7) << 3, (index & 7) << 3 | base & 7, disp as u8]);
    }

    /// `mov reg, [base + disp]`, 64 bits.
    pub fn load_at(&mut self, reg: u8, base: u8, disp: i32) {
        self.rex(true, reg, 0, base);
        self.raw(&[0x8b]);
        self.base_disp(reg, base, disp);
    }

    /// `mov [base + disp], reg`, 64 bits.
    pub fn store_at(&mut self, base: u8, disp: i32, reg: u8) {
        self.rex(true, reg, 0, base);
        self.raw(&[0x89]);
        self.base_disp(reg, base, disp);
    }

    /// `opcode reg, [address]`, base without or with index.
    pub fn op_at(&mut self, wide: bool, opcode: u8, reg: u8, a: &Address) {
        let (base, index) = (a.base.unwrap_or(5), a.index.unwrap_or(4));
        self.rex(wide, reg, index, if a.base.is_some() { base } else { 0 });
        self.raw(&[opcode]);
        self.address_bytes(reg, a);
    }

    /// `mov qword/dword [address], imm32`.
    pub fn store_imm_at(&mut self, wide: bool, value: i32, a: &Address) {
        self.op_at(wide, 0xc7, 0, a);
        self.imm32(value);
    }

    pub fn xchg(&mut self, a: u8, b: u8) {
        self.rex(true, a, 0, b);
        self.raw(&[0x87, 0xc0 | (a & 7) << 3 | b & 7]);
    }

    // ---- arithmetic (flags change) ----

    /// `test reg8, imm8`; registers above RBX only.
    pub fn test8(&mut self, reg: u8, value: u8) {
        let rex = 0x40 | reg >> 3;
        self.raw(&[rex, 0xf6, 0xc0 | reg & 7, value]);
    }

    /// `test reg, value`, 64 bits.
    pub fn test64(&mut self, reg: u8, value: i32) {
        self.rex(true, 0, 0, reg);
        self.raw(&[0xf7, 0xc0 | reg & 7]);
        self.imm32(value);
    }

    /// SHL or SHR of a 32-bit register.
    pub fn shift32(&mut self, reg: u8, left: bool, count: u8) {
        self.rex(false, 0, 0, reg);
        self.raw(&[0xc1, if left { 0xe0 } else { 0xe8 } | reg & 7, count]);
    }

    /// `imul to, from, value`, 64 bits.
    pub fn multiply(&mut self, to: u8, from: u8, value: i32) {
        self.rex(true, to, 0, from);
        self.raw(&[0x69, 0xc0 | (to & 7) << 3 | from & 7]);
        self.imm32(value);
    }

    /// `sub dword gs:[disp], 1`.
    pub fn decrement32_gs(&mut self, disp: i32) {
        self.gs_operand(false, &[0x83], 5, disp);
        self.raw(&[1]);
    }

    /// `cmp reg32, gs:[disp]`.
    pub fn compare32_gs(&mut self, reg: u8, disp: i32) {
        self.gs_operand(false, &[0x3b], reg, disp);
    }

    /// `mov to, 12 | 36 << 8; bextr to, from, to`: bits 12 to 47 of `from`, which is another one.
    pub fn page_index(&mut self, to: u8, from: u8) {
        self.page_index_by(to, to, from);
    }

    /// Likewise; `by`, not `from`, changes too.
    pub fn page_index_by(&mut self, by: u8, to: u8, from: u8) {
        self.constant(by, 12 | 36 << 8);
        let first = (!to & 8) << 4 | 0x40 | (!from & 8) << 2 | 2;
        self.raw(&[0xc4, first, 0x80 | (!by & 15) << 3, 0xf7, 0xc0 | (to & 7) << 3 | from & 7]);
    }

    /// `not reg`: no flags.
    pub fn not(&mut self, reg: u8) {
        self.rex(true, 0, 0, reg);
        self.raw(&[0xf7, 0xd0 | reg & 7]);
    }

    /// Group 1 with a 32-bit register and immediate: 4 AND, 7 CMP, 0 ADD, 5 SUB.
    pub fn group32(&mut self, op: u8, reg: u8, value: i32) {
        self.group(false, op, reg, value);
    }

    /// Likewise with a 64-bit register.
    pub fn group64(&mut self, op: u8, reg: u8, value: i32) {
        self.group(true, op, reg, value);
    }

    fn group(&mut self, wide: bool, op: u8, reg: u8, value: i32) {
        self.rex(wide, 0, 0, reg);
        if let Ok(short) = i8::try_from(value) {
            self.raw(&[0x83, 0xc0 | op << 3 | reg & 7, short as u8]);
        } else {
            self.raw(&[0x81, 0xc0 | op << 3 | reg & 7]);
            self.imm32(value);
        }
    }

    /// `cmp byte [base + disp], value`.
    pub fn cmp8_at(&mut self, base: u8, disp: i32, value: u8) {
        self.rex(false, 0, 0, base);
        self.raw(&[0x80]);
        self.base_disp(7, base, disp);
        self.raw(&[value]);
    }

    /// `cmp dword gs:[disp], imm32`; the immediate is the last four bytes.
    pub fn cmp32_gs(&mut self, disp: i32, value: i32) {
        self.gs_operand(false, &[0x81], 7, disp);
        self.imm32(value);
    }

    /// `pext to, from, gs:[disp]`: no flags.
    pub fn pext(&mut self, to: u8, from: u8, disp: i32) {
        let first = if to >= 8 { 0x62 } else { 0xe2 };
        self.raw(&[0x65, 0xc4, first, 0x82 | (!from & 15) << 3, 0xf5, 0x04 | (to & 7) << 3, 0x25]);
        self.imm32(disp);
    }

    /// `movzx r32, r16`.
    pub fn movzx16(&mut self, to: u8, from: u8) {
        self.rex(false, to, 0, from);
        self.raw(&[0x0f, 0xb7, 0xc0 | (to & 7) << 3 | from & 7]);
    }

    /// `mov reg, gs:[reg * 8 + disp]`.
    pub fn load_entry(&mut self, reg: u8, disp: i32) {
        self.raw(&[0x65]);
        self.rex(true, reg, reg, 0);
        self.raw(&[0x8b, 0x04 | (reg & 7) << 3, 0xc5 | (reg & 7) << 3]);
        self.imm32(disp);
    }

    /// `mov dword gs:[index * 4 + disp], value`.
    pub fn store_entry32(&mut self, index: u8, disp: i32, value: u32) {
        self.raw(&[0x65]);
        self.rex(false, 0, index, 0);
        self.raw(&[0xc7, 0x04, 0x85 | (index & 7) << 3]);
        self.imm32(disp);
        self.imm32(value as i32);
    }

    /// `jmp gs:[index * 8 + disp]`.
    pub fn jmp_entry(&mut self, index: u8, disp: i32) {
        self.raw(&[0x65]);
        self.rex(false, 0, index, 0);
        self.raw(&[0xff, 0x24, 0xc5 | (index & 7) << 3]);
        self.imm32(disp);
    }

    /// `mov qword gs:[disp], value`, sign-extended.
    pub fn store_imm64(&mut self, disp: i32, value: i32) {
        self.gs_operand(true, &[0xc7], 0, disp);
        self.imm32(value);
    }

    /// `mov byte gs:[disp], value`.
    pub fn store_imm8(&mut self, disp: i32, value: u8) {
        self.gs_operand(false, &[0xc6], 0, disp);
        self.raw(&[value]);
    }

    /// `movzx reg32, byte gs:[disp]`.
    pub fn load8(&mut self, reg: u8, disp: i32) {
        self.gs_operand(false, &[0x0f, 0xb6], reg, disp);
    }

    /// `cmp byte gs:[disp], value`.
    pub fn cmp8_gs(&mut self, disp: i32, value: u8) {
        self.gs_operand(false, &[0x80], 7, disp);
        self.raw(&[value]);
    }

    /// Sets or clears one of the guest's system flags.
    pub fn system_flag(&mut self, bit: i32, on: bool) {
        self.gs_operand(false, &[0x81], if on { 1 } else { 4 }, crate::layout::SYSTEM);
        self.imm32(if on { bit } else { !bit });
    }

    /// `jmp gs:[disp]`.
    pub fn jmp_gs(&mut self, disp: i32) {
        self.gs_operand(false, &[0xff], 4, disp);
    }

    /// `wrgsbase reg`.
    pub fn set_gs(&mut self, reg: u8) {
        self.raw(&[0xf3, 0x48 | reg >> 3, 0x0f, 0xae, 0xd8 | reg & 7]);
    }

    // ---- flags ----

    /// Flags to AX; RAX is kept in its saved slot.
    pub fn flags_to_ax(&mut self) {
        self.store(crate::layout::RAX_SAVED, RAX);
        self.lahf_seto();
    }

    /// `lahf; seto al`.
    pub fn lahf_seto(&mut self) {
        self.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// Saves the flags in a slot of the state.
    pub fn save_flags(&mut self) {
        self.flags_to_ax();
        self.store32(crate::layout::SAVED_FLAGS, RAX);
        self.load(RAX, crate::layout::RAX_SAVED);
    }

    /// Likewise where T0 is free: RAX waits there.
    pub fn save_flags_by_t0(&mut self) {
        self.mov(T0, RAX);
        self.lahf_seto();
        self.store32(crate::layout::SAVED_FLAGS, RAX);
        self.mov(RAX, T0);
    }

    /// Loads the flags from `slot`; leaves RAX changed.
    pub fn flags_from(&mut self, slot: i32) {
        self.load32(RAX, slot);
        self.raw(&[0x04, 0x7f, 0x9e]); // add al, 0x7f; sahf
    }

    /// [`Code::restore_flags`] where T0 is free.
    pub fn restore_flags_by_t0(&mut self) {
        self.mov(T0, RAX);
        self.flags_from(crate::layout::SAVED_FLAGS);
        self.mov(RAX, T0);
    }

    pub fn restore_flags(&mut self) {
        self.store(crate::layout::RAX_SAVED, RAX);
        self.flags_from(crate::layout::SAVED_FLAGS);
        self.load(RAX, crate::layout::RAX_SAVED);
    }
}

/// An address: base, index, scale (log 2) and displacement.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub base: Option<u8>,
    pub index: Option<u8>,
    pub scale: u8,
    pub disp: i32,
}

impl Address {
    pub fn at(base: u8, disp: i32) -> Address {
        Address { base: Some(base), index: None, scale: 0, disp }
    }
}

impl Code {
    /// `lea reg, [address]`; not `wide`: the 32-bit sum, zero-extended.
    pub fn lea_address(&mut self, wide: bool, reg: u8, a: &Address) {
        let (base, index) = (a.base.unwrap_or(5), a.index.unwrap_or(4));
        self.rex(wide, reg, index, if a.base.is_some() { base } else { 0 });
        self.raw(&[0x8d]);
        self.address_bytes(reg, a);
    }

    fn address_bytes(&mut self, reg: u8, a: &Address) {
        let (base, index) = (a.base.unwrap_or(5), a.index.unwrap_or(4));
        let sib = a.scale << 6 | (index & 7) << 3 | base & 7;
        if a.base.is_none() {
            self.raw(&[0x04 | (reg & 7) << 3, sib]);
            return self.imm32(a.disp);
        }
        if a.index.is_none() {
            return self.base_disp(reg, base, a.disp);
        }
        match i8::try_from(a.disp) {
            Ok(0) if base & 7 != 5 => self.raw(&[0x04 | (reg & 7) << 3, sib]),
            Ok(disp) => self.raw(&[0x44 | (reg & 7) << 3, sib, disp as u8]),
            Err(_) => {
                self.raw(&[0x84 | (reg & 7) << 3, sib]);
                self.imm32(a.disp);
            }
        }
    }
}
