//! PCI buses and functions (PCI Local Bus 3.0, PCI-to-PCI bridge 1.2, PCI Express base 3.0).

use crate::{Bus, BusKind, Device};
use base::{Mutex, Result, bail};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One PCI function. Configuration space is little endian; `size` is 1, 2 or 4 and the
/// access does not cross a doubleword.
pub trait PciFunction: Send + Sync {
    /// Offsets up to 255 (4095 on PCI Express).
    fn config_read(&self, offset: u16, size: u8) -> u32;
    fn config_write(&self, offset: u16, size: u8, value: u32);
}

/// Routes (slot, pin 0-3 = INTA-INTD, level) of a root bus to interrupts, or of a secondary
/// bus to its bridge's parent.
pub type IntxRoute = Box<dyn Fn(u8, u8, bool) + Send + Sync>;

/// A PCI bus: functions by device/function number.
pub struct PciBus {
    name: String,
    express: bool,
    functions: Mutex<BTreeMap<u8, Arc<dyn Device>>>,
    /// Reserved while a device is being created.
    reserved: Mutex<BTreeMap<u8, String>>,
    route: IntxRoute,
    /// Wired-OR level counts of each (slot, pin).
    levels: Mutex<BTreeMap<(u8, u8), BTreeMap<u8, bool>>>,
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
        Arc::new(PciBus {
            name: name.to_string(),
            express,
            functions: Mutex::new(BTreeMap::new()),
            reserved: Mutex::new(BTreeMap::new()),
            route,
            levels: Mutex::new(BTreeMap::new()),
        })
    }

    pub fn is_express(&self) -> bool {
        self.express
    }

    /// Claims a place: the given one or the first free slot. [`PciBus::attach`] follows.
    pub fn reserve(&self, wanted: Option<u8>, who: &str) -> Result<u8> {
        let functions = self.functions.lock();
        let mut reserved = self.reserved.lock();
        let taken = |at: u8| functions.contains_key(&at) || reserved.contains_key(&at);
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
            Some(at) => at,
            None => match (0..32)
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

    pub fn attach(&self, at: u8, device: Arc<dyn Device>) {
        self.reserved.lock().remove(&at);
        self.functions.lock().insert(at, device);
    }

    pub fn detach(&self, at: u8) {
        self.reserved.lock().remove(&at);
        self.functions.lock().remove(&at);
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
    /// wire are ORed.
    pub fn set_intx(&self, at: u8, pin: u8, level: bool) {
        let slot = at >> 3;
        let mut levels = self.levels.lock();
        let wire = levels.entry((slot, pin)).or_default();
        let before = wire.values().any(|&high| high);
        wire.insert(at, level);
        let after = wire.values().any(|&high| high);
        drop(levels);
        if before != after {
            (self.route)(slot, pin, after);
        }
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
        (0..32).all(|slot| self.functions.lock().contains_key(&devfn(slot, 0)))
    }
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
