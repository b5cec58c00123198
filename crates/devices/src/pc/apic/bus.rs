use super::local::Lapic;
use crate::pc::ioapic::IoApic;
use crate::pc::owed::OwedTicks;
use crate::pc::pic::Pic;
use arc_swap::ArcSwap;
use base::Mutex;
use device::{IrqLine, MsiMessage, MsiSink};
use memory::Handler;
use std::sync::Arc;

/// How an interrupt is delivered (bits 10:8 of ICR, LVT, redirection entry, MSI data).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    Fixed,
    LowestPriority,
    Smi,
    Nmi,
    Init,
    StartUp,
    ExtInt,
}

impl DeliveryMode {
    /// From the three-bit field; 3 is reserved.
    pub fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            2 => DeliveryMode::Smi,
            4 => DeliveryMode::Nmi,
            5 => DeliveryMode::Init,
            6 => DeliveryMode::StartUp,
            7 => DeliveryMode::ExtInt,
            _ => return None,
        })
    }
}

/// One message on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    pub mode: DeliveryMode,
    pub vector: u8,
    /// Level triggered: its EOI is told to the I/O APICs.
    pub level: bool,
    pub destination: u32,
    pub logical: bool,
}

impl Interrupt {
    /// The message a redirection entry or an MSI describes: `destination` of eight bits,
    /// 0xff meaning all.
    pub fn from_narrow(mode: DeliveryMode, vector: u8, level: bool, destination: u8, logical: bool) -> Self {
        let destination = if destination == 0xff { u32::MAX } else { destination.into() };
        Interrupt { mode, vector, level, destination, logical }
    }
}

/// All local APICs of a machine, and the way to them. Processors may be added at any time.
pub struct ApicBus {
    lapics: ArcSwap<Vec<Arc<Lapic>>>,
    ioapics: ArcSwap<Vec<Arc<IoApic>>>,
    editing: Mutex<()>,
    pic: Option<Arc<Pic>>,
    ticks: Arc<OwedTicks>,
}

impl ApicBus {
    /// `pic` is what ExtINT acknowledges; its output is connected to LINT0 of every APIC.
    pub fn new(pic: Option<Arc<Pic>>) -> Arc<Self> {
        let bus = Arc::new(ApicBus {
            lapics: ArcSwap::default(),
            ioapics: ArcSwap::default(),
            editing: Mutex::new(()),
            pic: pic.clone(),
            ticks: Arc::default(),
        });
        if let Some(pic) = pic {
            let weak = Arc::downgrade(&bus);
            pic.connect(IrqLine::new(move |level| {
                if let Some(bus) = weak.upgrade() {
                    bus.lapics.load().iter().for_each(|lapic| lapic.set_lint(0, level));
                }
            }));
        }
        bus
    }

    pub fn ticks(&self) -> &Arc<OwedTicks> {
        &self.ticks
    }

    pub fn pic(&self) -> Option<&Arc<Pic>> {
        self.pic.as_ref()
    }

    pub fn add(&self, lapic: Arc<Lapic>) {
        let _one_editor = self.editing.lock();
        let mut lapics = self.lapics.load().to_vec();
        lapics.push(lapic);
        self.lapics.store(Arc::new(lapics));
    }

    /// Takes an unplugged processor's APIC off the bus.
    pub fn remove(&self, initial_id: u32) {
        let _one_editor = self.editing.lock();
        let mut lapics = self.lapics.load().to_vec();
        lapics.retain(|lapic| lapic.initial_id() != initial_id);
        self.lapics.store(Arc::new(lapics));
    }

    /// Lets an I/O APIC hear of ends of interrupt.
    pub fn add_ioapic(&self, ioapic: Arc<IoApic>) {
        let _one_editor = self.editing.lock();
        let mut ioapics = self.ioapics.load().to_vec();
        ioapics.push(ioapic);
        self.ioapics.store(Arc::new(ioapics));
    }

    pub fn lapics(&self) -> Arc<Vec<Arc<Lapic>>> {
        self.lapics.load_full()
    }

    /// Delivers; returns how many APICs took it.
    pub fn deliver(&self, interrupt: Interrupt) -> usize {
        let lapics = self.lapics.load();
        let to = |lapic: &Lapic| lapic.is_addressed(interrupt.destination, interrupt.logical);
        if interrupt.mode == DeliveryMode::LowestPriority {
            return usize::from(self.arbitrate(interrupt, &lapics));
        }
        if !interrupt.logical
            && let Some(lapic) = lapics.get(interrupt.destination as usize)
            && lapic.initial_id() == interrupt.destination
            && to(lapic)
        {
            return usize::from(lapic.accept(interrupt));
        }
        lapics.iter().filter(|lapic| to(lapic) && lapic.accept(interrupt)).count()
    }

    /// Delivers to every APIC except the one with this initial id.
    pub(super) fn deliver_to_others(&self, interrupt: Interrupt, except: Option<u32>) {
        for lapic in self.lapics.load().iter().filter(|lapic| Some(lapic.initial_id()) != except) {
            lapic.accept(interrupt);
        }
    }

    /// The addressed APIC of lowest processor priority takes it; equals share by vector.
    fn arbitrate(&self, interrupt: Interrupt, lapics: &[Arc<Lapic>]) -> bool {
        let able: Vec<_> = lapics
            .iter()
            .filter(|lapic| {
                lapic.is_addressed(interrupt.destination, interrupt.logical) && lapic.is_software_enabled()
            })
            .map(|lapic| (lapic.processor_priority() >> 4, lapic))
            .collect();
        let Some(lowest) = able.iter().map(|&(priority, _)| priority).min() else {
            return false;
        };
        let equals: Vec<_> = able.into_iter().filter(|&(priority, _)| priority == lowest).collect();
        equals[usize::from(interrupt.vector) % equals.len()].1.accept(interrupt)
    }

    /// A level-triggered interrupt was ended by a processor.
    pub(super) fn broadcast_eoi(&self, vector: u8) {
        for ioapic in self.ioapics.load().iter() {
            ioapic.end_of_interrupt(vector);
        }
    }

    /// The non-maskable interrupt button: LINT1 of every local APIC.
    pub fn pulse_nmi(&self) {
        for lapic in self.lapics.load().iter() {
            lapic.set_lint(1, true);
            lapic.set_lint(1, false);
        }
    }

    /// Whether some processor has yet to take this vector.
    pub fn is_requested(&self, vector: u8) -> bool {
        self.lapics.load().iter().any(|lapic| lapic.is_requested(vector))
    }

    /// What answers writes of bus masters to 0xfee00000-0xfeefffff.
    pub fn msi_window(self: &Arc<Self>) -> Arc<dyn Handler> {
        Arc::new(MsiWindow(self.clone()))
    }
}

impl MsiSink for ApicBus {
    /// SDM vol. 3A §11.11; messages outside the interrupt address range are dropped.
    fn send(&self, message: MsiMessage) {
        if message.address >> 20 != 0xfee {
            return;
        }
        let (address, data) = (message.address as u32, message.data);
        let Some(mut mode) = DeliveryMode::from_bits(data >> 8) else {
            return;
        };
        let logical = address & 4 != 0;
        // Redirection hint: one of the addressed processors.
        if address & 8 != 0 && logical && mode == DeliveryMode::Fixed {
            mode = DeliveryMode::LowestPriority;
        }
        let level = data & 1 << 15 != 0;
        let destination = (address >> 12) as u8;
        self.deliver(Interrupt::from_narrow(mode, data as u8, level, destination, logical));
    }
}

struct MsiWindow(Arc<ApicBus>);

impl Handler for MsiWindow {
    fn read(&self, _: u64, _: u8) -> u64 {
        0
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        if size == 4 {
            self.0.send(MsiMessage { address: 0xfee0_0000 + offset, data: value as u32 });
        }
    }
}
