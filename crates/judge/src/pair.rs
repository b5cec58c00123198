//! Any bytes as guest code in two engines: the states and memories they lead to are compared.
//!
//! The guest is small: 256 KiB of RAM with page tables of its own (4 KiB pages; some read-only,
//! some not present, some for the supervisor only, one of a device), an IDT whose handlers halt
//! or skip, the code in pages that may be written. Programs run by [`cpu::Vcpu::run_exactly`],
//! several times from the same start, so that warm code is translated.

use crate::lockstep::differences;
use crate::rig::{NullApic, xcr0};
use base::clock::{Clock, Kind};
use base::{Mutex, Result, bail};
use cpu::state::{Segment, TableRegister, seg};
use cpu::{CpuBus, CpuState, Engine, Exit, Link, Vcpu, VcpuConfig, Window};
use memory::{AddressSpace, Handler, RamBlock, SpaceKind};
use std::sync::Arc;

const SIZE: u64 = 0x4_0000;
const TABLES: u64 = 0x1000;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
const TSS: u64 = 0xa000;
const HANDLERS: u64 = 0xb000;
const KERNEL_STACK: u64 = 0xd000;
/// Where the program stands: three pages, writable and executable.
const CODE: u64 = 0x1_0000;
const CODE_PAGES: u64 = 3;
/// Data from here on; see [`page_flags`].
const DATA: u64 = 0x2_0000;
/// A page of a device.
const DEVICE: u64 = 0x8_0000;
/// Instructions of a run.
const LENGTH: u64 = 400;
/// Runs of each program.
const TIMES: usize = 4;
/// CF PF AF ZF SF OF.
const ARITHMETIC: u64 = 0x8d5;

/// A device whose answers depend on all that was asked of it.
#[derive(Default)]
struct Device(Mutex<(u64, u64)>);

impl Handler for Device {
    fn read(&self, at: u64, size: u8) -> u64 {
        let mut state = self.0.lock();
        state.0 = (state.0 ^ at << 8 ^ u64::from(size)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        state.1 += 1;
        state.0 >> 7 & (u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8))))
    }
    fn write(&self, at: u64, size: u8, value: u64) {
        let mut state = self.0.lock();
        state.0 = (state.0 ^ value ^ at << 16 ^ u64::from(size)).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        state.1 += 1;
    }
}

struct Side {
    name: &'static str,
    vcpu: Box<dyn Vcpu>,
    ram: RamBlock,
    device: Arc<Device>,
    _memory: Arc<AddressSpace>,
}

impl Side {
    fn new(engine: &dyn Engine) -> Result<Side> {
        let ram = RamBlock::new("pair", SIZE)?;
        let memory = AddressSpace::new(SpaceKind::Memory);
        let device = Arc::new(Device::default());
        memory.edit(|edit| {
            edit.ram(ram, 0);
            edit.io("device", DEVICE, 4096, device.clone());
        });
        let bus = CpuBus {
            memory: memory.clone(),
            ports: AddressSpace::new(SpaceKind::Port),
            apic: Arc::new(NullApic),
            link: Arc::new(Link::new()),
            clock: Clock::new(Kind::Manual),
            tsc_khz: 1_000_000,
        };
        let offer = cpu::models::Offer {
            engine: engine.name().to_owned(),
            features: cpu::models::software_features(cpu_host::host_supports),
            host: None,
            phys_bits: 40,
        };
        let model = cpu::models::Request::parse("max,-rdrand,-rdseed")?.resolve(&offer)?;
        let cpuid = Arc::new(model.table(&cpu::models::Topology::default(), 0));
        let vcpu = engine.vcpu(VcpuConfig { index: 0, bus, cpuid })?;
        Ok(Side { name: engine.name(), vcpu, ram, device, _memory: memory })
    }

    /// Puts all memory back to `image`, telling only of what changed.
    fn restore(&self, image: &[u8]) {
        let mut page = [0; 4096];
        for (number, wanted) in image.chunks_exact(4096).enumerate() {
            let at = number as u64 * 4096;
            self.ram.read(at, &mut page);
            if page[..] != *wanted {
                let first = page.iter().zip(wanted).position(|(a, b)| a != b).unwrap_or(0);
                let last = page.iter().zip(wanted).rposition(|(a, b)| a != b).unwrap_or(4095);
                self.ram.write(at + first as u64, &wanted[first..=last]);
            }
        }
        *self.device.0.lock() = (1, 0);
    }

    fn run(&mut self, state: &CpuState, image: &[u8]) -> Result<(Window, CpuState)> {
        self.restore(image);
        self.vcpu.load(state)?;
        let window = self.vcpu.run_exactly(LENGTH)?;
        Ok((window, self.vcpu.save()))
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        self.ram.read(0, &mut bytes);
        bytes
    }
}

/// Two engines with a guest each.
pub struct Pair {
    sides: [Side; 2],
    /// Memory without a program.
    image: Vec<u8>,
}

impl Pair {
    pub fn new(engines: [&dyn Engine; 2]) -> Result<Pair> {
        let sides = [Side::new(engines[0])?, Side::new(engines[1])?];
        build(sides[0].ram);
        let image = sides[0].memory();
        Ok(Pair { sides, image })
    }

    /// Runs `input` (a byte of choices, sixteen for registers, then code) in both engines.
    /// `Some`: how they differ.
    pub fn run(&mut self, input: &[u8]) -> Result<Option<String>> {
        let Some((&choices, rest)) = input.split_first() else { return Ok(None) };
        let (registers, code) = rest.split_at(rest.len().min(16));
        let mut image = self.image.clone();
        let start = CODE + if choices & 0x10 != 0 { 0xff0 } else { 0x100 };
        let room = (CODE + CODE_PAGES * 4096 - start) as usize;
        let code = &code[..code.len().min(room)];
        image[start as usize..start as usize + code.len()].copy_from_slice(code);
        let state = start_state(choices, registers, start);
        for time in 0..TIMES {
            let [a, b] = &mut self.sides;
            let (x, y) = (a.run(&state, &image)?, b.run(&state, &image)?);
            if let Some(text) = compare(a, b, x, y)? {
                let choice = format!("choices {choices:#x}, run {time}, code {code:02x?} at {start:#x}\n");
                return Ok(Some(choice + &text));
            }
        }
        Ok(None)
    }
}

fn compare(a: &Side, b: &Side, x: (Window, CpuState), y: (Window, CpuState)) -> Result<Option<String>> {
    for (side, (window, _)) in [(a, &x), (b, &y)] {
        if let Some(Exit::Broken(why)) = &window.exit {
            bail!("the {} broke: {why}", side.name);
        }
    }
    let mut text = String::new();
    if x.0 != y.0 {
        text.push_str(&format!("  {:?} against {:?}\n", x.0, y.0));
    }
    if x.1 != y.1 {
        for (what, p, q) in differences(&x.1, &y.1).iter().take(16) {
            text.push_str(&format!("  {what}: {p} against {q}\n"));
        }
    }
    let (p, q) = (*a.device.0.lock(), *b.device.0.lock());
    if p != q {
        text.push_str(&format!("  the device was asked differently: {p:x?} against {q:x?}\n"));
    }
    let (p, q) = (a.memory(), b.memory());
    if let Some(at) = p.iter().zip(&q).position(|(a, b)| a != b) {
        let end = (at + 16).min(p.len());
        text.push_str(&format!("  memory at {at:#x}: {:02x?} against {:02x?}\n", &p[at..end], &q[at..end]));
    }
    Ok((!text.is_empty()).then_some(text))
}

/// How a page is mapped; `None`: it is not.
fn page_flags(page: u64) -> Option<u64> {
    const ALL: u64 = 7;
    match page << 12 {
        // How often a decoder reads code is its own affair.
        at if at == DEVICE => Some(ALL | 0x10 | 1 << 63),
        at if at >= SIZE => None,
        at if (CODE..CODE + CODE_PAGES * 4096).contains(&at) => Some(ALL),
        // What a change of these without a flush does is up to the engine.
        at if (TABLES..TABLES + 0x4000).contains(&at) => Some(1),
        at if at < CODE => Some(3),
        at if at < DATA => Some(3),
        // Data: two pages of everything, then read-only, none, supervisor, not executable.
        at => match (at - DATA) >> 12 & 7 {
            2 => Some(5),
            3 => None,
            4 => Some(3),
            5 => Some(ALL | 1 << 63),
            _ => Some(ALL),
        },
    }
}

fn build(ram: RamBlock) {
    let put = |at: u64, value: u64| ram.write(at, &value.to_le_bytes());
    put(TABLES, TABLES + 0x1000 | 0x27);
    put(TABLES + 0x1000, TABLES + 0x2000 | 0x27);
    put(TABLES + 0x2000, TABLES + 0x3000 | 0x27);
    for page in 0..512 {
        if let Some(flags) = page_flags(page) {
            // Accessed and dirty: engines may set them ahead of each other's ways.
            put(TABLES + 0x3000 + 8 * page, page << 12 | flags | 0x60);
        }
    }
    put(GDT + 0x08, 0x00af_9b00_0000_ffff);
    put(GDT + 0x10, 0x00cf_9300_0000_ffff);
    put(GDT + 0x18, 0x00cf_fb00_0000_ffff);
    put(GDT + 0x20, 0x00cf_f300_0000_ffff);
    put(GDT + 0x28, 0x00af_fb00_0000_ffff);
    put(TSS + 4, KERNEL_STACK);
    for vector in 0..256 {
        let handler = HANDLERS + 16 * vector;
        put(IDT + 16 * vector, handler & 0xffff | 8 << 16 | 0xee00 << 32 | (handler >> 16 & 0xffff) << 48);
        // #DB and #BP return; the rest halts.
        let code: &[u8] = if matches!(vector, 1 | 3) { &[0x48, 0xcf] } else { &[0xf4] };
        ram.write(handler, code);
    }
    for at in (DATA..SIZE).step_by(8) {
        put(at, (at ^ at << 20).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (at >> 3 & 31));
    }
}

fn start_state(choices: u8, registers: &[u8], rip: u64) -> CpuState {
    let mut state = CpuState::reset(true, 0);
    let user = choices & 1 != 0;
    let ring = if user { 3 } else { 0 };
    let segment = |selector: u16, access| Segment { selector, base: 0, limit: u32::MAX, access };
    let data = if user { segment(0x23, 0xc0f3) } else { segment(0x10, 0xc093) };
    state.seg = [data; 6];
    state.seg[seg::CS] = match (user, choices & 2 != 0) {
        (true, true) => segment(0x1b, 0xc0fb),
        (true, false) => segment(0x2b, 0xa0fb),
        _ => segment(0x08, 0xa09b),
    };
    debug_assert_eq!(state.cpl(), ring);
    state.tr = Segment { selector: 0x30, base: TSS, limit: 0x67, access: 0x8b };
    state.gdtr = TableRegister { base: GDT, limit: 0x2f };
    state.idtr = TableRegister { base: IDT, limit: 0xfff };
    state.cr0 = 0x8001_0033;
    state.cr3 = TABLES;
    state.cr4 = 0x20 | 0x80 | 0x200 | 0x400 | 0x1_0000 | 0x4_0000;
    state.efer = 0xd01;
    state.xcr0 = xcr0();
    state.rip = rip;
    state.gpr[4] = DATA + 0x6800;
    for (gpr, &byte) in state.gpr.iter_mut().zip(registers) {
        let low = u64::from(byte & 31);
        *gpr = match byte >> 5 {
            0 => low,
            1 => DATA + 0x100 * low,
            2 => DATA + 0x1000 * (1 + (low & 7)) - (low >> 3),
            3 => low.wrapping_neg(),
            4 => DEVICE + 8 * low,
            5 => CODE + 0xf0 + low,
            6 => 1 << (2 * low),
            _ => *gpr,
        };
    }
    state.rflags =
        2 | if choices & 4 != 0 { ARITHMETIC } else { 0 } | if choices & 8 != 0 { 0x400 } else { 0 };
    state
}
