//! Bare guests in memory, on the translator with everything translated at once.

mod links;
mod loops;
mod near;
mod refused;
mod returns;
mod stack;
mod strides;
mod strings;
mod system;

use crate::shared::Shared;
use crate::{Options, Translator};
use cpu::cpuid::CpuidTable;
use cpu::{CpuState, Engine, Exit, Link, Vcpu, VcpuConfig};
use cpu_interpreter::testing::{identity_tables, long_mode_state, quiet_bus};
use memory::{AddressSpace, RamBlock, SpaceKind};
use std::sync::Arc;

pub const CODE: u64 = 0x10000;
pub const STACK: u64 = 0x80000;

pub struct Guest {
    pub memory: Arc<AddressSpace>,
    pub vcpu: Box<dyn Vcpu>,
    pub link: Arc<Link>,
    engine: Option<Translator>,
}

impl Guest {
    /// `code` at [`CODE`], in 64-bit mode at privilege `cpl`, on pages of 2 MiB.
    pub fn new(cpl: u8, code: &[u8]) -> Guest {
        Guest::with(&long_mode_state(CODE, STACK, cpl), code)
    }

    pub fn with(state: &CpuState, code: &[u8]) -> Guest {
        let options = Options {
            cache_size: 8 << 20,
            warm: 1,
            measure_loops: true,
            always_near: true,
            ..Options::default()
        };
        let engine = Translator::with(options).unwrap();
        let guest = Guest::on(&engine, state, code);
        Guest { engine: Some(engine), ..guest }
    }

    /// The same on the interpreter.
    pub fn interpreted(state: &CpuState, code: &[u8]) -> Guest {
        Guest::on(&cpu_interpreter::Interpreter::new().unwrap(), state, code)
    }

    fn on(engine: &dyn Engine, state: &CpuState, code: &[u8]) -> Guest {
        let memory = AddressSpace::new(SpaceKind::Memory);
        let ram = RamBlock::new("test", 16 << 20).unwrap();
        memory.edit(|edit| edit.ram(ram, 0));
        identity_tables(&memory);
        memory.write(state.rip, code);
        let bus = quiet_bus(memory.clone());
        let link = bus.link.clone();
        let config = VcpuConfig { index: 0, bus, cpuid: Arc::new(CpuidTable::default()) };
        let mut vcpu = engine.vcpu(config).unwrap();
        vcpu.load(state).unwrap();
        Guest { memory, vcpu, link, engine: None }
    }

    /// Runs to HLT.
    pub fn run(&mut self) -> CpuState {
        assert_eq!(self.vcpu.run(), Exit::Halted);
        self.vcpu.save()
    }

    /// Runs to HLT once more, from `rip`.
    pub fn again(&mut self, rip: u64) -> CpuState {
        let mut state = self.vcpu.save();
        state.rip = rip;
        state.activity = cpu::state::Activity::Running;
        self.vcpu.load(&state).unwrap();
        self.run()
    }

    /// What the engine's vCPUs share.
    pub fn shared(&self) -> Arc<Shared> {
        self.engine.as_ref().unwrap().0.clone()
    }

    /// Pages whose blocks compare their bytes.
    pub fn unwatched(&self) -> usize {
        self.engine.as_ref().unwrap().0.unwatched_pages()
    }

    /// Blocks that were translated.
    pub fn translated(&self) -> u64 {
        self.engine.as_ref().unwrap().0.cache().statistics.translated
    }
}

#[test]
fn code_at_the_end_of_a_page_leaves_the_next_one_unaccessed() {
    // inc eax; cmp eax,100; jne -7; hlt: the last 8 bytes of a page.
    let code = [0xff, 0xc0, 0x83, 0xf8, 100, 0x75, 0xf9, 0xf4];
    let start = 0x20_0ff8;
    let mut guest = Guest::with(&long_mode_state(start, STACK, 0), &code);
    let (directory_entry, table) = (0x3008, 0x9000);
    guest.memory.store(directory_entry, 8, table | 0x27);
    for page in 0..512 {
        guest.memory.store(table + 8 * page, 8, 0x20_0000 + 4096 * page | 7);
    }
    assert_eq!(guest.run().gpr[0], 100);
    assert!(guest.translated() > 0);
    assert_eq!(guest.memory.load(table, 8) & 0x20, 0x20);
    assert_eq!(guest.memory.load(table + 8, 8) & 0x20, 0);
}

#[test]
fn the_segment_of_an_x87_operand_is_noted_wherever_the_operand_is() {
    // fcmovu st0,st2; fiadd dword [rbx]; hlt: the address is what FDP was already.
    let mut guest = Guest::with(&long_mode_state(CODE, STACK, 0), &[0xda, 0xda, 0xda, 0x03, 0xf4]);
    for round in 0..4 {
        let mut state = long_mode_state(CODE, STACK, 0);
        state.seg[3].selector = 0x18;
        guest.vcpu.load(&state).unwrap();
        let end = guest.run().fpu;
        assert_eq!((end.fdp, end.fds, end.fcs), (0, 0x18, 8), "round {round}");
    }
    assert!(guest.translated() > 0);
}
