//! Small guests over a dummy APIC. Skipped, with a message, where there is no KVM.

use crate::KvmEngine;
use base::clock::{Clock, Kind};
use cpu::cpuid::{CpuidTable, Leaf};
use cpu::engine::DebugPlan;
use cpu::state::{Activity, Segment, TableRegister, gpr, seg};
use cpu::{CpuBus, CpuState, Engine, Exit, Link, LocalApic, Request, Vcpu, VcpuConfig};
use memory::{AddressSpace, Handler, RamBlock, SpaceKind, Target, Watch};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Apic {
    vectors: Mutex<VecDeque<u8>>,
    priority: AtomicU8,
    msrs: Mutex<Vec<(u32, u64)>>,
}

impl LocalApic for Apic {
    fn has_interrupt(&self) -> bool {
        !self.vectors.lock().unwrap().is_empty()
    }
    fn acknowledge(&self) -> Option<u8> {
        self.vectors.lock().unwrap().pop_front()
    }
    fn cr8(&self) -> u8 {
        self.priority.load(Ordering::SeqCst)
    }
    fn set_cr8(&self, value: u8) {
        self.priority.store(value, Ordering::SeqCst);
    }
    fn base_msr(&self) -> u64 {
        0xfee0_0900
    }
    fn read_msr(&self, index: u32) -> Option<u64> {
        match index {
            0x1b => Some(0xfee0_0900),
            0x802 => Some(0x1234_5678),
            _ => None,
        }
    }
    fn write_msr(&self, index: u32, value: u64) -> bool {
        self.msrs.lock().unwrap().push((index, value));
        index != 0x803
    }
    fn read_mmio(&self, offset: u64, _size: u8) -> u64 {
        offset
    }
    fn write_mmio(&self, _offset: u64, _size: u8, _value: u64) {}
    fn id(&self) -> u32 {
        0
    }
    fn is_bootstrap(&self) -> bool {
        true
    }
}

/// Records port writes; reads give a counter.
#[derive(Default)]
struct Ports(Mutex<Vec<(u64, u8, u64)>>);

impl Handler for Ports {
    fn read(&self, offset: u64, size: u8) -> u64 {
        let mut log = self.0.lock().unwrap();
        log.push((offset, size, u64::MAX));
        0x1111_1111 * log.len() as u64 & if size == 4 { 0xffff_ffff } else { (1 << (8 * size)) - 1 }
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        self.0.lock().unwrap().push((offset, size, value));
    }
}

struct Guest {
    engine: KvmEngine,
    vcpu: Box<dyn Vcpu>,
    ram: RamBlock,
    memory: Arc<AddressSpace>,
    ports: Arc<Ports>,
    apic: Arc<Apic>,
    link: Arc<Link>,
    clock: Clock,
    bus: CpuBus,
}

fn model() -> CpuidTable {
    // A plain 64-bit CPU: family 6, FPU TSC MSR PAE CX8 APIC SEP PGE CMOV PAT FXSR SSE SSE2.
    let leaf = |eax, ebx, ecx, edx| Leaf { eax, ebx, ecx, edx };
    let edx =
        1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 13 | 1 << 15 | 1 << 16 | 7 << 24;
    CpuidTable {
        leaves: vec![
            (0, None, leaf(1, 0x756e_6547, 0x6c65_746e, 0x4965_6e69)),
            (1, None, leaf(0x663, 0, 1 << 21 | 1 << 31, edx)),
            (0x8000_0000, None, leaf(0x8000_0008, 0, 0, 0)),
            (0x8000_0001, None, leaf(0, 0, 1, edx & 0x183_f3ff | 1 << 11 | 1 << 20 | 1 << 29)),
            (0x8000_0008, None, leaf(0x3028, 0, 0, 0)),
        ],
    }
}

/// 1 MiB of RAM with `code` at 1000h, where the vCPU starts in real mode.
fn guest(code: &[u8]) -> Option<Guest> {
    if let Err(why) = KvmEngine::check() {
        eprintln!("skipped: {why}");
        return None;
    }
    let memory = AddressSpace::new(SpaceKind::Memory);
    let space = AddressSpace::new(SpaceKind::Port);
    let ram = RamBlock::new("ram", 1 << 20).unwrap();
    memory.edit(|edit| edit.ram(ram, 0));
    let ports = Arc::new(Ports::default());
    space.edit(|edit| edit.io("test", 0x100, 0x100, ports.clone()));
    ram.write(0x1000, code);
    let (apic, link, clock) = (Arc::new(Apic::default()), Arc::new(Link::new()), Clock::new(Kind::Virtual));
    clock.start();
    let engine = KvmEngine::open().unwrap();
    let tsc_khz = engine.tsc_khz().unwrap();
    let bus = CpuBus {
        memory: memory.clone(),
        ports: space,
        apic: apic.clone(),
        link: link.clone(),
        clock: clock.clone(),
        tsc_khz,
    };
    let config = VcpuConfig { index: 0, bus: bus.clone(), cpuid: Arc::new(model()) };
    let mut vcpu = engine.vcpu(config).unwrap();
    vcpu.load(&real_mode()).unwrap();
    Some(Guest { engine, vcpu, ram, memory, ports, apic, link, clock, bus })
}

fn real_mode() -> CpuState {
    let mut state = CpuState::reset(true, 0x663);
    state.seg[seg::CS] = Segment::real_mode(0, 0x9b);
    state.rip = 0x1000;
    state.gpr[gpr::RSP] = 0x8000;
    state
}

impl Guest {
    /// Runs to HLT (or WAIT fails the test).
    fn run_to_halt(&mut self) -> CpuState {
        self.watchdog(Duration::from_secs(20));
        assert_eq!(self.vcpu.run(), Exit::Halted);
        self.vcpu.save()
    }

    /// Interrupts the guest after `limit`, so that a test cannot hang.
    fn watchdog(&self, limit: Duration) {
        let link = self.link.clone();
        std::thread::spawn(move || {
            std::thread::sleep(limit);
            link.post(Request::EXIT);
        });
    }

    fn log(&self) -> Vec<(u64, u8, u64)> {
        std::mem::take(&mut *self.ports.0.lock().unwrap())
    }
}

#[test]
fn reset_state_is_kept() {
    let Some(mut guest) = guest(&[]) else { return };
    let state = CpuState::reset(true, 0x663);
    guest.vcpu.load(&state).unwrap();
    let got = guest.vcpu.save();
    let expected = CpuState { msr: got.msr.clone(), xcr0: got.xcr0, ..state };
    assert_eq!(got, expected);
}

#[test]
fn ports_in_all_sizes_and_strings() {
    #[rustfmt::skip]
    let code = [
        0xba, 0x02, 0x01,             // mov dx, 102h
        0xb0, 0x5a, 0xee,             // mov al, 5ah; out dx, al
        0xb8, 0x34, 0x12, 0xef,       // mov ax, 1234h; out dx, ax
        0x66, 0xed,                   // in eax, dx
        0xbe, 0x00, 0x20, 0xb9, 3, 0, // mov si, 2000h; mov cx, 3
        0xf3, 0x6f,                   // rep outsw
        0xbf, 0x00, 0x30, 0xb9, 2, 0, // mov di, 3000h; mov cx, 2
        0xf3, 0x6c,                   // rep insb
        0xf4,                         // hlt
    ];
    let Some(mut guest) = guest(&code) else { return };
    guest.ram.write(0x2000, &[1, 2, 3, 4, 5, 6]);
    let state = guest.run_to_halt();
    let read = u64::MAX;
    let expected = [
        (2, 1, 0x5a),
        (2, 2, 0x1234),
        (2, 4, read),
        (2, 2, 0x201),
        (2, 2, 0x403),
        (2, 2, 0x605),
        (2, 1, read),
        (2, 1, read),
    ];
    assert_eq!(guest.log(), expected);
    assert_eq!(state.gpr[gpr::RAX], 0x3333_3333);
    let mut got = [0; 2];
    guest.ram.read(0x3000, &mut got);
    assert_eq!(got, [0x77, 0x88]);
    assert_eq!((state.activity, state.rip), (Activity::Halted, 0x1000 + code.len() as u64));
}

#[test]
fn memory_devices_and_rom() {
    #[rustfmt::skip]
    let code = [
        0xb8, 0x00, 0xc0, 0x8e, 0xd8, // mov ax, c000h; mov ds, ax
        0xc6, 0x06, 0x08, 0x00, 0x77, // mov byte [8], 77h
        0xa1, 0x10, 0x00,             // mov ax, [10h]
        0x8a, 0x1e, 0x00, 0x10,       // mov bl, [1000h]
        0xc6, 0x06, 0x00, 0x10, 0x99, // mov byte [1000h], 99h
        0x8a, 0x3e, 0x00, 0x10,       // mov bh, [1000h]
        0xf4,
    ];
    let Some(mut guest) = guest(&code) else { return };
    let rom = RamBlock::new("rom", 0x1000).unwrap();
    rom.write(0, &[0x42]);
    let device = Arc::new(Ports::default());
    guest.memory.edit(|edit| {
        edit.io("device", 0xc0000, 0x1000, device.clone());
        edit.map("rom", 0xc1000, 0x1000, 1, Target::Rom { block: rom, offset: 0 });
    });
    let state = guest.run_to_halt();
    assert_eq!(*device.0.lock().unwrap(), [(8, 1, 0x77), (0x10, 2, u64::MAX)]);
    assert_eq!(state.gpr[gpr::RAX] as u16, 0x2222);
    assert_eq!(state.gpr[gpr::RBX] as u16, 0x4242);
}

/// Interrupt handlers count at 5000h + 4 * vector.
fn handlers(guest: &Guest, vectors: &[u8]) {
    for (i, &vector) in vectors.iter().enumerate() {
        let at = 0x4000 + 0x10 * i as u16;
        let [low, high] = (0x5000 + 4 * u16::from(vector)).to_le_bytes();
        // inc word [counter]; iret
        guest.ram.write(at.into(), &[0xff, 0x06, low, high, 0xcf]);
        guest.ram.write(4 * u64::from(vector), &[at as u8, (at >> 8) as u8, 0, 0]);
    }
}

#[test]
fn interrupts_wake_and_wait_for_the_window() {
    // sti; again: hlt; jmp again
    let Some(mut guest) = guest(&[0xfb, 0xf4, 0xeb, 0xfd]) else { return };
    handlers(&guest, &[0x20, 0x31]);
    guest.run_to_halt();
    for round in 1..=3u64 {
        guest.apic.vectors.lock().unwrap().extend([0x20, 0x31]);
        guest.link.post(Request::INTERRUPT);
        guest.run_to_halt();
        let count = |vector: u64| guest.memory.load(0x5000 + 4 * vector, 2);
        assert_eq!((count(0x20), count(0x31)), (round, round));
    }
    // With interrupts off nothing is delivered until STI.
    let mut state = real_mode();
    // nop; nop; sti; nop; again: hlt; jmp again
    guest.ram.write(0x1100, &[0x90, 0x90, 0xfb, 0x90, 0xf4, 0xeb, 0xfd]);
    state.rip = 0x1100;
    guest.vcpu.load(&state).unwrap();
    guest.apic.vectors.lock().unwrap().push_back(0x20);
    let state = guest.run_to_halt();
    assert_eq!((state.rip, guest.memory.load(0x5080, 2)), (0x1105, 4));
    // A halted CPU with interrupts off stays halted.
    let mut state = real_mode();
    guest.ram.write(0x1200, &[0xfa, 0xf4]);
    state.rip = 0x1200;
    guest.vcpu.load(&state).unwrap();
    guest.apic.vectors.lock().unwrap().push_back(0x20);
    guest.run_to_halt();
    assert_eq!(guest.vcpu.run(), Exit::Halted);
    assert!(guest.apic.has_interrupt());
}

#[test]
fn nmi_wakes_a_halted_cpu() {
    let Some(mut guest) = guest(&[0xfa, 0xf4, 0xf4]) else { return };
    handlers(&guest, &[2]);
    assert_eq!(guest.run_to_halt().rip, 0x1002);
    guest.link.post(Request::NMI);
    assert_eq!(guest.run_to_halt().rip, 0x1003);
    assert_eq!(guest.memory.load(0x5008, 2), 1);
}

#[test]
fn kick_from_another_thread() {
    // jmp self
    let Some(mut guest) = guest(&[0xeb, 0xfe]) else { return };
    for _ in 0..50 {
        let link = guest.link.clone();
        let kicker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1));
            link.post(Request::EXIT);
        });
        let start = Instant::now();
        assert_eq!(guest.vcpu.run(), Exit::Asked);
        assert!(start.elapsed() < Duration::from_secs(5));
        kicker.join().unwrap();
    }
    // A request that came before is also seen.
    guest.link.post(Request::EXIT);
    assert_eq!(guest.vcpu.run(), Exit::Asked);
    assert_eq!(guest.vcpu.save().rip, 0x1000);
}

#[test]
fn init_and_sipi() {
    let Some(mut guest) = guest(&[0xf4]) else { return };
    guest.run_to_halt();
    guest.link.post(Request::INIT);
    // The bootstrap processor starts anew at the top of memory, where nothing is.
    guest.watchdog(Duration::from_millis(200));
    guest.vcpu.run();
    let mut state = guest.vcpu.save();
    state.activity = Activity::WaitForSipi;
    guest.vcpu.load(&state).unwrap();
    assert_eq!(guest.vcpu.run(), Exit::Halted);
    guest.ram.write(0x7000, &[0xf4]);
    guest.link.post_sipi(7);
    let state = guest.run_to_halt();
    assert_eq!((state.seg[seg::CS].selector, state.rip), (0x700, 1));
}

#[test]
fn debugging() {
    // mov ax,1; inc ax; inc ax; mov [2000h],ax; hlt
    let Some(mut guest) = guest(&[0xb8, 1, 0, 0x40, 0x40, 0xa3, 0, 0x20, 0xf4]) else { return };
    let step = DebugPlan { single_step: true, ..DebugPlan::default() };
    guest.vcpu.set_debug(&step).unwrap();
    for rip in [0x1003, 0x1004] {
        assert_eq!(guest.vcpu.run(), Exit::Debug);
        assert_eq!(guest.vcpu.save().rip, rip);
    }
    let points =
        DebugPlan { breakpoints: vec![0x1005], watchpoints: vec![(0x2000, 2, true)], ..DebugPlan::default() };
    guest.vcpu.set_debug(&points).unwrap();
    assert_eq!(guest.vcpu.run(), Exit::Debug);
    assert_eq!(guest.vcpu.save().rip, 0x1005);
    if emulates() {
        return;
    }
    guest.vcpu.load(&real_mode()).unwrap();
    let only_watch = DebugPlan { breakpoints: vec![], ..points.clone() };
    guest.vcpu.set_debug(&only_watch).unwrap();
    assert_eq!(guest.vcpu.run(), Exit::Debug);
    assert_eq!((guest.vcpu.save().rip, guest.memory.load(0x2000, 2)), (0x1008, 3));
    guest.vcpu.set_debug(&DebugPlan::default()).unwrap();
    guest.run_to_halt();
    let many = DebugPlan { breakpoints: vec![1, 2, 3, 4, 5], ..DebugPlan::default() };
    assert!(guest.vcpu.set_debug(&many).is_err());
}

/// Long mode, flat, first 2 MiB mapped one to one by tables at 20000h.
fn long_mode(guest: &Guest) -> CpuState {
    let put = |at: u64, value: u64| guest.ram.write(at, &value.to_le_bytes());
    put(0x20000, 0x21003);
    put(0x21000, 0x22003);
    put(0x22000, 0x83);
    let mut state = real_mode();
    state.cr0 = 0x8000_0011;
    state.cr3 = 0x20000;
    state.cr4 = 0x620;
    state.efer = 0x501;
    let flat = |selector, access| Segment { selector, base: 0, limit: u32::MAX, access };
    state.seg = [flat(0x18, 0xc093); 6];
    state.seg[seg::CS] = flat(0x10, 0xa09b);
    state.tr = Segment { selector: 0x20, base: 0, limit: 0x67, access: 0x8b };
    state.idtr = TableRegister { base: 0, limit: 0 };
    state
}

#[test]
fn long_mode_and_msrs() {
    #[rustfmt::skip]
    let code = [
        0xb9, 0x02, 0x08, 0, 0, 0x0f, 0x32,    // mov ecx, 802h; rdmsr
        0x89, 0xc3,                            // mov ebx, eax
        0xb9, 0x30, 0x08, 0, 0, 0x31, 0xd2,    // mov ecx, 830h; xor edx, edx
        0x0f, 0x30,                            // wrmsr
        0x44, 0x0f, 0x20, 0xc0,                // mov rax, cr8
        0xb9, 5, 0, 0, 0, 0x44, 0x0f, 0x22, 0xc1, // mov ecx, 5; mov cr8, rcx
        0xf4,
    ];
    let Some(mut guest) = guest(&code) else { return };
    let mut state = long_mode(&guest);
    state.msr.lstar = 0xffff_8000_0000_1000;
    state.msr.kernel_gs_base = 0x1234_5678_9abc;
    state.msr.star = 0x23_0010_0000_0000;
    state.fpu.ymm[5] = [1, 2, 0, 0];
    state.fpu.st[0][..8].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x80]);
    state.fpu.st[0][8..10].copy_from_slice(&[0xff, 0x3f]);
    state.fpu.ftw = 1;
    state.tsc_offset = 1 << 40;
    guest.vcpu.load(&state).unwrap();
    let back = guest.vcpu.save();
    let msr = cpu::state::Msrs {
        lstar: state.msr.lstar,
        kernel_gs_base: state.msr.kernel_gs_base,
        star: state.msr.star,
        ..back.msr.clone()
    };
    assert_eq!(back, CpuState { msr, xcr0: back.xcr0, ..state.clone() });
    assert_eq!(guest.vcpu.translate(0x1234), Some(0x1234));
    assert_eq!(guest.vcpu.translate(0x40_0000), None);
    let after = guest.run_to_halt();
    assert_eq!(after.gpr[gpr::RBX], 0x1234_5678);
    assert_eq!(*guest.apic.msrs.lock().unwrap(), [(0x830, 0x1234_5678)]);
    assert_eq!((after.fpu.ymm[5], after.fpu.st[0]), (state.fpu.ymm[5], state.fpu.st[0]));
    assert_eq!(guest.apic.cr8(), 5);
}

#[test]
fn offer_tells_what_the_host_has() {
    if KvmEngine::check().is_err() {
        return;
    }
    let offer = KvmEngine::offer().unwrap();
    for name in ["fpu", "sse2", "lm", "nx", "x2apic", "tsc-deadline", "hypervisor"] {
        assert!(offer.features.contains(name), "{name}");
    }
    for name in ["monitor", "avx512f", "pku", "vmx"] {
        assert!(!offer.features.contains(name) || name == "vmx", "{name}");
    }
    let host = offer.host.unwrap();
    assert_eq!(host.vendor.len(), 12, "{host:?}");
    assert!(offer.phys_bits >= 36);
}

/// KVM without hardware virtualisation (PVM) emulates guests in the kernel, and only their
/// integer instructions.
fn emulates() -> bool {
    let emulates = !KvmEngine::is_complete();
    if emulates {
        eprintln!("skipped: this host's KVM only emulates guests");
    }
    emulates
}

#[test]
fn sse_registers() {
    #[rustfmt::skip]
    let code = [
        0x66, 0x49, 0x0f, 0x6e, 0xc0,          // movq xmm0, r8
        0x66, 0x0f, 0xd4, 0xc0,                // paddq xmm0, xmm0
        0x66, 0x49, 0x0f, 0x7e, 0xc1,          // movq r9, xmm0
        0xf4,
    ];
    let Some(mut guest) = guest(&code) else { return };
    if emulates() {
        return;
    }
    let mut state = long_mode(&guest);
    state.gpr[8] = 0x1111_2222_3333_4444;
    guest.vcpu.load(&state).unwrap();
    let after = guest.run_to_halt();
    assert_eq!(after.gpr[9], 0x2222_4444_6666_8888);
    assert_eq!(after.fpu.ymm[0][0], 0x2222_4444_6666_8888);
}

#[test]
fn unknown_msrs_fault() {
    // mov ecx, 803h; wrmsr (our APIC refuses it); a #GP without IDT is a triple fault
    let Some(mut guest) = guest(&[0xb9, 0x03, 0x08, 0, 0, 0x0f, 0x30, 0xf4]) else { return };
    let state = long_mode(&guest);
    guest.vcpu.load(&state).unwrap();
    guest.watchdog(Duration::from_secs(20));
    assert_eq!(guest.vcpu.run(), Exit::TripleFault);
    assert_eq!(*guest.apic.msrs.lock().unwrap(), [(0x803, 0x663 << 32)]);
}

#[test]
fn triple_fault() {
    // mov rax, [40000000h], which is not mapped, without an IDT
    let Some(mut guest) = guest(&[0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0x40]) else { return };
    let state = long_mode(&guest);
    guest.vcpu.load(&state).unwrap();
    guest.watchdog(Duration::from_secs(20));
    assert_eq!(guest.vcpu.run(), Exit::TripleFault);
    guest.vcpu.load(&CpuState::reset(true, 0x663)).unwrap();
    assert_eq!(guest.vcpu.save().rip, 0xfff0);
}

/// RDTSC of the guest, and the bus's TSC before and after.
fn read_tsc(guest: &mut Guest, offset: u64) -> (u64, u64, u64) {
    // rdtsc; hlt
    guest.ram.write(0x1000, &[0x0f, 0x31, 0xf4]);
    let mut state = real_mode();
    state.tsc_offset = offset;
    guest.vcpu.load(&state).unwrap();
    let before = guest.bus.tsc().wrapping_add(offset);
    let state = guest.run_to_halt();
    let value = state.gpr[gpr::RDX] << 32 | state.gpr[gpr::RAX];
    assert_eq!(state.tsc_offset, offset);
    (before, value, guest.bus.tsc().wrapping_add(offset))
}

#[test]
fn tsc_follows_the_machine_clock() {
    let Some(mut guest) = guest(&[]) else { return };
    if emulates() {
        return; // and cannot move the TSC
    }
    let slack = guest.bus.tsc_khz / 2; // half a millisecond
    for (offset, pause) in [(0, 0), (1 << 45, 0), (0, 300), (5, 20)] {
        guest.clock.stop();
        std::thread::sleep(Duration::from_millis(pause));
        guest.clock.start();
        let (before, value, after) = read_tsc(&mut guest, offset);
        assert!(value + slack >= before && value <= after + slack, "{before} {value} {after}");
    }
    // The guest sets its TSC.
    #[rustfmt::skip]
    guest.ram.write(0x1000, &[
        0x66, 0xb9, 0x10, 0, 0, 0,    // mov ecx, 10h
        0x66, 0x31, 0xd2, 0x66, 0x31, 0xc0, // xor edx, edx; xor eax, eax
        0x0f, 0x30, 0x0f, 0x31, 0xf4, // wrmsr; rdtsc; hlt
    ]);
    guest.vcpu.load(&real_mode()).unwrap();
    let state = guest.run_to_halt();
    let value = state.gpr[gpr::RDX] << 32 | state.gpr[gpr::RAX];
    assert!(value < 100 * guest.bus.tsc_khz, "{value}");
    assert_eq!(state.tsc_offset, state.msr.tsc_adjust);
    assert!(guest.bus.tsc().wrapping_add(state.tsc_offset) < 1000 * guest.bus.tsc_khz);
}

#[test]
fn memory_changes_while_running() {
    // again: mov al, [2000h]; cmp al, 2; jne again; hlt
    let Some(mut guest) = guest(&[0xa0, 0, 0x20, 0x3c, 2, 0x75, 0xf9, 0xf4]) else { return };
    let other = RamBlock::new("other", 0x1000).unwrap();
    other.write(0, &[2]);
    let memory = guest.memory.clone();
    let changer = std::thread::spawn(move || {
        for _ in 0..200 {
            let rom = Target::Rom { block: other, offset: 0 };
            let id = memory.edit(|edit| edit.map("x", 0x80000, 0x1000, 5, rom));
            memory.edit(|edit| edit.unmap(id));
        }
        memory.edit(|edit| edit.map("over", 0x2000, 0x1000, 5, Target::Ram { block: other, offset: 0 }));
    });
    guest.run_to_halt();
    changer.join().unwrap();
}

#[test]
fn dirty_log_marks_watched_pages() {
    // mov byte [6000h], 1; hlt
    let Some(mut guest) = guest(&[0xc6, 0x06, 0x00, 0x60, 1, 0xf4]) else { return };
    for page in 0..256 {
        guest.ram.set_watch(page * 4096, Watch::MIGRATION);
    }
    guest.engine.set_dirty_logging(true).unwrap();
    guest.run_to_halt();
    guest.engine.collect_dirty().unwrap();
    assert_eq!(guest.ram.take_dirty(Watch::MIGRATION, 0) & 1 << 6, 1 << 6);
    assert_eq!(guest.ram.take_dirty(Watch::MIGRATION, 1), 0);
    guest.engine.set_dirty_logging(false).unwrap();
}
