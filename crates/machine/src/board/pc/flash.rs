//! Flash chips with the firmware: `-drive if=pflash`, `-machine pflash0=NODE,pflash1=NODE`.

use super::no_props;
use crate::Devices;
use crate::drives::{Drive, Interface};
use base::{GIB, MIB, Result, bail};
use block::Backend;
use device::{Props, Services};
use devices::storage::flash::{Flash, MODEL, SECTOR};
use firmware::rom;
use serde_json::Value;
use spec::machine::MachineSpec;

const CHIPS: usize = 2;
/// All chips together.
const LIMIT: u64 = 8 * MIB;

fn node(spec: &MachineSpec, chip: usize) -> Option<&str> {
    spec.options.get(&format!("pflash{chip}")).and_then(Value::as_str)
}

/// Whether the machine starts in its first flash chip.
pub(super) fn has_firmware(spec: &MachineSpec) -> bool {
    node(spec, 0).is_some() || spec.has_drive("pflash")
}

/// Makes the chips, one below the other from the end of 4 GiB. Returns the drives that are none.
pub(super) fn attach(
    spec: &MachineSpec,
    services: &Services,
    devices: &Devices,
    drives: Vec<Drive>,
) -> Result<Vec<Drive>> {
    let (flash, others): (Vec<_>, Vec<_>) =
        drives.into_iter().partition(|drive| drive.interface == Interface::Pflash);
    let mut end = 4 * GIB;
    for (number, backend) in chips(spec, services, flash)?.into_iter().enumerate() {
        let Some(backend) = backend else { continue };
        let size = backend.size();
        if 4 * GIB - end + size > LIMIT {
            bail!("combined size of system firmware exceeds {LIMIT} bytes");
        }
        end -= make(number, backend, services, devices, end)?;
    }
    Ok(others)
}

/// The back end of each chip.
fn chips(spec: &MachineSpec, services: &Services, drives: Vec<Drive>) -> Result<[Option<Backend>; CHIPS]> {
    let mut chips = [const { None }; CHIPS];
    for (number, chip) in chips.iter_mut().enumerate() {
        if let Some(node) = node(spec, number) {
            *chip = Some(services.backends.drive(node, MODEL.name)?);
        }
    }
    for drive in drives {
        let unit = drive.unit;
        let place = chips.get_mut(unit as usize).filter(|_| drive.bus == 0);
        let failure = match place {
            Some(None) => {
                chips[unit as usize] = Some(drive.backend);
                continue;
            }
            Some(Some(_)) => base::fail!(
                "-machine pflash{unit}= and a drive with if=pflash,unit={unit} exclude each other"
            ),
            None => base::fail!("machine type does not support if=pflash,bus={},unit={unit}", drive.bus),
        };
        return Err(drive.option.map_or(failure.clone(), |option| failure.within(option)));
    }
    if chips[0].is_none() && chips[1].is_some() {
        bail!("pflash1 requires pflash0");
    }
    Ok(chips)
}

/// Makes chip `number` below `end`; returns its size.
fn make(number: usize, backend: Backend, services: &Services, devices: &Devices, end: u64) -> Result<u64> {
    let name = format!("system.flash{number}");
    let path = format!("/machine/{name}");
    let drive = backend.label();
    let flash = Flash::new(&name, &path, backend)?;
    let size = flash.block().len();
    let mut props = no_props();
    props.insert("drive".into(), drive.into());
    props.insert("name".into(), name.into());
    props.insert("num-blocks".into(), (size / SECTOR).into());
    devices.adopt_at(&path, flash.clone(), Props::check(&MODEL, &props)?);
    flash.map(&services.memory, end - size);
    if number == 0 {
        let (start, len, target) = rom::shadow(flash.block());
        services.memory.edit(|edit| edit.map("isa-bios", start, len, 1, target));
    }
    Ok(size)
}
