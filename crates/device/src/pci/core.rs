use super::config::{Bar, Identity, Region, RegionKind, Space, regs};
use super::msi::{MSIX_CONTROL_WRITABLE, Msix, msi_message};
use super::{PciBus, parse_address};
use crate::{Device, MsiSink, Props, Wiring};
use base::{Mutex, Result, bail, fail};
use memory::{AddressSpace, Dma, Handler, RamBlock, Target};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Priority of BARs: below RAM and the board's fixed decodes, which win on real boards too.
const BAR_PRIORITY: i32 = -1;
const EXPRESS_CONFIG: usize = 4096;

/// The part that all PCI functions share: configuration space, BARs, interrupts, bus mastering.
pub struct PciCore {
    name: &'static str,
    bus: Arc<PciBus>,
    at: u8,
    memory: Arc<AddressSpace>,
    ports: Arc<AddressSpace>,
    dma: Dma,
    master: Arc<AtomicBool>,
    sink: Arc<dyn MsiSink>,
    config: Mutex<Space>,
    bars: Mutex<[Option<Bar>; 7]>,
    msix: Mutex<Option<Arc<Msix>>>,
    /// Offset of the MSI capability.
    msi: Mutex<Option<u16>>,
    intx: Mutex<bool>,
    /// Has a place on its bus.
    placed: AtomicBool,
}

impl PciCore {
    /// Reserves the place that `addr` asks for (or the first free slot) and fills the header.
    pub fn new(
        name: &'static str,
        identity: Identity,
        props: &Props,
        wiring: &Wiring<'_>,
    ) -> Result<Arc<Self>> {
        let core = PciCore::reserve(name, identity, props, wiring)?;
        let subsystem = [identity.subsystem.0.to_le_bytes(), identity.subsystem.1.to_le_bytes()].concat();
        core.init(regs::SUBSYSTEM, &subsystem);
        if let Some(file) = props.str("romfile").filter(|file| !file.is_empty())
            && props.u64("rombar") != 0
        {
            core.load_rom(file)?;
        }
        Ok(core)
    }

    /// As [`PciCore::new`] for a PCI-to-PCI bridge (header type 1, PCI-to-PCI bridge 1.2 §3.2):
    /// bus numbers, windows and bridge control are registers without effect of their own.
    pub fn bridge(
        name: &'static str,
        identity: Identity,
        props: &Props,
        wiring: &Wiring<'_>,
    ) -> Result<Arc<Self>> {
        let core = PciCore::reserve(name, identity, props, wiring)?;
        let header = core.get(regs::HEADER_TYPE, 1) as u8;
        core.init(regs::HEADER_TYPE, &[header | 1]);
        // Both prefetchable limits are 64 bits wide.
        core.init(0x24, &[1, 0, 1, 0]);
        core.set_writable(0x18, &[0xff, 0xff, 0xff, 0xff, 0xf0, 0xf0]);
        core.set_clearable(0x1e, &0xf900u16.to_le_bytes());
        core.set_writable(0x20, &[0xf0, 0xff, 0xf0, 0xff, 0xf0, 0xff, 0xf0, 0xff]);
        core.set_writable(0x28, &[0xff; 8]);
        core.set_writable(0x3e, &[0xff, 0x0f]);
        Ok(core)
    }

    fn reserve(
        name: &'static str,
        identity: Identity,
        props: &Props,
        wiring: &Wiring<'_>,
    ) -> Result<Arc<Self>> {
        let bus = wiring.pci_bus()?;
        let wanted = match props.str("addr") {
            Some(text) => Some(
                parse_address(text)
                    .ok_or_else(|| fail!("Property '{name}.addr' doesn't take value '{text}'"))?,
            ),
            None => None,
        };
        if let Some(at) = wanted.filter(|at| wiring.hotplugged && at & 7 != 0)
            && let Some(first) = bus.function(at & !7)
        {
            bail!(
                "PCI: slot {} function 0 already occupied by {}, new func {name} cannot be exposed to guest.",
                at >> 3,
                first.model().name
            );
        }
        let at = bus.reserve(wanted, name)?;
        let services = wiring.services;
        let size = if bus.is_express() { EXPRESS_CONFIG } else { 256 };
        let mut config = Space::new(size);
        fill_header(&mut config, identity, props.bool("multifunction"));
        let core = Arc::new(PciCore {
            name,
            bus,
            at,
            memory: services.memory.clone(),
            ports: services.ports.clone(),
            dma: Dma::new(services.memory.clone(), false).memory_only(),
            master: Arc::new(AtomicBool::new(false)),
            sink: services.msi.clone(),
            config: Mutex::new(config),
            bars: Mutex::new([const { None }; 7]),
            msix: Mutex::new(None),
            msi: Mutex::new(None),
            intx: Mutex::new(false),
            placed: AtomicBool::new(true),
        });
        Ok(core)
    }

    pub fn bus(&self) -> &Arc<PciBus> {
        &self.bus
    }

    /// slot << 3 | function.
    pub fn address(&self) -> u8 {
        self.at
    }

    /// Puts the finished device on its bus.
    pub fn attach(&self, device: Arc<dyn Device>) {
        self.bus.attach(self.at, device);
    }

    /// Guest memory; works while the guest has bus mastering enabled, and reaches memory only.
    pub fn dma(&self) -> Dma {
        self.dma.clone()
    }

    // ---- construction ----

    /// Which of INTA (1) to INTD (4) the function uses.
    pub fn set_interrupt_pin(&self, pin: u8) {
        self.config.lock().init(regs::INTERRUPT_PIN, &[pin]);
    }

    /// A register's value now and after every reset.
    pub fn init(&self, offset: u16, bytes: &[u8]) {
        self.config.lock().init(offset, bytes);
    }

    /// Which bits from `offset` software may write.
    pub fn set_writable(&self, offset: u16, mask: &[u8]) {
        self.config.lock().set_writable(offset, mask);
    }

    /// Which bits from `offset` software clears by writing one.
    pub fn set_clearable(&self, offset: u16, mask: &[u8]) {
        self.config.lock().set_clearable(offset, mask);
    }

    /// Adds a capability with its bytes after the two-byte head; gives its offset.
    pub fn add_capability(&self, id: u8, body: &[u8]) -> Result<u16> {
        self.config.lock().add_capability(id, None, body)
    }

    /// Declares a BAR: `size` is a power of two, at least 4 (I/O) or 16 (memory).
    pub fn add_bar(&self, index: usize, kind: RegionKind, size: u64, target: Target) {
        assert!(size.is_power_of_two() && index <= regs::ROM_INDEX, "a BAR is a power of two");
        self.config.lock().init_bar(index, kind, size);
        let name = match kind {
            RegionKind::Rom => format!("{}.rom", self.name),
            _ => format!("{}-bar{index}", self.name),
        };
        self.bars.lock()[index] = Some(Bar { kind, size, target, name, mapped: None });
    }

    /// [`PciCore::add_bar`] with a handler.
    pub fn add_io_bar(&self, index: usize, kind: RegionKind, size: u64, handler: Arc<dyn Handler>) {
        self.add_bar(index, kind, size, Target::Io { handler, offset: 0 });
    }

    fn load_rom(&self, file: &str) -> Result<()> {
        let bytes = std::fs::read(file).map_err(|_| fail!("failed to find romfile \"{file}\""))?;
        if bytes.is_empty() || bytes.len() > 16 << 20 {
            bail!("romfile \"{file}\" is empty or too large");
        }
        self.set_rom(&bytes)
    }

    /// Gives the function an expansion ROM.
    pub fn set_rom(&self, image: &[u8]) -> Result<()> {
        let size = (image.len().max(2048)).next_power_of_two() as u64;
        let block = RamBlock::new(&format!("{}.rom", self.name), size)?;
        block.write(0, image);
        self.add_bar(regs::ROM_INDEX, RegionKind::Rom, size, Target::Rom { block, offset: 0 });
        Ok(())
    }

    /// Gives the function MSI-X with its table at the start and the pending bits in the
    /// middle of a memory BAR of its own.
    pub fn add_msix(&self, bar: usize, vectors: u16) -> Result<()> {
        if vectors == 0 || vectors > 2048 {
            bail!("{}: invalid number of MSI-X vectors {vectors}", self.name);
        }
        let half = (u64::from(vectors) * 16).next_power_of_two().max(2048);
        let mut body = Vec::new();
        body.extend((vectors - 1).to_le_bytes());
        body.extend((bar as u32).to_le_bytes());
        body.extend((half as u32 | bar as u32).to_le_bytes());
        let at = self.add_capability(0x11, &body)?;
        self.set_writable(at + 2, &MSIX_CONTROL_WRITABLE.to_le_bytes());
        let msix = Arc::new(Msix::new(vectors, (0, half), at, self.sink.clone(), self.master.clone()));
        *self.msix.lock() = Some(msix.clone());
        self.add_io_bar(bar, RegionKind::Memory32, half * 2, msix);
        Ok(())
    }

    /// Gives the function MSI with up to `vectors` (a power of two, at most 32), 64-bit
    /// addresses, without per-vector masks.
    pub fn add_msi(&self, vectors: u8) -> Result<()> {
        let control = 1u16 << 7 | (u16::from(vectors.max(1).ilog2() as u8) << 1);
        let mut body = [0; 12];
        body[..2].copy_from_slice(&control.to_le_bytes());
        let at = self.add_capability(5, &body)?;
        self.set_writable(at + 2, &[0x71, 0, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        *self.msi.lock() = Some(at);
        Ok(())
    }

    /// Adds a PCI Express capability, version 2 (PCI Express base 3.0 §7.8).
    /// `kind`: 0 endpoint, 4 root port, 9 root-complex integrated endpoint.
    pub fn add_express(&self, kind: u8) -> Result<u16> {
        let mut body = [0; 0x3a];
        body[..2].copy_from_slice(&(2 | u16::from(kind) << 4).to_le_bytes());
        // Device capabilities: role-based error reporting.
        body[2..6].copy_from_slice(&(1u32 << 15).to_le_bytes());
        if kind != 9 {
            // Link: 2.5 GT/s, one lane, both as capability and status.
            body[0xa..0xe].copy_from_slice(&0x11u32.to_le_bytes());
            body[0x10..0x12].copy_from_slice(&0x11u16.to_le_bytes());
        }
        let at = self.add_capability(0x10, &body)?;
        self.set_writable(at + 8, &[0x0f, 0]);
        Ok(at)
    }

    /// Adds a power management capability, version 3: D0 and D3hot.
    pub fn add_power_management(&self) -> Result<u16> {
        let at = self.add_capability(1, &[3, 0, 8, 0, 0, 0])?;
        self.set_writable(at + 4, &[3, 0]);
        Ok(at)
    }

    // ---- configuration space ----

    pub fn config_read(&self, offset: u16, size: u8) -> u32 {
        self.config.lock().read(offset, size)
    }

    /// A register as the device sees it (same as a read by software).
    pub fn get(&self, offset: u16, size: u8) -> u32 {
        self.config_read(offset, size)
    }

    /// The device's own change of a register, past the write masks.
    pub fn set(&self, offset: u16, size: u8, value: u32) {
        self.config.lock().set(offset, size, value);
    }

    pub fn config_write(&self, offset: u16, size: u8, value: u32) {
        self.config.lock().write(offset, size, value);
        let touches = |first: u16, len: u16| offset < first + len && offset + u16::from(size) > first;
        if touches(regs::COMMAND, 2) {
            self.command_changed();
        } else if touches(regs::BAR0, 24) || touches(regs::ROM, 4) {
            self.update_mappings();
        }
        let msix = self.msix.lock().clone();
        if let Some(msix) = msix
            && touches(msix.capability + 2, 2)
        {
            msix.set_control(self.config_read(msix.capability + 2, 2) as u16);
            self.drive_intx();
        }
        let msi = *self.msi.lock();
        if let Some(at) = msi
            && touches(at + 2, 2)
        {
            self.drive_intx();
        }
    }

    fn command_changed(&self) {
        let master = self.config_read(regs::COMMAND, 2) as u16 & regs::COMMAND_MASTER != 0;
        self.dma.set_allowed(master);
        self.master.store(master, Ordering::Release);
        self.update_mappings();
        self.drive_intx();
    }

    fn space_of(&self, kind: RegionKind) -> &AddressSpace {
        if kind == RegionKind::Io { &self.ports } else { &self.memory }
    }

    /// Brings the mappings in line with the registers.
    fn update_mappings(&self) {
        // Held over the edit, so that two vCPUs cannot apply their changes in the wrong order.
        let mut bars = self.bars.lock();
        for (index, slot) in bars.iter_mut().enumerate() {
            let Some(bar) = slot else { continue };
            let wanted = self.config.lock().decoded(index, bar);
            if wanted == bar.mapped.map(|(_, at)| at) {
                continue;
            }
            let mapped = bar.mapped.map(|(id, _)| id);
            let space = self.space_of(bar.kind);
            let id = space.edit(|edit| match (mapped, wanted) {
                (Some(id), Some(at)) => {
                    edit.move_to(id, at);
                    Some(id)
                }
                (Some(id), None) => {
                    edit.unmap(id);
                    None
                }
                (None, Some(at)) => Some(edit.map(&bar.name, at, bar.size, BAR_PRIORITY, bar.target.clone())),
                (None, None) => None,
            });
            bar.mapped = id.zip(wanted);
        }
    }

    /// The BARs, for `query-pci`.
    pub fn regions(&self) -> Vec<Region> {
        let bars = self.bars.lock();
        let list = bars.iter().enumerate().filter_map(|(index, slot)| {
            let bar = slot.as_ref()?;
            Some(Region { index, kind: bar.kind, size: bar.size, address: bar.mapped.map(|(_, at)| at) })
        });
        list.collect()
    }

    /// Replaces what answers a BAR.
    pub fn retarget(&self, index: usize, target: Target) {
        let mut bars = self.bars.lock();
        let Some(bar) = bars.get_mut(index).and_then(Option::as_mut) else { return };
        bar.target = target.clone();
        if let Some((id, _)) = bar.mapped {
            let space = if bar.kind == RegionKind::Io { &self.ports } else { &self.memory };
            space.edit(|edit| edit.retarget(id, target));
        }
    }

    // ---- interrupts ----

    pub fn msix_enabled(&self) -> bool {
        let msix = self.msix.lock().clone();
        msix.is_some_and(|msix| msix.is_enabled())
    }

    pub fn msi_enabled(&self) -> bool {
        let at = *self.msi.lock();
        at.is_some_and(|at| self.config_read(at + 2, 2) & 1 != 0)
    }

    /// Number of MSI-X vectors (0 without MSI-X).
    pub fn msix_vectors(&self) -> usize {
        let msix = self.msix.lock().clone();
        msix.map_or(0, |msix| msix.vectors())
    }

    pub fn msix_pending(&self, vector: usize) -> bool {
        let msix = self.msix.lock().clone();
        msix.is_some_and(|msix| msix.is_pending(vector))
    }

    /// Signals an MSI-X vector (nothing while MSI-X is disabled).
    pub fn msix_trigger(&self, vector: usize) {
        let msix = self.msix.lock().clone();
        if let Some(msix) = msix {
            msix.trigger(vector);
        }
    }

    /// Signals an MSI vector (nothing while MSI or bus mastering is disabled).
    pub fn msi_trigger(&self, vector: u32) {
        let Some(at) = *self.msi.lock() else { return };
        let message = {
            let config = self.config.lock();
            let control = config.read(at + 2, 2) as u16;
            if control & 1 == 0 || !self.master.load(Ordering::Acquire) {
                return;
            }
            let words = [config.read(at + 4, 4), config.read(at + 8, 4), config.read(at + 12, 4)];
            msi_message(words, control & 1 << 7 != 0, control, vector)
        };
        self.sink.send(message);
    }

    /// The level of the function's interrupt pin (before the guest's INTx disable).
    pub fn set_intx(&self, level: bool) {
        let mut intx = self.intx.lock();
        if *intx == level {
            return;
        }
        *intx = level;
        self.drive(*intx);
    }

    fn drive_intx(&self) {
        let intx = self.intx.lock();
        self.drive(*intx);
    }

    /// Called with the `intx` lock held: keeps the order of changes.
    fn drive(&self, level: bool) {
        let message_mode = self.msix_enabled() || self.msi_enabled();
        let (pin, disabled) = {
            let mut config = self.config.lock();
            let status = config.read(regs::STATUS, 2) as u16;
            let status =
                if level { status | regs::STATUS_INTERRUPT } else { status & !regs::STATUS_INTERRUPT };
            config.set(regs::STATUS, 2, status.into());
            let command = config.read(regs::COMMAND, 2) as u16;
            (config.read(regs::INTERRUPT_PIN, 1) as u8, command & regs::COMMAND_INTX_DISABLE != 0)
        };
        if let Some(pin) = pin.checked_sub(1) {
            self.bus.set_intx(self.at, pin & 3, level && !disabled && !message_mode);
        }
    }

    /// One interrupt by whatever the guest enabled: MSI-X vector, MSI vector, else the pin
    /// level (which the device lowers by [`PciCore::set_intx`]).
    pub fn signal(&self, vector: usize) {
        if self.msix_enabled() {
            self.msix_trigger(vector);
        } else if self.msi_enabled() {
            self.msi_trigger(vector as u32);
        } else {
            self.set_intx(true);
        }
    }

    // ---- life ----

    /// All registers to their initial values, BARs unmapped, interrupt pin low.
    pub fn reset(&self) {
        self.config.lock().reset();
        let msix = self.msix.lock().clone();
        if let Some(msix) = msix {
            msix.reset();
        }
        *self.intx.lock() = false;
        self.command_changed();
    }

    /// Takes the function off its bus and out of the address spaces; DMA fails from now on.
    /// Nothing the second time: the place may belong to another function by then.
    pub fn unplug(&self) {
        if !self.placed.swap(false, Ordering::AcqRel) {
            return;
        }
        self.config.lock().set(regs::COMMAND, 2, 0);
        self.command_changed();
        *self.intx.lock() = false;
        self.drive_intx();
        self.bus.detach(self.at);
        *self.bars.lock() = [const { None }; 7];
    }
}

impl Drop for PciCore {
    fn drop(&mut self) {
        if self.placed.load(Ordering::Acquire) {
            self.bus.release(self.at);
        }
        for bar in self.bars.lock().iter().flatten() {
            if let Some((id, _)) = bar.mapped {
                self.space_of(bar.kind).edit(|edit| edit.unmap(id));
            }
        }
    }
}

fn fill_header(config: &mut Space, identity: Identity, multifunction: bool) {
    let mut header = [0; 0x40];
    header[..2].copy_from_slice(&identity.vendor.to_le_bytes());
    header[2..4].copy_from_slice(&identity.device.to_le_bytes());
    header[8] = identity.revision;
    header[9..12].copy_from_slice(&identity.class.to_le_bytes()[..3]);
    header[0x0e] = u8::from(multifunction) << 7;
    config.init(0, &header);
    config.set_writable(regs::COMMAND, &0x0507u16.to_le_bytes());
    config.set_clearable(regs::STATUS, &0xf900u16.to_le_bytes());
    config.set_writable(regs::CACHE_LINE, &[0xff]);
    config.set_writable(regs::INTERRUPT_LINE, &[0xff]);
}
