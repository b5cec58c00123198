//! The slot of a PCI Express port (PCI Express base 3.0 §7.8.9 to §7.8.11) and its native
//! hot-plug (§6.7): attention button, presence detect, power controller and indicators.

use base::{Mutex, Result, bail};
use device::Power;
use device::pci::{PciBus, PciCore, SlotControl};
use std::sync::{Arc, Weak};

/// Registers, from the start of the PCI Express capability.
const LINK_CAPABILITIES: u16 = 0x0c;
const LINK_STATUS: u16 = 0x12;
const CAPABILITIES: u16 = 0x14;
const CONTROL: u16 = 0x18;
const STATUS: u16 = 0x1a;

const CAP_BUTTON: u32 = 1;
const CAP_POWER_CONTROLLER: u32 = 1 << 1;
const CAP_ATTENTION_INDICATOR: u32 = 1 << 3;
const CAP_POWER_INDICATOR: u32 = 1 << 4;
const CAP_HOTPLUG: u32 = 1 << 6;

const BUTTON: u32 = 1;
const PRESENCE_CHANGED: u32 = 1 << 3;
const COMMAND_DONE: u32 = 1 << 4;
const PRESENT: u32 = 1 << 6;
const LINK_CHANGED: u32 = 1 << 8;
/// Status bits that software clears by writing ones.
const EVENTS: u32 = 0x1f | LINK_CHANGED;

const INTERRUPT_ENABLE: u32 = 1 << 5;
const POWER_INDICATOR: u32 = 3 << 8;
const INDICATOR_ON: u32 = 1 << 8;
const INDICATOR_BLINKS: u32 = 2 << 8;
const INDICATOR_OFF: u32 = 3 << 8;
const POWER_OFF: u32 = 1 << 10;
const LINK_ENABLE: u32 = 1 << 12;
/// All but the interlock, which there is none of.
const CONTROL_WRITABLE: u16 = 0x17ff;

const LINK_REPORTS_ACTIVE: u32 = 1 << 20;
const LINK_ACTIVE: u32 = 1 << 13;

/// A guest takes five seconds in which the button can be pressed again.
const PATIENCE: u64 = 5_000_000_000;

pub struct Slot {
    core: Arc<PciCore>,
    /// Offset of the capability.
    at: u16,
    secondary: Weak<PciBus>,
    power: Arc<dyn Power>,
    hotplug: bool,
    /// The interrupt condition holds. Held while registers change.
    pending: Mutex<bool>,
}

impl Slot {
    /// Fills the slot's registers; with `hotplug` the bus behind the port becomes pluggable.
    pub fn new(
        core: &Arc<PciCore>,
        at: u16,
        (number, hotplug): (u16, bool),
        secondary: &Arc<PciBus>,
        power: Arc<dyn Power>,
    ) -> Arc<Self> {
        let mut capabilities = u32::from(number) << 19;
        if hotplug {
            capabilities |= CAP_BUTTON
                | CAP_POWER_CONTROLLER
                | CAP_ATTENTION_INDICATOR
                | CAP_POWER_INDICATOR
                | CAP_HOTPLUG;
            let link = core.get(at + LINK_CAPABILITIES, 4) | LINK_REPORTS_ACTIVE;
            core.init(at + LINK_CAPABILITIES, &link.to_le_bytes());
            core.set_writable(at + CONTROL, &CONTROL_WRITABLE.to_le_bytes());
            core.set_clearable(at + STATUS, &(EVENTS as u16).to_le_bytes());
        }
        core.init(at + CAPABILITIES, &capabilities.to_le_bytes());
        let slot = Arc::new(Slot {
            core: core.clone(),
            at,
            secondary: Arc::downgrade(secondary),
            power,
            hotplug,
            pending: Mutex::new(false),
        });
        if hotplug {
            secondary.set_slot_control(slot.clone());
        }
        slot
    }

    fn is_occupied(&self) -> bool {
        self.secondary.upgrade().is_some_and(|bus| bus.is_occupied(0))
    }

    fn control(&self) -> u32 {
        self.core.get(self.at + CONTROL, 2)
    }

    /// Presence and link as they are now, and `events` beside those that wait.
    fn update(&self, pending: &mut bool, events: u32) {
        let present = self.is_occupied();
        let control = self.control();
        let status = self.core.get(self.at + STATUS, 2) & !PRESENT | events;
        self.core.set(self.at + STATUS, 2, status | if present { PRESENT } else { 0 });
        let active = present && control & POWER_OFF == 0;
        let link = self.core.get(self.at + LINK_STATUS, 2) & !LINK_ACTIVE;
        let active = if self.hotplug && active { LINK_ACTIVE } else { 0 };
        self.core.set(self.at + LINK_STATUS, 2, link | active);
        let link_event = control & LINK_ENABLE != 0 && status & LINK_CHANGED != 0;
        let wanted = control & INTERRUPT_ENABLE != 0 && (status & control & 0x1f != 0 || link_event);
        let before = std::mem::replace(pending, wanted);
        if self.core.msi_enabled() {
            if wanted && !before {
                self.core.msi_trigger(0);
            }
        } else {
            self.core.set_intx(wanted);
        }
    }

    /// To be called before the slot's registers are read.
    pub fn refresh(&self) {
        self.update(&mut self.pending.lock(), 0);
    }

    pub fn reset(&self) {
        let mut pending = self.pending.lock();
        *pending = false;
        if self.hotplug {
            let on = if self.is_occupied() { INDICATOR_ON } else { POWER_OFF | INDICATOR_OFF };
            self.core.set(self.at + CONTROL, 2, on | 3 << 6);
        }
        self.update(&mut pending, 0);
    }

    /// Software writes configuration space by `write`.
    pub fn write(&self, offset: u16, size: u8, write: impl FnOnce()) {
        let before = self.control();
        write();
        let touches = |first: u16| offset < self.at + first + 2 && offset + u16::from(size) > self.at + first;
        if !self.hotplug || !(touches(CONTROL) || touches(STATUS)) {
            return;
        }
        let mut pending = self.pending.lock();
        if !touches(CONTROL) {
            return self.update(&mut pending, 0);
        }
        let after = self.control();
        let switched = (before ^ after) & POWER_OFF != 0 && self.is_occupied();
        self.update(&mut pending, COMMAND_DONE | if switched { LINK_CHANGED } else { 0 });
        drop(pending);
        let is_off = |control: u32| control & (POWER_OFF | POWER_INDICATOR) == POWER_OFF | INDICATOR_OFF;
        if is_off(after) && !is_off(before) {
            self.let_go();
        }
    }

    /// The guest switched the slot off, and its light: what is in it may be taken.
    fn let_go(&self) {
        let Some(bus) = self.secondary.upgrade() else { return };
        if !bus.is_occupied(0) {
            return;
        }
        bus.eject(0, &*self.power);
        self.update(&mut self.pending.lock(), PRESENCE_CHANGED);
    }
}

impl SlotControl for Slot {
    fn plugged(&self, _slot: u8) {
        let mut pending = self.pending.lock();
        let link = if self.control() & POWER_OFF == 0 { LINK_CHANGED } else { 0 };
        self.update(&mut pending, PRESENCE_CHANGED | BUTTON | link);
    }

    fn unplug(&self, _slot: u8) -> Result<bool> {
        let control = self.control();
        if control & POWER_OFF != 0 && control & POWER_INDICATOR == INDICATOR_OFF {
            return Ok(true);
        }
        if control & POWER_INDICATOR == INDICATOR_BLINKS {
            bail!("Hot-unplug failed: guest is busy (power indicator blinking)");
        }
        self.update(&mut self.pending.lock(), BUTTON);
        Ok(false)
    }

    fn patience(&self) -> u64 {
        PATIENCE
    }
}
