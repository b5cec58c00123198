//! Running cases in an engine: a guest of one address space whose exception handlers halt.

use crate::case::{Case, Outcome, Registers, layout};
use base::clock::Clock;
use base::{Result, bail};
use cpu::state::{Avx512State, FpuState, Segment, TableRegister, seg};
use cpu::xsave;
use cpu::{CpuBus, CpuState, Engine, Exit, Link, LocalApic, Vcpu, VcpuConfig};
use memory::{AddressSpace, RamBlock, SpaceKind};
use std::sync::Arc;

/// Physical layout of the guest.
mod physical {
    pub const TABLES: u64 = 0x10000;
    pub const GDT: u64 = 0x20000;
    pub const IDT: u64 = 0x21000;
    pub const TSS: u64 = 0x22000;
    pub const HANDLERS: u64 = 0x23000;
    pub const STACK: u64 = 0x24000;
    pub const CODE: u64 = 0x30000;
    pub const DATA: u64 = 0x40000;
    pub const READ_ONLY: u64 = 0x42000;
    pub const SIZE: u64 = 0x100000;
}

/// The data pages stand in the other order: an access across their border is not one piece.
fn data_page(i: u64) -> u64 {
    physical::DATA + layout::DATA_SIZE - layout::PAGE - i * layout::PAGE
}

/// Where the guest's own tables stand in linear memory: supervisor pages, physical 0 on.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const STACK_TOP: u64 = KERNEL + physical::STACK + 0xff0;
const KERNEL_CS: u16 = 0x10;
const TSS_SELECTOR: u16 = 0x40;

/// An interrupt controller that never interrupts.
pub struct NullApic;

impl LocalApic for NullApic {
    fn has_interrupt(&self) -> bool {
        false
    }
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn cr8(&self) -> u8 {
        0
    }
    fn set_cr8(&self, _: u8) {}
    fn base_msr(&self) -> u64 {
        0xfee0_0100
    }
    fn read_msr(&self, _: u32) -> Option<u64> {
        None
    }
    fn write_msr(&self, _: u32, _: u64) -> bool {
        false
    }
    fn read_mmio(&self, _: u64, _: u8) -> u64 {
        0
    }
    fn write_mmio(&self, _: u64, _: u8, _: u64) {}
    fn id(&self) -> u32 {
        0
    }
    fn is_bootstrap(&self) -> bool {
        true
    }
}

/// A vCPU of any engine, ready to run cases.
pub struct Rig {
    vcpu: Box<dyn Vcpu>,
    ram: RamBlock,
    start: CpuState,
    template: [u8; layout::DATA_SIZE as usize],
    /// Offset and length of the last case's code.
    dirty: (usize, usize),
    /// How often each case is run; the last time counts.
    times: u32,
    /// The data pages hold the template but for these (offset, length) and what was run.
    _memory: Arc<AddressSpace>,
}

impl Rig {
    /// Each case is run `times` times over, as engines that translate warm code need it.
    pub fn new(
        engine: &dyn Engine,
        times: u32,
        template: &[u8; layout::DATA_SIZE as usize],
        read_only: &[u8; layout::PAGE as usize],
    ) -> Result<Rig> {
        let ram = RamBlock::new("judge", physical::SIZE)?;
        build(ram);
        ram.write(physical::CODE, &[0xcc; layout::CODE_SIZE as usize]);
        ram.write(physical::READ_ONLY, read_only);
        let space = AddressSpace::new(SpaceKind::Memory);
        space.edit(|edit| {
            edit.ram(ram, 0);
        });
        let clock = Clock::new(base::clock::Kind::Virtual);
        let bus = CpuBus {
            memory: space.clone(),
            ports: AddressSpace::new(SpaceKind::Port),
            apic: Arc::new(NullApic),
            link: Arc::new(Link::new()),
            clock,
            tsc_khz: 1_000_000,
        };
        let offer = cpu::models::Offer {
            engine: engine.name().to_owned(),
            features: cpu::models::software_features(cpu_host::host_supports),
            host: None,
            phys_bits: 40,
        };
        let model = cpu::models::Request::parse("max")?.resolve(&offer)?;
        let cpuid = Arc::new(model.table(&cpu::models::Topology::default(), 0));
        let vcpu = engine.vcpu(VcpuConfig { index: 0, bus, cpuid })?;
        Ok(Rig { vcpu, ram, start: start_state(), template: *template, dirty: (0, 0), times, _memory: space })
    }

    pub fn run(&mut self, case: &Case) -> Result<Box<Outcome>> {
        self.place_code(case);
        let mut state = self.start.clone();
        let r = &case.registers;
        state.gpr = r.gpr;
        state.rip = r.rip;
        state.rflags = r.rflags;
        state.fpu = FpuState {
            st: r.st,
            fcw: r.fcw,
            fsw: r.fsw,
            ftw: r.ftw as u8,
            mxcsr: r.mxcsr,
            ymm: std::array::from_fn(|n| std::array::from_fn(|k| r.zmm[n][k])),
            avx512: Avx512State {
                opmask: r.opmask,
                zmm_hi256: std::array::from_fn(|n| std::array::from_fn(|k| r.zmm[n][4 + k])),
                hi16_zmm: std::array::from_fn(|n| r.zmm[16 + n]),
            },
            ..FpuState::default()
        };
        if case.bits == 32 {
            state.seg[seg::CS] =
                Segment { selector: layout::USER_CS32, base: 0, limit: 0xffff_ffff, access: 0xc0fb };
        }
        for _ in 0..self.times.max(1) {
            self.place_data(case);
            self.vcpu.load(&state)?;
            match self.vcpu.run() {
                Exit::Halted => {}
                exit => bail!("the engine stopped with {exit:?}"),
            }
        }
        self.outcome(case)
    }

    fn place_code(&mut self, case: &Case) {
        let (offset, len) = self.dirty;
        self.ram.write(physical::CODE + offset as u64, &[0xcc; crate::case::MAX_CODE][..len]);
        let (offset, bytes) = case.placed();
        self.ram.write(physical::CODE + offset as u64, bytes);
        self.dirty = (offset, bytes.len());
    }

    fn place_data(&self, case: &Case) {
        let mut data = self.template;
        for patch in &case.patches {
            let (at, len) = (patch.offset as usize, patch.len as usize);
            data[at..at + len].copy_from_slice(&patch.bytes[..len]);
        }
        for (page, bytes) in data.chunks_exact(layout::PAGE as usize).enumerate() {
            self.ram.write(data_page(page as u64), bytes);
        }
    }

    fn outcome(&self, case: &Case) -> Result<Box<Outcome>> {
        let state = self.vcpu.save();
        let handler = state.rip.wrapping_sub(KERNEL + physical::HANDLERS + 1);
        if !handler.is_multiple_of(16) || handler / 16 > 255 {
            bail!("the guest halted at {:#x}, not in an exception handler", state.rip);
        }
        let vector = handler / 16;
        let mut outcome = Outcome::empty();
        let mut at = state.gpr[4].wrapping_sub(KERNEL);
        let mut pop = || {
            let mut bytes = [0; 8];
            if at < physical::SIZE - 8 {
                self.ram.read(at, &mut bytes);
            }
            at = at.wrapping_add(8);
            u64::from_le_bytes(bytes)
        };
        outcome.error_code = if matches!(vector, 8 | 10..=14 | 17) { pop() } else { 0 };
        let (rip, cs, rflags, rsp, ss) = (pop(), pop(), pop(), pop(), pop());
        if (cs, ss) != (u64::from(case.code_selector()), u64::from(layout::USER_SS)) {
            bail!("exception {vector} came from CS {cs:#x} and SS {ss:#x}");
        }
        outcome.vector = vector;
        outcome.address = state.cr2;
        let fpu = &state.fpu;
        outcome.registers = Registers {
            gpr: state.gpr,
            rip,
            rflags,
            zmm: vectors(fpu),
            opmask: fpu.avx512.opmask,
            st: fpu.st,
            fcw: fpu.fcw,
            fsw: fpu.fsw,
            ftw: fpu.ftw.into(),
            mxcsr: fpu.mxcsr,
            ..Registers::default()
        };
        outcome.registers.gpr[4] = rsp;
        for (page, bytes) in outcome.memory.chunks_exact_mut(layout::PAGE as usize).enumerate() {
            self.ram.read(data_page(page as u64), bytes);
        }
        Ok(outcome)
    }
}

fn vectors(fpu: &FpuState) -> [[u64; 8]; 32] {
    let low = |n: usize| {
        let (ymm, high) = (&fpu.ymm[n], &fpu.avx512.zmm_hi256[n]);
        std::array::from_fn(|k| if k < 4 { ymm[k] } else { high[k - 4] })
    };
    std::array::from_fn(|n| if n < 16 { low(n) } else { fpu.avx512.hi16_zmm[n - 16] })
}

fn put(ram: RamBlock, at: u64, value: u64) {
    ram.write(at, &value.to_le_bytes());
}

/// Page tables, GDT, IDT, TSS and handlers.
fn build(ram: RamBlock) {
    let table = |i: u64| physical::TABLES + i * layout::PAGE;
    const PRESENT: u64 = 0x21;
    const WRITE: u64 = 0x42;
    const USER: u64 = 4;
    const NO_EXECUTE: u64 = 1 << 63;
    let index = |linear: u64, level: u64| linear >> (12 + 9 * level) & 0x1ff;
    // 0: PML4. 1-3: the user's PDPT, PD and PT. 4-6: the kernel's.
    for (first, linear, extra) in [(1, layout::CODE, USER), (4, KERNEL, 0)] {
        put(ram, table(0) + 8 * index(linear, 3), table(first) | PRESENT | WRITE | extra);
        put(ram, table(first) + 8 * index(linear, 2), table(first + 1) | PRESENT | WRITE | extra);
        let map_table = |at: u64, number: u64| {
            put(ram, table(first + 1) + 8 * index(at, 1), table(number) | PRESENT | WRITE | extra);
        };
        map_table(linear, first + 2);
        if extra != 0 && index(layout::DATA, 1) != index(layout::CODE, 1) {
            map_table(layout::DATA, 7);
        }
    }
    let user = |linear: u64, physical: u64, flags: u64| {
        let number = if index(linear, 1) == index(layout::CODE, 1) { 3 } else { 7 };
        put(ram, table(number) + 8 * index(linear, 0), physical | PRESENT | USER | flags);
    };
    for i in 0..2 {
        user(layout::CODE + i * layout::PAGE, physical::CODE + i * layout::PAGE, 0);
        user(layout::DATA + i * layout::PAGE, data_page(i), WRITE | NO_EXECUTE);
    }
    user(layout::READ_ONLY, physical::READ_ONLY, NO_EXECUTE);
    for page in 0..physical::SIZE / layout::PAGE {
        put(ram, table(6) + 8 * page, page * layout::PAGE | PRESENT | WRITE);
    }
    put(ram, physical::GDT + u64::from(KERNEL_CS), 0x00af_9b00_0000_ffff);
    put(ram, physical::GDT + u64::from(layout::USER_CS32 & !7), 0x00cf_fb00_0000_ffff);
    put(ram, physical::GDT + u64::from(layout::USER_SS & !7), 0x00cf_f300_0000_ffff);
    put(ram, physical::GDT + u64::from(layout::USER_CS & !7), 0x00af_fb00_0000_ffff);
    ram.write(physical::TSS + 4, &STACK_TOP.to_le_bytes());
    // No I/O bitmap.
    ram.write(physical::TSS + 0x66, &0xffffu16.to_le_bytes());
    for vector in 0..256u64 {
        let handler = KERNEL + physical::HANDLERS + 16 * vector;
        let low =
            handler & 0xffff | u64::from(KERNEL_CS) << 16 | 0xee00 << 32 | (handler >> 16 & 0xffff) << 48;
        put(ram, physical::IDT + 16 * vector, low);
        put(ram, physical::IDT + 16 * vector + 8, handler >> 32);
        ram.write(physical::HANDLERS + 16 * vector, &[0xf4]);
    }
}

/// XCR0 as Linux sets it.
pub(crate) fn xcr0() -> u64 {
    xsave::X87 | xsave::SSE | xsave::AVX | if cpu_host::has_avx512() { xsave::AVX512 } else { 0 }
}

fn start_state() -> CpuState {
    let mut state = CpuState::reset(true, 0);
    let code = |selector, access| Segment { selector, base: 0, limit: 0xffff_ffff, access };
    state.seg = [Segment { access: 0, ..Segment::default() }; 6];
    state.seg[seg::CS] = code(layout::USER_CS, 0xa0fb);
    for data in [seg::SS, seg::DS, seg::ES] {
        state.seg[data] = code(layout::USER_SS, 0xc0f3);
    }
    state.ldtr = Segment { access: 0, ..Segment::default() };
    state.tr = Segment { selector: TSS_SELECTOR, base: KERNEL + physical::TSS, limit: 0x67, access: 0x8b };
    state.gdtr = TableRegister { base: KERNEL + physical::GDT, limit: 0x4f };
    state.idtr = TableRegister { base: KERNEL + physical::IDT, limit: 0xfff };
    // PE MP ET NE WP AM PG, as Linux runs.
    state.cr0 = 0x8005_0033;
    state.cr3 = physical::TABLES;
    // PAE PGE OSFXSR OSXMMEXCPT FSGSBASE OSXSAVE.
    state.cr4 = 0x20 | 0x80 | 0x200 | 0x400 | 0x1_0000 | 0x4_0000;
    // SCE LME LMA NXE.
    state.efer = 0xd01;
    state.xcr0 = xcr0();
    state
}
