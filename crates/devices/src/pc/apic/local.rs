use super::bus::{ApicBus, DeliveryMode, Interrupt};
use super::register::{SVR_ENABLE, apic_base, esr, lvt};
use super::timer::ApicTimer;
use crate::pc::owed::OwedTicks;
use crate::pc::pic::Pic;
use crate::pc::range::board_model;
use base::clock::Clock;
use cpu::{Link, LocalApic, Request};
use device::{BusKind, Device, Model, ResetKind};
use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

pub static MODEL: Model = board_model("apic", "Local APIC", BusKind::System, "apic-common");

/// What one processor's local APIC is made from.
#[derive(Clone)]
pub struct LapicConfig {
    /// The initial APIC id.
    pub id: u32,
    pub bootstrap: bool,
    /// CPUID offers x2APIC: IA32_APIC_BASE may switch to it.
    pub x2apic: bool,
    /// For the TSC-deadline timer, as in `CpuBus`.
    pub tsc_khz: u64,
}

/// A 256-bit register: one bit a vector.
#[derive(Default)]
pub(super) struct Vectors([AtomicU32; 8]);

impl Vectors {
    /// Sets; returns whether it was clear.
    fn set(&self, vector: u8) -> bool {
        let bit = 1 << (vector & 31);
        self.0[usize::from(vector >> 5)].fetch_or(bit, Ordering::SeqCst) & bit == 0
    }
    fn clear(&self, vector: u8) -> bool {
        let bit = 1 << (vector & 31);
        self.0[usize::from(vector >> 5)].fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }
    fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)].load(Ordering::Acquire) & 1 << (vector & 31) != 0
    }
    fn highest(&self) -> Option<u8> {
        (0..8u8).rev().find_map(|word| {
            let bits = self.word(word);
            (bits != 0).then(|| word << 5 | (31 - bits.leading_zeros()) as u8)
        })
    }
    pub(super) fn word(&self, index: u8) -> u32 {
        self.0[usize::from(index & 7)].load(Ordering::Acquire)
    }
    fn clear_all(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::SeqCst));
    }
}

/// The local APIC of one processor.
pub struct Lapic {
    pub(super) config: LapicConfig,
    pub(super) bus: Weak<ApicBus>,
    ticks: Arc<OwedTicks>,
    pic: Option<Arc<Pic>>,
    pub(super) link: Arc<Link>,
    pub(super) base: AtomicU64,
    /// The xAPIC id register's id.
    pub(super) xapic_id: AtomicU32,
    pub(super) tpr: AtomicU32,
    pub(super) ldr: AtomicU32,
    pub(super) dfr: AtomicU32,
    pub(super) svr: AtomicU32,
    pub(super) irr: Vectors,
    pub(super) isr: Vectors,
    pub(super) tmr: Vectors,
    pub(super) lvt: [AtomicU32; lvt::COUNT],
    pub(super) icr: AtomicU64,
    /// Errors as latched for the guest, and since.
    pub(super) esr: AtomicU32,
    pub(super) errors: AtomicU32,
    lint: [AtomicBool; 2],
    /// An ExtINT message from an I/O APIC or a processor waits.
    extint: AtomicBool,
    pub(super) timer: ApicTimer,
}

impl Lapic {
    /// A local APIC in its reset state, on the bus from now on.
    pub fn new(config: LapicConfig, bus: &Arc<ApicBus>, link: Arc<Link>, clock: &Clock) -> Arc<Self> {
        let lapic = Arc::new_cyclic(|weak: &Weak<Lapic>| Lapic {
            bus: Arc::downgrade(bus),
            ticks: bus.ticks().clone(),
            pic: bus.pic().cloned(),
            link,
            base: AtomicU64::new(0),
            xapic_id: AtomicU32::new(0),
            tpr: AtomicU32::new(0),
            ldr: AtomicU32::new(0),
            dfr: AtomicU32::new(0),
            svr: AtomicU32::new(0),
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            lvt: Default::default(),
            icr: AtomicU64::new(0),
            esr: AtomicU32::new(0),
            errors: AtomicU32::new(0),
            lint: Default::default(),
            extint: AtomicBool::new(false),
            timer: ApicTimer::new(weak.clone(), clock, config.tsc_khz),
            config,
        });
        lapic.power_up();
        bus.add(lapic.clone());
        lapic
    }

    pub fn initial_id(&self) -> u32 {
        self.config.id
    }

    fn power_up(&self) {
        let bootstrap = if self.config.bootstrap { apic_base::BOOTSTRAP } else { 0 };
        self.base.store(0xfee0_0000 | apic_base::ENABLE | bootstrap, Ordering::SeqCst);
        self.init();
    }

    /// What INIT does to the registers (SDM vol. 3A §11.4.7.3).
    pub(super) fn init(&self) {
        let set = |cell: &AtomicU32, value| cell.store(value, Ordering::SeqCst);
        self.timer.reset();
        set(&self.xapic_id, self.config.id);
        set(&self.tpr, 0);
        set(&self.ldr, 0);
        set(&self.dfr, u32::MAX);
        set(&self.svr, 0xff);
        set(&self.esr, 0);
        set(&self.errors, 0);
        self.lvt.iter().for_each(|entry| set(entry, lvt::MASKED));
        if self.config.bootstrap {
            // Virtual wire to the 8259s, as a PC's board straps it.
            set(&self.lvt[lvt::LINT0], 0x700);
        }
        for vectors in [&self.irr, &self.isr, &self.tmr] {
            vectors.clear_all();
        }
        self.icr.store(0, Ordering::SeqCst);
        self.extint.store(false, Ordering::SeqCst);
    }

    pub(super) fn is_x2apic(&self) -> bool {
        self.base.load(Ordering::Acquire) & apic_base::X2APIC != 0
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.base.load(Ordering::Acquire) & apic_base::ENABLE != 0
    }

    pub(super) fn is_software_enabled(&self) -> bool {
        self.is_enabled() && self.svr.load(Ordering::Acquire) & SVR_ENABLE != 0
    }

    pub(super) fn lvt(&self, index: usize) -> u32 {
        self.lvt[index].load(Ordering::Acquire)
    }

    /// The logical id: computed in x2APIC mode (SDM vol. 3A §11.12.10.2).
    pub(super) fn logical_id(&self) -> u32 {
        if self.is_x2apic() {
            (self.config.id >> 4) << 16 | 1 << (self.config.id & 15)
        } else {
            self.ldr.load(Ordering::Acquire)
        }
    }

    pub(super) fn is_addressed(&self, destination: u32, logical: bool) -> bool {
        if destination == u32::MAX {
            return true;
        }
        match (logical, self.is_x2apic()) {
            (false, true) => destination == self.config.id,
            (false, false) => destination == self.xapic_id.load(Ordering::Acquire),
            (true, true) => {
                let id = self.logical_id();
                id >> 16 == destination >> 16 && id & destination & 0xffff != 0
            }
            (true, false) => {
                let id = self.logical_id() >> 24;
                if destination > 0xff {
                    false
                } else if self.dfr.load(Ordering::Acquire) >> 28 == 0xf {
                    id & destination != 0
                } else {
                    id >> 4 == destination >> 4 && id & destination & 0xf != 0
                }
            }
        }
    }

    /// Takes a message from the bus; returns whether it was for an enabled APIC.
    pub(super) fn accept(&self, interrupt: Interrupt) -> bool {
        match interrupt.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                let enabled = self.is_software_enabled();
                if enabled {
                    self.request(interrupt.vector, interrupt.level);
                }
                return enabled;
            }
            DeliveryMode::Smi => self.link.post(Request::SMI),
            DeliveryMode::Nmi => self.link.post(Request::NMI),
            DeliveryMode::Init => {
                self.init();
                self.link.post(Request::INIT);
            }
            DeliveryMode::StartUp => self.link.post_sipi(interrupt.vector),
            DeliveryMode::ExtInt => {
                self.extint.store(true, Ordering::SeqCst);
                self.link.post(Request::INTERRUPT);
            }
        }
        true
    }

    /// Puts a vector into the request register.
    pub(super) fn request(&self, vector: u8, level: bool) {
        if vector < 16 {
            self.error(esr::RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        if level {
            self.tmr.set(vector);
        } else {
            self.tmr.clear(vector);
        }
        if self.irr.set(vector) {
            self.link.post(Request::INTERRUPT);
        }
    }

    pub(super) fn is_requested(&self, vector: u8) -> bool {
        self.irr.has(vector)
    }

    pub(super) fn error(&self, bits: u32) {
        self.errors.fetch_or(bits, Ordering::SeqCst);
        let entry = self.lvt(lvt::ERROR);
        // An error vector that is itself illegal is not reported again.
        if entry & 0xff >= 16 {
            self.deliver_local(lvt::ERROR);
        }
    }

    /// Delivers a local source through its LVT entry.
    pub(super) fn deliver_local(&self, index: usize) {
        let entry = self.lvt(index);
        if entry & lvt::MASKED != 0 || !self.is_enabled() {
            return;
        }
        let mode = if index == lvt::TIMER || index == lvt::ERROR { 0 } else { entry >> 8 };
        let level = entry & lvt::LEVEL != 0 && index == lvt::LINT0;
        match DeliveryMode::from_bits(mode) {
            Some(DeliveryMode::Fixed) => {
                if level {
                    self.lvt[index].fetch_or(lvt::REMOTE_IRR, Ordering::SeqCst);
                }
                self.request(entry as u8, level);
            }
            Some(DeliveryMode::Nmi) => self.link.post(Request::NMI),
            Some(DeliveryMode::Smi) => self.link.post(Request::SMI),
            Some(DeliveryMode::ExtInt) => self.link.post(Request::INTERRUPT),
            Some(DeliveryMode::Init) => {
                self.init();
                self.link.post(Request::INIT);
            }
            _ => {}
        }
    }

    /// Drives local interrupt pin 0 or 1.
    pub fn set_lint(&self, pin: usize, level: bool) {
        let Some(cell) = self.lint.get(pin) else { return };
        let was = cell.swap(level, Ordering::SeqCst);
        if level && !was {
            if pin == 0 && !self.is_enabled() {
                // The pin is INTR then.
                if self.config.bootstrap {
                    self.link.post(Request::INTERRUPT);
                }
            } else if pin == 1 && !self.is_enabled() {
                self.link.post(Request::NMI);
            } else {
                self.deliver_local(lvt::LINT0 + pin);
            }
        }
    }

    /// A changed LVT entry may let a waiting level through.
    pub(super) fn lvt_changed(&self, index: usize) {
        if index == lvt::LINT0 && self.pic_interrupt() {
            self.link.post(Request::INTERRUPT);
        }
    }

    fn takes_pic(&self) -> bool {
        if !self.is_enabled() {
            return self.config.bootstrap;
        }
        self.lvt(lvt::LINT0) & (lvt::MASKED | 0x700) == 0x700 || self.extint.load(Ordering::Acquire)
    }

    fn pic_interrupt(&self) -> bool {
        self.pic.as_ref().is_some_and(|pic| pic.intr()) && self.takes_pic()
    }

    /// PPR: the higher of task priority and the class in service.
    pub(super) fn processor_priority(&self) -> u8 {
        let task = self.tpr.load(Ordering::Acquire) as u8;
        let serving = self.isr.highest().unwrap_or(0);
        if task >> 4 >= serving >> 4 { task } else { serving & 0xf0 }
    }

    fn deliverable(&self) -> Option<u8> {
        if !self.is_enabled() {
            return None;
        }
        let vector = self.irr.highest()?;
        (vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// Wakes the own vCPU if a priority change has made something deliverable.
    pub(super) fn recheck(&self) {
        if self.deliverable().is_some() {
            self.link.post(Request::INTERRUPT);
        }
    }

    pub(super) fn end_of_interrupt(&self) {
        let Some(vector) = self.isr.highest() else { return };
        self.isr.clear(vector);
        if self.tmr.has(vector) {
            let entry = self.lvt(lvt::LINT0);
            if entry & lvt::REMOTE_IRR != 0 && entry as u8 == vector {
                self.lvt[lvt::LINT0].fetch_and(!lvt::REMOTE_IRR, Ordering::SeqCst);
                if self.lint[0].load(Ordering::Acquire) {
                    self.deliver_local(lvt::LINT0);
                }
            }
            if let Some(bus) = self.bus.upgrade() {
                bus.broadcast_eoi(vector);
            }
        }
        self.recheck();
    }
}

impl LocalApic for Lapic {
    fn has_interrupt(&self) -> bool {
        self.deliverable().is_some() || self.pic_interrupt()
    }

    fn acknowledge(&self) -> Option<u8> {
        if let Some(vector) = self.deliverable() {
            self.isr.set(vector);
            self.irr.clear(vector);
            self.ticks.taken();
            return Some(vector);
        }
        if self.pic_interrupt() {
            self.extint.store(false, Ordering::SeqCst);
            let vector = self.pic.as_ref().map(|pic| pic.acknowledge());
            self.ticks.taken();
            return vector;
        }
        None
    }

    fn cr8(&self) -> u8 {
        (self.tpr.load(Ordering::Acquire) >> 4) as u8 & 0xf
    }

    fn set_cr8(&self, value: u8) {
        self.tpr.store(u32::from(value & 0xf) << 4, Ordering::Release);
        self.recheck();
    }

    fn base_msr(&self) -> u64 {
        self.base.load(Ordering::Acquire)
    }

    fn read_msr(&self, index: u32) -> Option<u64> {
        self.msr(index)
    }

    fn write_msr(&self, index: u32, value: u64) -> bool {
        self.set_msr(index, value).is_some()
    }

    fn read_mmio(&self, offset: u64, size: u8) -> u64 {
        self.mmio(offset, size)
    }

    fn write_mmio(&self, offset: u64, size: u8, value: u64) {
        self.set_mmio(offset, size, value);
    }

    fn id(&self) -> u32 {
        self.config.id
    }

    fn is_bootstrap(&self) -> bool {
        self.config.bootstrap
    }

    fn set_tsc_offset(&self, offset: u64) {
        self.timer.set_tsc_offset(self, offset);
    }
}

impl Device for Lapic {
    fn model(&self) -> &'static Model {
        &MODEL
    }

    fn reset(&self, _: ResetKind) {
        self.power_up();
    }

    fn info(&self, item: &str) -> Option<String> {
        (item == "lapic").then(|| self.describe())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
