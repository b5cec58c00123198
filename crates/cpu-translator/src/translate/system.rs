//! System instructions that need not leave translated code. Their state stands in the state
//! page (`layout::State`: system flags, segment bases, the views' GS bases) and is brought
//! to the interpreter's at the next exit (`crate::system`).

use super::access::{MADE, Sought, Where, slot};
use super::emit::host_form;
use super::groups::is_scratch;
use super::{Builder, Class, Cold, FlagsAt, Source, key};
use crate::asm::*;
use crate::cache::Kind;
use crate::layout::*;
use crate::string_stubs;
use crate::tables::Form;
use cpu_interpreter::View;
use iced_x86::{Code as Op, Instruction, MemoryOperand, Mnemonic, OpKind, Register};

/// RFLAGS.AC and DF as they stand in `State::system`.
const AC: i32 = 1 << 18;
const DF: i32 = 1 << 10;

/// How a system instruction is translated, if not by the interpreter.
pub fn classify(source: &Source, i: &Instruction) -> Option<Class> {
    use Mnemonic::*;
    if source.bits() != 64 {
        return None;
    }
    let inner = source.key & key::SUPERVISOR != 0;
    let inline = match i.mnemonic() {
        Rdtsc | Rdtscp => source.key & key::COUNTER != 0,
        Cpuid | Pause => true,
        Pushfq => i.code() == Op::Pushfq,
        Cld | Std => true,
        Mov => reads_selector(i) || inner && read_control(i).is_some(),
        Stosb | Stosw | Stosd | Stosq | Movsb | Movsw | Movsd | Movsq => string(i).is_some(),
        Bt | Bts | Btr | Btc => is_far_bit(i),
        Cli | Sti => inner,
        Rdfsbase | Rdgsbase => source.key & key::BASES != 0,
        Swapgs | Stac | Clac if inner => return Some(Class::SystemEnd),
        Wrfsbase | Wrgsbase if source.key & key::BASES != 0 => return Some(Class::SystemEnd),
        Syscall if !inner => return Some(Class::Enter),
        Sysretq if inner => return Some(Class::Enter),
        _ => false,
    };
    inline.then_some(Class::System)
}

/// MOV from a segment register.
fn reads_selector(i: &Instruction) -> bool {
    let plain = match i.op0_kind() {
        OpKind::Register => i.op0_register().size() >= 4 || !is_scratch(i.op0_register().full_register()),
        kind => kind == OpKind::Memory,
    };
    plain && i.op1_kind() == OpKind::Register && i.op1_register().is_segment_register()
}

/// MOV from a control register: where it stands.
fn read_control(i: &Instruction) -> Option<i32> {
    let from = (i.op1_kind() == OpKind::Register).then(|| i.op1_register()).filter(|r| r.is_cr())?;
    control(from.number())
}

/// REP STOS or REP MOVS through 64-bit addresses without a base: whether it is MOVS, and the
/// binary logarithm of its elements' size.
fn string(i: &Instruction) -> Option<(bool, usize)> {
    use Mnemonic::*;
    let plain = i.has_rep_prefix() && i.op0_kind() == OpKind::MemoryESRDI;
    let copies = match i.mnemonic() {
        Stosb | Stosw | Stosd | Stosq => false,
        Movsb | Movsw | Movsd | Movsq => true,
        _ => return None,
    };
    let open = !copies || !matches!(i.memory_segment(), Register::FS | Register::GS);
    (plain && open).then(|| (copies, i.memory_size().size().trailing_zeros() as usize))
}

/// A bit test of memory whose number stands in a register.
fn is_far_bit(i: &Instruction) -> bool {
    i.op0_kind() == OpKind::Memory && i.op1_kind() == OpKind::Register && i.memory_size().size() >= 4
}

impl Builder {
    pub(super) fn system(&mut self, source: &Source, i: &Instruction) {
        use Mnemonic::*;
        self.t1 = None;
        self.forget_state();
        match i.mnemonic() {
            Rdtsc | Rdtscp => self.counter(source, i.mnemonic() == Rdtscp),
            Cpuid => self.identify(),
            Pause => self.pause(),
            Pushfq => self.push_flags(source, i),
            Cld | Std => {
                self.spare_flags();
                self.code.system_flag(DF, i.mnemonic() == Std);
            }
            Mov => match read_control(i) {
                Some(place) => self.fetch_word(i, place, true),
                None => self.read_selector(source, i),
            },
            Stosb | Stosw | Stosd | Stosq | Movsb | Movsw | Movsd | Movsq => self.string(i),
            Bt | Bts | Btr | Btc => self.far_bit(source, i),
            Cli => self.code.store_imm8(IFLAG, 0),
            Sti => self.allow_interrupts(),
            Rdfsbase | Rdgsbase => {
                let from = SEG_BASE + 8 * i32::from(i.mnemonic() == Rdgsbase);
                self.fetch_word(i, from, i.op0_register().size() == 8);
            }
            Wrfsbase | Wrgsbase => self.set_base(i),
            Swapgs => {
                self.code.load(T0, SEG_BASE + 8);
                self.code.load(T1, OTHER_GS);
                self.code.store(SEG_BASE + 8, T1);
                self.code.store(OTHER_GS, T0);
            }
            Stac | Clac => {
                self.spare_flags();
                let on = i.mnemonic() == Stac;
                self.code.system_flag(AC, on);
                self.code.store_imm8(VIEW_CHANGED, 1);
                let view = if on { View::SupervisorAc } else { View::Supervisor };
                self.code.load(T1, VIEWS_AT + 8 * view as i32);
                self.code.set_gs(T1);
            }
            Syscall | Sysretq => self.change_ring(i),
            _ => self.code.raw(&[0x0f, 0x0b]),
        }
    }

    /// RDTSC and RDTSCP by the machine's line (see [`crate::time`]), as [`crate::time::Time::read`] does.
    fn counter(&mut self, source: &Source, with_id: bool) {
        const RDX: u8 = 2;
        let live = self.keeps_flags(source);
        let again = self.code.label();
        let code = &mut self.code;
        code.bind(again);
        code.load(T1, COUNTER);
        code.load_at(T1, T1, 0);
        code.raw(&[0x0f, 0x31]); // rdtsc
        code.raw(&[0xc4, 0xe3, 0xfb, 0xf0, 0xd2, 32]); // rorx rdx, rdx, 32
        code.raw(&[0x48, 0x8d, 0x14, 0x10]); // lea rdx, [rax + rdx]
        code.load_at(RAX, T1, 0);
        code.raw(&[0x48, 0x8d, 0x14, 0x10]);
        code.raw(&[0xc4, 0xc2, 0xfb, 0xf6, 0x53, 8]); // mulx rdx, rax, [r11 + 8]
        code.load_at(RAX, T1, 16);
        code.raw(&[0x48, 0x8d, 0x14, 0x10]);
        // Another line may have been laid meanwhile, or this one anew.
        code.load(T0, COUNTER);
        code.load_at(T0, T0, 0);
        if live {
            code.not(T1);
            code.lea_sum(T1, T0, T1, 1);
            code.mov(T0, RCX);
            code.mov(RCX, T1);
            self.rcx_test(again);
        } else {
            code.op_registers(0x39, T1, T0);
            code.jcc(5, again);
        }
        let code = &mut self.code;
        code.load(RAX, COUNTER_OFFSET);
        code.raw(&[0x48, 0x8d, 0x14, 0x10]);
        code.mov32(RAX, RDX);
        code.raw(&[0xc4, 0xe3, 0xfb, 0xf0, 0xd2, 32]);
        code.mov32(RDX, RDX);
        if with_id {
            code.load32(RCX, COUNTER_ID);
        }
    }

    /// CPUID: the interpreter answers what was not asked lately.
    fn identify(&mut self) {
        self.want_flags(true);
        let site = self.leave_site();
        self.code.store_imm32(SITE, site);
        let after = self.code.label();
        self.code.lea_label(T0, after);
        self.code.constant(T1, crate::system_stubs::cpuid());
        self.code.raw(&[0x41, 0xff, 0xe3]); // jmp r11
        self.code.bind(after);
        self.goes_on(site);
    }

    /// PAUSE. After many, the interpreter executes one: the guest waits, perhaps for a vCPU that
    /// the host does not run.
    fn pause(&mut self) {
        let site = self.leave_site();
        let slow = self.code.label();
        self.code.raw(&[0xf3, 0x90]);
        self.code.load(T1, PAUSES);
        self.code.lea(T1, T1, 1);
        self.code.store(PAUSES, T1);
        self.code.pext(T1, T1, MASK_NEXT);
        self.zero_test(T1, slow);
        let restore = self.restores();
        self.cold.push(Cold::Leave { label: slow, site, reason: reason::SLOW, restore });
        self.goes_on(site);
    }

    /// A word of the state page to the 32- or 64-bit register that is operand 0.
    fn fetch_word(&mut self, i: &Instruction, from: i32, wide: bool) {
        let n = i.op0_register().full_register().number() as u8;
        let to = if n == T0 || n == T1 { T0 } else { n };
        if wide {
            self.code.load(to, from)
        } else {
            self.code.load32(to, from)
        }
        if to == T0 {
            self.code.store(slot(n), T0);
        }
    }

    /// MOV of a selector to a register or to memory.
    fn read_selector(&mut self, source: &Source, i: &Instruction) {
        let from = selector(i.op1_register().number());
        if i.op0_kind() == OpKind::Memory {
            let reached = self.reach(source, i, Where::Operand, (2, 1, true));
            let at = self.free_t1(&reached);
            self.code.load32(T1, from);
            self.accesses(&reached);
            let place = MemoryOperand::with_base_displ(Register::R10, i64::from(at.disp));
            let stored = Instruction::with2(Op::Mov_rm16_r16, place, Register::R11W);
            if !stored.is_ok_and(|host| self.code.encode(&host)) {
                self.code.raw(&[0x0f, 0x0b]);
            }
            return self.accessed(&reached);
        }
        if i.op0_register().size() >= 4 {
            return self.fetch_word(i, from, false);
        }
        let n = i.op0_register().full_register().number() as u8;
        self.code.load32(T0, from);
        self.code.raw(&[0x66, 0x44 | n >> 3, 0x89, 0xd0 | n & 7]); // mov r16, r10w
    }

    /// WRFSBASE, WRGSBASE: an address that is none is the interpreter's.
    fn set_base(&mut self, i: &Instruction) {
        let to = SEG_BASE + 8 * i32::from(i.mnemonic() == Mnemonic::Wrgsbase);
        let n = i.op0_register().full_register().number() as u8;
        let from = if n == T0 || n == T1 { T0 } else { n };
        if from == T0 {
            self.code.load(T0, slot(n));
        }
        if i.op0_register().size() == 4 {
            self.code.mov32(T0, from);
            return self.code.store(to, T0);
        }
        self.spare_flags();
        let site = self.leave_site();
        let slow = self.code.label();
        let restore = self.restores();
        self.code.mov(T1, from);
        self.code.raw(&[0x49, 0xc1, 0xe3, 16]); // shl r11, 16
        self.code.raw(&[0x49, 0xc1, 0xfb, 16]); // sar r11, 16
        self.code.op_registers(0x39, T1, from);
        self.code.jcc(5, slow);
        self.cold.push(Cold::Leave { label: slow, site, reason: reason::SLOW, restore });
        self.code.store(to, from);
        self.goes_on(site);
    }

    /// REP STOS, REP MOVS: see `crate::string_stubs`.
    fn string(&mut self, i: &Instruction) {
        let Some((copies, size)) = string(i).filter(|_| self.form == Form::Flat) else {
            return self.interpret(true);
        };
        self.want_flags(true);
        let retry = self.here();
        let to = self.site(Kind::Access { write: true, table: true });
        self.site_mut(to).retry = retry;
        let from = if copies { self.site(Kind::Access { write: false, table: false }) } else { to };
        self.site_mut(from).retry = retry;
        self.code.store_imm32(SITE, from);
        self.code.store_imm32(OTHER_SITE, to);
        let after = self.code.label();
        self.code.lea_label(T0, after);
        self.code.constant(T1, if copies { string_stubs::copy(size) } else { string_stubs::store(size) });
        self.code.raw(&[0x41, 0xff, 0xe3]); // jmp r11
        self.code.bind(after);
        self.goes_on(from);
        self.goes_on(to);
    }

    /// A bit test whose bit may lie beyond the operand: the address takes the upper bits.
    fn far_bit(&mut self, source: &Source, i: &Instruction) {
        let size = i.memory_size().size() as u32;
        let wide = size == 8;
        let n = i.op1_register().full_register().number() as u8;
        self.spare_flags();
        let retry = self.here();
        self.address(source, i);
        let to_scratch = |code: &mut Code| {
            if n == T0 || n == T1 { code.load(T1, slot(n)) } else { code.mov(T1, n) }
        };
        to_scratch(&mut self.code);
        if wide {
            self.code.raw(&[0x49, 0xc1, 0xfb, 6]); // sar r11, 6
            self.code.raw(&[0x4f, 0x8d, 0x14, 0xda]); // lea r10, [r10 + r11 * 8]
        } else {
            self.code.raw(&[0x4d, 0x63, 0xdb]); // movsxd r11, r11d
            self.code.raw(&[0x49, 0xc1, 0xfb, 5]);
            self.code.raw(&[0x4f, 0x8d, 0x14, 0x9a]); // lea r10, [r10 + r11 * 4]
        }
        let write = i.mnemonic() != Mnemonic::Bt;
        let site = self.look_up(Sought::plainly(MADE), (size, 1), write, retry, false);
        self.code.lea_sum(T0, T0, T1, -1);
        to_scratch(&mut self.code);
        self.code.group32(4, T1, 8 * size as i32 - 1);
        self.flags_for_operation();
        let at = Address { base: Some(T0), index: None, scale: 0, disp: 0 };
        let mut host = host_form(i, &at);
        host.set_op1_register(if wide { Register::R11 } else { Register::R11D });
        self.may_fault(site);
        if !self.code.encode(&host) {
            self.code.raw(&[0x0f, 0x0b]);
        }
        self.goes_on(site);
    }

    /// PUSHFQ: RF and VM read as zero.
    fn push_flags(&mut self, source: &Source, i: &Instruction) {
        self.spare_flags();
        let reached = self.reach(source, i, Where::At(RSP, -8), (8, 1, true));
        if self.flags == FlagsAt::Host {
            self.code.save_flags();
        }
        self.flags = FlagsAt::Saved;
        let at = self.free_t1(&reached);
        let code = &mut self.code;
        code.store(RAX_SAVED, RAX);
        code.load32(RAX, SAVED_FLAGS);
        code.mov32(T1, RAX);
        code.raw(&[0x41, 0xc1, 0xeb, 8]); // shr r11d, 8
        code.group32(4, T1, 0xd5);
        code.group32(4, RAX, 1);
        code.raw(&[0xc1, 0xe0, 11]); // shl eax, 11
        code.raw(&[0x41, 0x09, 0xc3]); // or r11d, eax
        code.op_gs(0x0b, T1, SYSTEM); // or r11, [SYSTEM]
        code.load8(RAX, IFLAG);
        code.raw(&[0xc1, 0xe0, 8]); // shl eax, 8
        code.raw(&[0x41, 0x09, 0xc3]);
        code.load(RAX, RAX_SAVED);
        self.accesses(&reached);
        self.code.store_at(T0, at.disp, T1);
        self.code.lea(RSP, RSP, -8);
        self.accessed(&reached);
    }

    /// STI. Where an interrupt may be pending, or the instruction behind is not sure to be
    /// executed before the next look at interrupts, the interpreter keeps the shadow.
    fn allow_interrupts(&mut self) {
        let next = self.steps.get(self.k + 1).map(|step| step.class);
        let shadowed = next.is_some_and(|class| {
            !matches!(class, Class::InterpretEnd | Class::Interpret | Class::SystemEnd | Class::Enter)
        });
        if !shadowed {
            return self.interpret(true);
        }
        let site = self.leave_site();
        let slow = self.code.label();
        if self.steps[self.k].live_before == 0 {
            self.flags = FlagsAt::Host;
            self.code.cmp8_gs(HINT, 0);
            self.code.jcc(5, slow);
        } else {
            self.code.load8(T1, HINT);
            self.zero_test(T1, slow);
        }
        let restore = self.restores();
        self.cold.push(Cold::Leave { label: slow, site, reason: reason::SLOW, restore });
        self.code.store_imm8(IFLAG, 2);
        self.goes_on(site);
    }

    /// SYSCALL, SYSRET: their stub leaves to the interpreter what is not plain.
    fn change_ring(&mut self, i: &Instruction) {
        self.want_flags(true);
        let site = self.leave_site();
        self.code.store_imm32(SITE, site);
        if i.mnemonic() == Mnemonic::Syscall {
            self.code.constant(T0, i.next_ip());
            self.code.jmp_gs(STUB_SYSCALL);
        } else {
            self.code.jmp_gs(STUB_SYSRET);
        }
    }

    fn leave_site(&mut self) -> u32 {
        self.site(Kind::Interpret)
    }
}
