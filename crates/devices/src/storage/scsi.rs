//! SCSI logical units: `scsi-hd` and `scsi-cd` on any SCSI host (SPC-3, SBC-3, MMC-5).

mod disk;
#[cfg(test)]
mod tests;
mod unit;

pub use disk::{Command, Lun, WRITE_ERROR};
pub use unit::{CD, HD};

use super::Runs;
use super::cdrom::{INVALID_FIELD, fixed_sense, padded, sense};
use base::{Mutex, Result, bail};
use device::{Bus, BusKind, Hotplug};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// What a host adapter is told about its bus.
pub trait ScsiHost: Send + Sync {
    /// A unit was plugged (or unplugged).
    fn plugged(&self, target: u8, lun: u16, present: bool);
    /// A unit's medium has another size.
    fn resized(&self, target: u8, lun: u16);
    /// Where it runs the requests of its units.
    fn runs(&self) -> Runs {
        Runs { refusal: "HBA does not support iothreads", ..Runs::MAIN }
    }
}

/// A bus of logical units by target and number.
pub struct ScsiBus {
    name: String,
    max_target: u8,
    max_lun: u16,
    luns: Mutex<BTreeMap<(u8, u16), Arc<Lun>>>,
    host: Weak<dyn ScsiHost>,
}

impl ScsiBus {
    pub fn new(name: String, limits: (u8, u16), host: Weak<dyn ScsiHost>) -> Arc<Self> {
        let (max_target, max_lun) = limits;
        Arc::new(ScsiBus { name, max_target, max_lun, luns: Mutex::default(), host })
    }

    fn runs(&self) -> Runs {
        self.host.upgrade().map_or(Runs::MAIN, |host| host.runs())
    }

    pub fn lun(&self, target: u8, lun: u16) -> Option<Arc<Lun>> {
        self.luns.lock().get(&(target, lun)).cloned()
    }

    /// All units, in order.
    pub fn luns(&self) -> Vec<((u8, u16), Arc<Lun>)> {
        self.luns.lock().iter().map(|(&at, lun)| (at, lun.clone())).collect()
    }

    /// Numbers of a target's units.
    pub fn numbers(&self, target: u8) -> Vec<u16> {
        self.luns.lock().keys().filter(|(other, _)| *other == target).map(|&(_, lun)| lun).collect()
    }

    /// Checks the wanted place or finds a free one.
    fn place(&self, channel: u64, target: Option<u64>, lun: Option<u64>) -> Result<(u8, u16)> {
        if channel != 0 {
            bail!("bad scsi channel id: {channel}");
        }
        if let Some(target) = target.filter(|&target| target > self.max_target.into()) {
            bail!("bad scsi device id: {target}");
        }
        if let Some(lun) = lun.filter(|&lun| lun > self.max_lun.into()) {
            bail!("bad scsi device lun: {lun}");
        }
        let luns = self.luns.lock();
        let free = |target: u8, lun: u16| !luns.contains_key(&(target, lun));
        match (target.map(|t| t as u8), lun.map(|l| l as u16)) {
            (Some(target), Some(lun)) if free(target, lun) => Ok((target, lun)),
            (Some(target), Some(lun)) => {
                let owner = luns.get(&(target, lun)).map(|unit| unit.id.clone()).unwrap_or_default();
                bail!("lun already used by '{owner}'")
            }
            (Some(target), None) => match (0..=self.max_lun).find(|&lun| free(target, lun)) {
                Some(lun) => Ok((target, lun)),
                None => bail!("no free lun"),
            },
            (None, lun) => {
                let lun = lun.unwrap_or(0);
                match (0..=self.max_target).find(|&target| free(target, lun)) {
                    Some(target) => Ok((target, lun)),
                    None => bail!("no free target"),
                }
            }
        }
    }

    fn insert(&self, at: (u8, u16), lun: Arc<Lun>) {
        self.luns.lock().insert(at, lun);
        if let Some(host) = self.host.upgrade() {
            host.plugged(at.0, at.1, true);
        }
    }

    fn remove(&self, at: (u8, u16)) {
        self.luns.lock().remove(&at);
        if let Some(host) = self.host.upgrade() {
            host.plugged(at.0, at.1, false);
        }
    }
}

impl Bus for ScsiBus {
    fn name(&self) -> String {
        self.name.clone()
    }
    fn kind(&self) -> BusKind {
        BusKind::Scsi
    }
    fn hotplug(&self) -> Hotplug {
        Hotplug::AtOnce
    }
    fn is_full(&self) -> bool {
        false
    }
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// What a target says of a unit that it does not have (SPC-3 §6.4.2): as number 0 it is there
/// to be asked for the others, but not accessible; others do not exist.
pub fn absent(lun: u16, cdb: &[u8; 32]) -> Command {
    let missing = sense(5, 0x25, 0);
    let (mut data, allowed) = match cdb[0] {
        0x12 if cdb[1] & 1 != 0 || cdb[2] != 0 => return Command::Check(INVALID_FIELD),
        0x12 if lun == 0 => (target_inquiry(), u16::from_be_bytes([cdb[3], cdb[4]])),
        0x12 => {
            let mut data = vec![0; 36];
            (data[0], data[4]) = (0x7f, 31);
            (data, u16::from_be_bytes([cdb[3], cdb[4]]))
        }
        0x03 => (fixed_sense(missing), cdb[4].into()),
        _ => return Command::Check(missing),
    };
    data.truncate(allowed.into());
    if data.is_empty() { Command::Done } else { Command::Data(data) }
}

/// INQUIRY of a target whose unit 0 is not there: qualifier 1, commands are queued.
fn target_inquiry() -> Vec<u8> {
    let mut data = vec![0x3f, 0, 5, 0x12, 31, 0, 0, 2];
    for (text, len) in [("QEMU", 8), ("QEMU TARGET", 16), ("2.5+", 4)] {
        data.extend(padded(text, len));
    }
    data
}

/// REPORT LUNS data for a target (SPC-3 §6.21).
pub fn report_luns(numbers: &[u16]) -> Vec<u8> {
    let mut numbers = numbers.to_vec();
    if !numbers.contains(&0) {
        numbers.insert(0, 0);
    }
    let mut data = vec![0; 8];
    for number in numbers {
        let bytes = if number < 256 { number } else { 0x4000 | number }.to_be_bytes();
        data.extend([bytes[0], bytes[1], 0, 0, 0, 0, 0, 0]);
    }
    let len = (data.len() - 8) as u32;
    data[..4].copy_from_slice(&len.to_be_bytes());
    data
}
