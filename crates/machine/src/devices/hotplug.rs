//! Devices that leave a running machine.

use super::{Devices, Entry};
use crate::Notice;
use base::{Failure, Result, bail};
use device::{Bus, Device, Hotplug};
use std::sync::Arc;

/// An unplug that the guest was asked for.
pub(super) struct Asked {
    entry: Arc<Entry>,
    /// When it may be asked again (ns of the virtual clock).
    again: u64,
}

impl Devices {
    /// `device_del`: takes out the device of this id or path, or asks the guest to let it go.
    pub fn unplug(&self, name: &str) -> Result<()> {
        let entry = self.find(name).ok_or_else(|| Failure::device_not_found(name))?;
        let bus = self.bus_of(&entry);
        let hotplug = bus.as_ref().map_or(Hotplug::No, |bus| bus.hotplug());
        if let Some(bus) = bus.filter(|_| hotplug == Hotplug::No) {
            bail!("Bus '{}' does not support hotplugging", bus.name());
        }
        if hotplug == Hotplug::No || !entry.model().hotpluggable {
            bail!("Device '{}' does not support hotplugging", entry.model().name);
        }
        if hotplug == Hotplug::AtOnce || self.ask(&entry)? {
            self.remove(&entry);
        }
        Ok(())
    }

    fn bus_of(&self, entry: &Entry) -> Option<Arc<dyn Bus>> {
        let name = entry.bus.as_deref()?;
        self.buses.lock().iter().find(|bus| bus.name() == name).cloned()
    }

    /// Asks the guest to let go of a device. True: nobody need be asked.
    fn ask(&self, entry: &Arc<Entry>) -> Result<bool> {
        let Some(core) = entry.device.pci().map(|function| function.core()) else { return Ok(true) };
        let Some(control) = core.bus().slot_control() else { return Ok(true) };
        let now = self.services.clocks.virtual_.now();
        let is_this = |asked: &Asked| Arc::ptr_eq(&asked.entry, entry);
        if self.asked.lock().iter().any(|asked| is_this(asked) && now < asked.again) {
            let name = entry.id.as_deref().unwrap_or(&entry.path);
            bail!("Device {name} is already in the process of unplug");
        }
        if control.unplug(core.address() >> 3)? {
            return Ok(true);
        }
        let mut asked = self.asked.lock();
        asked.retain(|asked| !is_this(asked));
        asked.push(Asked { entry: entry.clone(), again: now.saturating_add(control.patience()) });
        Ok(false)
    }

    /// The guest let go of a device.
    pub(crate) fn ejected(&self, device: &Arc<dyn Device>) {
        let entry = self.entries.lock().iter().find(|entry| Arc::ptr_eq(&entry.device, device)).cloned();
        if let Some(entry) = entry {
            self.remove(&entry);
        }
    }

    /// The machine is reset: what the guest was asked for is done.
    pub(crate) fn complete_unplugs(&self) {
        let asked = std::mem::take(&mut *self.asked.lock());
        for asked in asked {
            self.remove(&asked.entry);
        }
    }

    /// Takes a device out, those on its buses first.
    fn remove(&self, entry: &Arc<Entry>) {
        if !self.entries.lock().iter().any(|other| Arc::ptr_eq(other, entry)) {
            return;
        }
        for bus in entry.device.buses() {
            let name = bus.name();
            let children = self.entries().into_iter().filter(|child| child.bus.as_ref() == Some(&name));
            children.for_each(|child| self.remove(&child));
            self.buses.lock().retain(|other| !Arc::ptr_eq(other, &bus));
        }
        self.services.backends.release(&|| entry.device.unplug());
        self.entries.lock().retain(|other| !Arc::ptr_eq(other, entry));
        self.asked.lock().retain(|asked| !Arc::ptr_eq(&asked.entry, entry));
        self.tree.remove(&entry.path);
        let tell = |id, path| self.services.notices.send(Notice::DeviceDeleted { id, path });
        if entry.device.inner_type().is_some() {
            tell(None, entry.inner_path());
        }
        tell(entry.id.clone(), entry.path.clone());
    }

    /// Shows a device to a running guest.
    pub(super) fn announce(&self, entry: &Entry) {
        let Some(core) = entry.device.pci().map(|function| function.core()) else { return };
        // Functions beside the first come into sight with it.
        if core.address() & 7 == 0
            && let Some(control) = core.bus().slot_control()
        {
            control.plugged(core.address() >> 3);
        }
    }
}
