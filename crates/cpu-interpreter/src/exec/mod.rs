//! The generic interpreter: one iced `Instruction` at a time.
//!
//! Rule for every instruction: all that can fault comes first; state changes last.

mod arithmetic;
mod bits;
mod control;
mod data;
mod fpu_state;
mod msr;
mod ports;
mod simd;
mod strings;
mod system;
mod xsave;

pub use bits::{changed, shift};
pub use control::branch_size;

use crate::core::Core;
use crate::op::Op;
use cpu::Fault;
use cpu::state::seg;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// How an instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on with the next instruction.
    Next,
    /// Go on with the next instruction in a new block (mode or mapping may have changed).
    End,
    /// `rip` was set.
    Branch,
    /// The same instruction goes on after a look at pending interrupts (REP).
    Again,
    Halt,
}

pub type Done = Result<Flow, Fault>;

/// Encoding number of a general register and whether it is AH..BH.
pub fn gpr(register: Register) -> (u8, bool) {
    let high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    let number = if high {
        (register as usize - Register::AH as usize) as u8
    } else {
        register.full_register().number() as u8
    };
    (number, high)
}

/// Index into the segment registers.
pub fn seg_index(register: Register) -> usize {
    match register {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    }
}

impl Core {
    pub fn read_register(&self, register: Register) -> u64 {
        let (number, high) = gpr(register);
        if high {
            return self.r[usize::from(number)] >> 8 & 0xff;
        }
        self.reg(number, register.size())
    }

    pub fn write_register(&mut self, register: Register, value: u64) {
        let (number, high) = gpr(register);
        if high {
            let slot = &mut self.r[usize::from(number)];
            *slot = *slot & !0xff00 | (value & 0xff) << 8;
        } else {
            self.set_reg(number, register.size(), value);
        }
    }

    /// Offset of the memory operand in its segment.
    pub fn offset(&self, op: &Op) -> u64 {
        let base = self.r[usize::from(op.base)];
        let index = self.r[usize::from(op.index)] << (op.scale & 3);
        let sum = base.wrapping_add(index).wrapping_add(op.disp);
        sum << (op.cut & 63) >> (op.cut & 63)
    }

    /// Linear address of the memory operand after segment checks.
    pub fn operand(&self, op: &Op, size: usize, write: bool) -> Result<u64, Fault> {
        self.linear(op.seg, self.offset(op), size, write)
    }

    /// Size in bytes of operand `n`.
    pub fn operand_size(&self, i: &Instruction, n: u32) -> usize {
        match i.op_kind(n) {
            OpKind::Register => i.op_register(n).size(),
            OpKind::Memory => i.memory_size().size(),
            _ => match i.op0_kind() {
                OpKind::Register => i.op0_register().size(),
                _ => i.memory_size().size(),
            },
        }
    }

    /// Reads operand `n` (register, memory or immediate).
    pub fn get(&mut self, i: &Instruction, op: &Op, n: u32, size: usize) -> Result<u64, Fault> {
        match i.op_kind(n) {
            OpKind::Register => Ok(self.read_register(i.op_register(n))),
            OpKind::Memory => {
                let linear = self.operand(op, size, false)?;
                self.read(linear, size)
            }
            _ => Ok(i.immediate(n)),
        }
    }

    /// Writes operand `n` (register or memory).
    pub fn put(&mut self, i: &Instruction, op: &Op, n: u32, size: usize, value: u64) -> Result<(), Fault> {
        if i.op_kind(n) == OpKind::Register {
            self.write_register(i.op_register(n), value);
            return Ok(());
        }
        let linear = self.operand(op, size, true)?;
        self.write(linear, size, value)
    }

    /// Replaces operand 0 by `f` of it (under LOCK if prefixed); returns the old value.
    pub fn modify(
        &mut self,
        i: &Instruction,
        op: &Op,
        size: usize,
        mut f: impl FnMut(u64) -> u64,
    ) -> Result<u64, Fault> {
        if i.op0_kind() == OpKind::Register {
            let old = self.read_register(i.op0_register());
            self.write_register(i.op0_register(), f(old));
            return Ok(old);
        }
        let linear = self.operand(op, size, true)?;
        if i.has_lock_prefix() || i.mnemonic() == Mnemonic::Xchg {
            return self.locked(linear, size, f);
        }
        let old = self.read_rmw(linear, size)?;
        self.write(linear, size, f(old))?;
        Ok(old)
    }

    // ---- the stack ----

    /// Pushes `value` of `size` bytes. RSP changes only if the store succeeds.
    pub fn push(&mut self, size: usize, value: u64) -> Result<(), Fault> {
        let width = self.stack_size();
        let top = self.reg(4, width).wrapping_sub(size as u64) & crate::flags::mask(width);
        let linear = self.linear(seg::SS as u8, top, size, true)?;
        self.write(linear, size, value)?;
        self.set_pointer(4, width, top);
        Ok(())
    }

    /// The value `depth` bytes above the stack top.
    pub fn peek_stack(&mut self, depth: u64, size: usize) -> Result<u64, Fault> {
        let width = self.stack_size();
        let at = self.reg(4, width).wrapping_add(depth) & crate::flags::mask(width);
        let linear = self.linear(seg::SS as u8, at, size, false)?;
        self.read(linear, size)
    }

    /// Adds to RSP in its present width.
    pub fn move_stack(&mut self, by: i64) {
        let width = self.stack_size();
        let top = self.reg(4, width).wrapping_add(by as u64) & crate::flags::mask(width);
        self.set_pointer(4, width, top);
    }

    pub fn pop(&mut self, size: usize) -> Result<u64, Fault> {
        let value = self.peek_stack(0, size)?;
        self.move_stack(size as i64);
        Ok(value)
    }

    /// Executes one instruction; `rip` is its address. On `Err` nothing has changed.
    pub fn exec(&mut self, i: &Instruction, op: &Op) -> Done {
        use Mnemonic::*;
        match i.mnemonic() {
            Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test | Inc | Dec | Neg | Not | Mul | Imul
            | Div | Idiv | Daa | Das | Aaa | Aas | Aam | Aad | Adcx | Adox | Mulx => self.arithmetic(i, op),
            Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd | Bt | Bts | Btr | Btc | Bsf
            | Bsr | Tzcnt | Lzcnt | Popcnt | Andn | Bextr | Blsi | Blsmsk | Blsr | Bzhi | Pdep | Pext
            | Rorx | Sarx | Shlx | Shrx | Crc32 => self.bits(i, op),
            Movsb | Movsw | Movsq | Stosb | Stosw | Stosd | Stosq | Lodsb | Lodsw | Lodsd | Lodsq | Scasb
            | Scasw | Scasd | Scasq | Cmpsb | Cmpsw | Cmpsq | Insb | Insw | Insd | Outsb | Outsw | Outsd => {
                self.string(i, op)
            }
            Movsd | Cmpsd if i.is_string_instruction() => self.string(i, op),
            Jmp | Call | Ret | Retf | Iret | Iretd | Iretq | Loop | Loope | Loopne | Jcxz | Jecxz | Jrcxz
            | Int | Int1 | Int3 | Into | Bound | Syscall | Sysret | Sysretq | Sysenter | Sysexit
            | Sysexitq | Jo | Jno | Jb | Jae | Je | Jne | Jbe | Ja | Js | Jns | Jp | Jnp | Jl | Jge | Jle
            | Jg | Hlt | Ud0 | Ud1 | Ud2 => self.control(i, op),
            m => match self.data(i, op, m) {
                Some(done) => done,
                None => match self.system(i, op, m) {
                    Some(done) => done,
                    None => self.simd(i, op),
                },
            },
        }
    }
}
