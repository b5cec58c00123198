//! System instructions that need not leave translated code. Their state stands in the state
//! page (`layout::State`: system flags, segment bases, the views' GS bases) and is brought
//! to the interpreter's at the next exit (`crate::system`).

use super::access::{Where, slot};
use super::emit::host_form;
use super::{Builder, Class, Cold, FlagsAt, Source, key};
use crate::asm::*;
use crate::cache::Kind;
use crate::layout::*;
use cpu_interpreter::View;
use iced_x86::{Code as Op, Instruction, Mnemonic, OpKind, Register};

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
        Mov => reads_selector(i),
        Bt | Bts | Btr | Btc => is_far_bit(i),
        Cli | Sti => inner,
        Rdfsbase | Rdgsbase => source.key & key::BASES != 0,
        Swapgs | Stac | Clac if inner => return Some(Class::SystemEnd),
        Syscall if !inner => return Some(Class::Enter),
        Sysretq if inner => return Some(Class::Enter),
        _ => false,
    };
    inline.then_some(Class::System)
}

/// MOV to a 32- or 64-bit register from CS or SS.
fn reads_selector(i: &Instruction) -> bool {
    i.op0_kind() == OpKind::Register
        && i.op0_register().size() >= 4
        && i.op1_kind() == OpKind::Register
        && matches!(i.op1_register(), Register::CS | Register::SS)
}

/// A bit test of memory whose number stands in a register.
fn is_far_bit(i: &Instruction) -> bool {
    i.op0_kind() == OpKind::Memory && i.op1_kind() == OpKind::Register && i.memory_size().size() >= 4
}

impl Builder {
    pub(super) fn system(&mut self, source: &Source, i: &Instruction) {
        use Mnemonic::*;
        self.t1 = None;
        self.x87_ready = false;
        match i.mnemonic() {
            Rdtsc | Rdtscp => self.counter(i.mnemonic() == Rdtscp),
            Cpuid => self.identify(),
            Pause => self.pause(),
            Pushfq => self.push_flags(source, i),
            Cld | Std => {
                self.spare_flags();
                self.code.system_flag(DF, i.mnemonic() == Std);
            }
            Mov => self.read_selector(i),
            Bt | Bts | Btr | Btc => self.far_bit(source, i),
            Cli => self.code.store_imm8(IFLAG, 0),
            Sti => self.allow_interrupts(),
            Rdfsbase | Rdgsbase => {
                let n = i.op0_register().full_register().number() as u8;
                let from = SEG_BASE + 8 * i32::from(i.mnemonic() == Rdgsbase);
                let wide = i.op0_register().size() == 8;
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

    fn counter(&mut self, with_id: bool) {
        const RDX: u8 = 2;
        let code = &mut self.code;
        code.raw(&[0x0f, 0x31]); // rdtsc
        code.load(T1, COUNTER);
        code.load_at(T1, T1, 0);
        code.raw(&[0xc4, 0xe3, 0xfb, 0xf0, 0xd2, 32]); // rorx rdx, rdx, 32
        code.raw(&[0x48, 0x8d, 0x14, 0x10]); // lea rdx, [rax + rdx]
        code.load_at(RAX, T1, 0);
        code.raw(&[0x48, 0x8d, 0x14, 0x10]);
        code.raw(&[0xc4, 0xc2, 0xfb, 0xf6, 0x53, 8]); // mulx rdx, rax, [r11 + 8]
        code.load_at(RAX, T1, 16);
        code.raw(&[0x48, 0x8d, 0x14, 0x10]);
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

    /// MOV of CS or SS to a register.
    fn read_selector(&mut self, i: &Instruction) {
        let n = i.op0_register().full_register().number() as u8;
        let to = if n == T0 || n == T1 { T0 } else { n };
        self.code.load32(to, if i.op1_register() == Register::CS { SELECTORS } else { SELECTORS + 4 });
        if to == T0 {
            self.code.store(slot(n), T0);
        }
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
        let site = self.look_up((size, 1), write, retry, false);
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
