//! What a PC runs first: firmware from a ROM, or a kernel put in place directly.

use super::{Platform, flash, onboard};
use crate::memory::Rom;
use crate::{Devices, Machine, Memory};
use base::{Result, fail};
use cpu::models::CpuModel;
use device::Services;
use firmware::boot::{self, Plan, chipset};
use firmware::fw_cfg;
use firmware::{FwCfg, acpi, rom, smbios};
use spec::machine::MachineSpec;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The boot set-up of a board, performed again at every reset.
pub(crate) struct Boot {
    platform: Platform,
    fw_cfg: Arc<FwCfg>,
    plan: Option<Plan>,
    resets: AtomicU32,
}

impl Boot {
    pub fn prepare(
        spec: &MachineSpec,
        platform: Platform,
        memory: &Memory,
        services: &Services,
        devices: &Devices,
        model: &CpuModel,
    ) -> Result<Boot> {
        let acpi = spec.switch("acpi").unwrap_or(true).then(|| acpi::Tables::build(&platform));
        let mut config = smbios::Config::new(&platform, &type_name(spec));
        config.uuid = spec.uuid;
        let leaf = model.table(&crate::cpus::topology(&spec.smp), 0).query(1, 0);
        config.cpu_id = (leaf.eax, leaf.edx);
        config.cores = u8::try_from(spec.smp.cores * spec.smp.dies).unwrap_or(255);
        config.threads = u8::try_from(spec.smp.cores * spec.smp.dies * spec.smp.threads).unwrap_or(255);
        super::tables::smbios(spec, &mut config)?;
        // A firmware tells of itself, and starts the kernel by itself.
        let direct = direct_kernel(spec);
        if direct.is_some() && config.bios.is_none() {
            config.bios = Some(smbios::Bios::ours());
        }
        let smbios = smbios::Tables::build(&config, &platform);
        let fw_cfg = FwCfg::create(services);
        let asked = fw_cfg::Boot {
            menu: spec.boot.menu,
            menu_wait: spec.boot.splash_time,
            reboot_timeout: spec.boot.reboot_timeout,
            strict: spec.boot.strict,
            order: Vec::new(),
            nographic: spec.switch("graphics") == Some(false),
            uuid: spec.uuid.unwrap_or_default(),
        };
        fw_cfg.edit(|items| fw_cfg::fill(items, &platform, &asked, acpi.as_ref(), &smbios))?;
        super::tables::fw_cfg(spec, &fw_cfg)?;
        devices.adopt(fw_cfg.clone(), None);
        let plan = match direct {
            Some(kernel) => Some(plan_kernel(spec, kernel, &platform, acpi.as_ref(), &smbios, model)?),
            None => {
                match (flash::has_firmware(spec), &spec.boot.bios) {
                    (false, _) => map_bios(spec, memory, services)?,
                    (true, None) => {}
                    (true, Some(name)) => {
                        return Err(fail!("-bios '{name}' and flash chips (pflash) exclude each other")
                            .hint("leave -bios out: the machine starts in its first flash chip"));
                    }
                }
                hand_kernel(spec, &fw_cfg)?;
                None
            }
        };
        Ok(Boot { platform, fw_cfg, plan, resets: AtomicU32::new(0) })
    }

    /// Puts the kernel in place and the processors where it expects them; with firmware
    /// there is nothing to do.
    pub fn after_reset(&self, machine: &Machine) -> Result<()> {
        // The first reset belongs to the making of the machine.
        if self.resets.fetch_add(1, Ordering::Relaxed) == 1 && machine.spec.boot.once.is_some() {
            onboard::restore_boot_order(&machine.spec, &machine.devices);
        }
        self.set_boot_order(&machine.spec, &machine.devices)?;
        let Some(plan) = &self.plan else { return Ok(()) };
        chipset::program(&self.platform, &machine.services.ports);
        plan.write(&machine.services.memory);
        for vcpu in machine.vcpus() {
            let mut state = vcpu.with(|cpu| cpu.save())?;
            chipset::cpu(&self.platform, &mut state);
            if vcpu.index == 0 {
                plan.enter(&mut state);
            }
            vcpu.with(move |cpu| cpu.load(&state))??;
        }
        Ok(())
    }

    /// Writes the devices' `bootindex` as the firmware's boot order.
    fn set_boot_order(&self, spec: &MachineSpec, devices: &Devices) -> Result<()> {
        let mut indexed: Vec<(u64, String)> = Vec::new();
        for entry in devices.entries() {
            if let Some(index) = entry.props.opt_u64("bootindex") {
                indexed.extend(firmware_path(&entry, devices).map(|path| (index, path)));
            }
            for (unit, name) in ["bootindexA", "bootindexB"].into_iter().enumerate() {
                let Some(index) = entry.props.opt_u64(name) else { continue };
                indexed.extend(floppy_path(&entry, devices, unit).map(|path| (index, path)));
            }
        }
        indexed.sort();
        let mut lines: Vec<String> = indexed.into_iter().map(|(_, path)| path).collect();
        if spec.boot.strict {
            lines.push("HALT".into());
        }
        let mut text = lines.join("\n").into_bytes();
        text.push(0);
        self.fw_cfg.edit(|items| {
            if lines.is_empty() && items.file("bootorder").is_none() {
                return Ok(());
            }
            items.put_file("bootorder", text)
        })
    }
}

/// The versioned name that SMBIOS shows.
fn type_name(spec: &MachineSpec) -> String {
    match spec.type_name.as_str() {
        "pc" => "pc-i440fx-7.2".into(),
        "q35" => "pc-q35-7.2".into(),
        other => other.into(),
    }
}

fn plan_kernel(
    spec: &MachineSpec,
    name: &str,
    platform: &Platform,
    acpi: Option<&acpi::Tables>,
    smbios: &smbios::Tables,
    model: &CpuModel,
) -> Result<Plan> {
    let (kernel, initrd) = read_files(spec, name)?;
    let request = boot::Request {
        platform,
        kernel_name: name.to_string(),
        kernel,
        initrd,
        command_line: spec.boot.append.clone().unwrap_or_default(),
        long_mode: model.features.contains("lm"),
        acpi,
        smbios: Some(smbios),
    };
    request.plan()
}

/// The kernel, and its initrd or modules.
fn read_files(spec: &MachineSpec, name: &str) -> Result<(Vec<u8>, Vec<boot::Module>)> {
    let kernel = boot::read_kernel(name)?;
    let modules = match &spec.boot.initrd {
        Some(option) => boot::read_initrd(option, &kernel)?,
        None => Vec::new(),
    };
    Ok((kernel, modules))
}

/// The kernel that is put in place directly: one beside which no firmware is given. The default
/// BIOS does not count, since it would do nothing else.
pub(super) fn direct_kernel(spec: &MachineSpec) -> Option<&str> {
    let kernel = spec.boot.kernel.as_deref()?;
    let given = spec.boot.bios.as_deref().is_some_and(|name| !is_default_bios(spec, name));
    (!given && !flash::has_firmware(spec)).then_some(kernel)
}

fn is_default_bios(spec: &MachineSpec, name: &str) -> bool {
    let dirs = firmware_dirs(spec);
    let place = |name: &str| rom::find(name, &dirs)?.canonicalize().ok();
    name == rom::DEFAULT_BIOS || place(name).is_some_and(|path| place(rom::DEFAULT_BIOS) == Some(path))
}

fn firmware_dirs(spec: &MachineSpec) -> Vec<PathBuf> {
    rom::search_path(&spec.boot.firmware_dirs, std::env::current_exe().ok().as_deref())
}

/// Gives the firmware the kernel that it is to start.
fn hand_kernel(spec: &MachineSpec, fw_cfg: &FwCfg) -> Result<()> {
    let Some(name) = &spec.boot.kernel else { return Ok(()) };
    let (kernel, modules) = read_files(spec, name)?;
    let initrd = modules.first().map_or(&[][..], |module| &module.bytes);
    let append = spec.boot.append.as_deref().unwrap_or_default();
    fw_cfg
        .edit(|items| fw_cfg::put_kernel(items, &kernel, initrd, append))
        .map_err(|why| why.within(format!("could not load kernel '{name}'")))
}

fn map_bios(spec: &MachineSpec, memory: &Memory, services: &Services) -> Result<()> {
    let dirs = firmware_dirs(spec);
    let name = spec.boot.bios.as_deref().unwrap_or(rom::DEFAULT_BIOS);
    let qtest = spec.accels.first().is_some_and(|accel| accel.name == "qtest");
    let bios = match rom::Bios::find(name, &dirs) {
        Ok(bios) => bios,
        // Nothing executes: a test program without firmware is served all the same.
        Err(_) if qtest && spec.boot.bios.is_none() => return Ok(()),
        Err(failure) => return Err(failure),
    };
    let mut image = vec![0; bios.block().len() as usize];
    bios.block().read(0, &mut image);
    if spec.boot.kernel.is_some() && !rom::is_uefi(&image) {
        return Err(fail!("-bios '{name}' is no UEFI firmware and cannot start the kernel of -kernel")
            .hint("leave -bios out: the kernel is then booted directly"));
    }
    services.memory.edit(|edit| bios.map(edit, 1));
    memory.add_rom(Rom {
        name: name.to_string(),
        address: bios.high().0,
        block: bios.block(),
        image: image.into(),
    });
    Ok(())
}

/// Slot, and function if it is not the first, in hexadecimal.
fn pci_place(entry: &crate::Entry) -> Option<String> {
    let devfn = entry.device.pci()?.core().address();
    let (slot, function) = (devfn >> 3, devfn & 7);
    Some(if function == 0 { format!("{slot:x}") } else { format!("{slot:x},{function:x}") })
}

/// The device whose bus this one sits on, and the number of that bus on it.
fn parent_of(entry: &crate::Entry, devices: &Devices) -> Option<(Arc<crate::Entry>, usize)> {
    let bus = entry.bus.as_deref()?;
    devices.entries().into_iter().find_map(|other| {
        let number = other.device.buses().iter().position(|own| own.name() == bus)?;
        Some((other, number))
    })
}

/// The Open Firmware path by which SeaBIOS knows a drive of a floppy controller.
fn floppy_path(controller: &crate::Entry, devices: &Devices, unit: usize) -> Option<String> {
    let (bridge, _) = parent_of(controller, devices)?;
    let port = controller.props.u64("iobase");
    Some(format!("/pci@i0cf8/isa@{}/fdc@{port:04x}/floppy@{unit:x}", pci_place(&bridge)?))
}

/// The Open Firmware path by which SeaBIOS knows a bootable device.
fn firmware_path(entry: &crate::Entry, devices: &Devices) -> Option<String> {
    let model = entry.model();
    match model.parent {
        "virtio-pci" | "virtio-blk-pci-base" => {
            Some(format!("/pci@i0cf8/scsi@{}/disk@0,0", pci_place(entry)?))
        }
        "ide-device" => {
            let unit = entry.device.dynamic_property("unit")?.as_u64()?;
            let (parent, number) = parent_of(entry, devices)?;
            let controller = pci_place(&parent)?;
            let channel = if parent.model().name.contains("ahci") { "" } else { "drive@" };
            Some(match channel {
                "" => format!("/pci@i0cf8/pci8086,2922@{controller}/drive@{number}/disk@{unit}"),
                _ => format!("/pci@i0cf8/ide@{controller}/drive@{number}/disk@{unit}"),
            })
        }
        "scsi-disk-base" => {
            let controller = pci_place(&parent_of(entry, devices)?.0)?;
            let number = |name: &str| entry.device.dynamic_property(name)?.as_u64();
            let (target, lun) = (number("scsi-id")?, number("lun")?);
            Some(format!("/pci@i0cf8/scsi@{controller}/channel@0/disk@{target:x},{lun:x}"))
        }
        _ => None,
    }
}
