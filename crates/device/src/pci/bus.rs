use super::SlotControl;
use crate::{Bus, BusKind, Device, Hotplug, Power};
use base::{Mutex, Result, bail};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Routes (slot, pin 0-3 = INTA-INTD, level) of a root bus to interrupts, or of a secondary
/// bus to its bridge's parent.
pub type IntxRoute = Box<dyn Fn(u8, u8, bool) + Send + Sync>;

/// A PCI bus: functions by device/function number.
pub struct PciBus {
    name: String,
    express: bool,
    /// Behind a PCI Express port: only slot 0 exists.
    single_slot: bool,
    functions: Mutex<BTreeMap<u8, Arc<dyn Device>>>,
    /// Reserved while a device is being created.
    reserved: Mutex<BTreeMap<u8, String>>,
    wires: Mutex<Wires>,
    slots: Mutex<Option<Arc<dyn SlotControl>>>,
}

struct Wires {
    route: IntxRoute,
    /// Functions that drive each (slot, pin) high, one bit a function.
    levels: BTreeMap<(u8, u8), u8>,
}

/// slot << 3 | function.
pub fn devfn(slot: u8, function: u8) -> u8 {
    slot << 3 | (function & 7)
}

/// Parses `slot[.function]` in hex as `addr=` takes it.
pub fn parse_address(text: &str) -> Option<u8> {
    let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
    let slot = u8::from_str_radix(slot.trim_start_matches("0x"), 16).ok().filter(|&slot| slot < 32)?;
    let function = u8::from_str_radix(function.trim_start_matches("0x"), 16).ok().filter(|&f| f < 8)?;
    Some(devfn(slot, function))
}

impl PciBus {
    pub fn new(name: &str, express: bool, route: IntxRoute) -> Arc<Self> {
        PciBus::with_slots(name, express, false, route)
    }

    /// The bus behind a PCI Express port, with slot 0 only.
    pub fn downstream(name: &str, route: IntxRoute) -> Arc<Self> {
        PciBus::with_slots(name, true, true, route)
    }

    fn with_slots(name: &str, express: bool, single_slot: bool, route: IntxRoute) -> Arc<Self> {
        Arc::new(PciBus {
            name: name.to_string(),
            express,
            single_slot,
            functions: Mutex::new(BTreeMap::new()),
            reserved: Mutex::new(BTreeMap::new()),
            wires: Mutex::new(Wires { route, levels: BTreeMap::new() }),
            slots: Mutex::new(None),
        })
    }

    /// Replaces the interrupt routing (the ISA bridge that routes is itself on the bus).
    /// Wires that are high are told to the new route.
    pub fn set_route(&self, route: IntxRoute) {
        let mut wires = self.wires.lock();
        wires.route = route;
        for (&(slot, pin), &levels) in &wires.levels {
            if levels != 0 {
                (wires.route)(slot, pin, true);
            }
        }
    }

    /// Makes the bus hot-pluggable.
    pub fn set_slot_control(&self, control: Arc<dyn SlotControl>) {
        *self.slots.lock() = Some(control);
    }

    pub fn slot_control(&self) -> Option<Arc<dyn SlotControl>> {
        self.slots.lock().clone()
    }

    /// The guest lets go of a slot: its functions leave the bus and the address spaces at
    /// once, and the machine takes them apart. Functions that cannot be plugged stay.
    pub fn eject(&self, slot: u8, power: &dyn Power) {
        let functions = self.functions();
        for (_, device) in functions.into_iter().filter(|(at, _)| at >> 3 == slot) {
            if device.model().hotpluggable
                && let Some(function) = device.pci()
            {
                function.core().unplug();
                power.ejected(device);
            }
        }
    }

    /// Whether a slot has a function.
    pub fn is_occupied(&self, slot: u8) -> bool {
        self.functions.lock().range(devfn(slot, 0)..=devfn(slot, 7)).next().is_some()
    }

    pub fn is_express(&self) -> bool {
        self.express
    }

    /// Claims a place: the given one or the first free slot. [`PciBus::attach`] follows.
    pub fn reserve(&self, wanted: Option<u8>, who: &str) -> Result<u8> {
        let functions = self.functions.lock();
        let mut reserved = self.reserved.lock();
        let taken = |at: u8| functions.contains_key(&at) || reserved.contains_key(&at);
        if let Some(at) = wanted.filter(|at| self.single_slot && at >> 3 != 0) {
            bail!(
                "PCI: slot {} is not valid for {who}, parent device only allows plugging into slot 0.",
                at >> 3
            );
        }
        let slots = if self.single_slot { 1 } else { 32 };
        let at = match wanted {
            Some(at) if taken(at) => {
                let owner =
                    functions.get(&at).map(|d| d.model().name.to_string()).or(reserved.get(&at).cloned());
                bail!(
                    "PCI: slot {} function {} not available for {who}, in use by {}",
                    at >> 3,
                    at & 7,
                    owner.unwrap_or_default()
                );
            }
            Some(at) => {
                let first = functions.get(&(at & !7)).and_then(|d| d.pci().map(|f| f.config_read(0x0e, 1)));
                if at & 7 != 0 && first.is_some_and(|header| header & 0x80 == 0) {
                    bail!(
                        "PCI: single function device can't be populated in function {:x}.{:x}",
                        at >> 3,
                        at & 7
                    );
                }
                at
            }
            None => match (0..slots)
                .map(|slot| devfn(slot, 0))
                .find(|&at| (at..at + 7).chain([at | 7]).all(|f| !taken(f)))
            {
                Some(at) => at,
                None => bail!("PCI: no slot/function available for {who}, all in use or reserved"),
            },
        };
        reserved.insert(at, who.to_string());
        Ok(at)
    }

    /// Puts a created function at the place it reserved.
    pub fn attach(&self, at: u8, device: Arc<dyn Device>) {
        self.reserved.lock().remove(&at);
        self.functions.lock().insert(at, device);
    }

    pub fn detach(&self, at: u8) {
        self.reserved.lock().remove(&at);
        self.functions.lock().remove(&at);
    }

    /// Gives up a reservation that was not followed by [`PciBus::attach`].
    pub fn release(&self, at: u8) {
        self.reserved.lock().remove(&at);
    }

    pub fn function(&self, at: u8) -> Option<Arc<dyn Device>> {
        self.functions.lock().get(&at).cloned()
    }

    /// All functions in ascending order.
    pub fn functions(&self) -> Vec<(u8, Arc<dyn Device>)> {
        self.functions.lock().iter().map(|(&at, device)| (at, device.clone())).collect()
    }

    /// A configuration read; absent functions read as all ones.
    pub fn config_read(&self, at: u8, offset: u16, size: u8) -> u32 {
        let ones = if size >= 4 { u32::MAX } else { (1 << (size * 8)) - 1 };
        self.function(at).and_then(|d| d.pci().map(|f| f.config_read(offset, size))).unwrap_or(ones) & ones
    }

    pub fn config_write(&self, at: u8, offset: u16, size: u8, value: u32) {
        if let Some(device) = self.function(at)
            && let Some(function) = device.pci()
        {
            function.config_write(offset, size, value);
        }
    }

    /// Drives an interrupt pin (0 = INTA) of a function; levels of functions that share a
    /// wire are ORed. The route is called under the wires' lock, so that two threads cannot
    /// deliver their changes in the wrong order.
    pub fn set_intx(&self, at: u8, pin: u8, level: bool) {
        let (slot, bit) = (at >> 3, 1 << (at & 7));
        let mut wires = self.wires.lock();
        let wire = wires.levels.entry((slot, pin)).or_default();
        let before = *wire != 0;
        *wire = if level { *wire | bit } else { *wire & !bit };
        let after = *wire != 0;
        if before != after {
            (wires.route)(slot, pin, after);
        }
    }

    /// The bus with this number: this one (`own` is its number) or one behind a bridge on it.
    pub fn find_bus(self: &Arc<Self>, own: u8, number: u8) -> Option<Arc<PciBus>> {
        if own == number {
            return Some(self.clone());
        }
        self.functions().into_iter().find_map(|(_, device)| {
            let function = device.pci()?;
            let below = function.secondary_bus()?;
            let secondary = function.config_read(0x19, 1) as u8;
            let subordinate = function.config_read(0x1a, 1) as u8;
            if secondary == 0 || !(secondary..=subordinate).contains(&number) {
                return None;
            }
            below.find_bus(secondary, number)
        })
    }
}

impl Bus for PciBus {
    fn name(&self) -> String {
        self.name.clone()
    }
    fn kind(&self) -> BusKind {
        BusKind::Pci
    }
    fn is_full(&self) -> bool {
        let slots = if self.single_slot { 1 } else { 32 };
        (0..slots).all(|slot| self.functions.lock().contains_key(&devfn(slot, 0)))
    }
    fn hotplug(&self) -> Hotplug {
        if self.slots.lock().is_some() { Hotplug::ByGuest } else { Hotplug::No }
    }
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
