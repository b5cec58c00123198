//! The items every board fills in.

use super::{Items, key};
use crate::acpi::Tables;
use crate::boot::bzimage;
use crate::platform::Platform;
use crate::{e820, smbios};
use base::{Result, bail};

/// What the user said about booting.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// `-boot menu=on`.
    pub menu: bool,
    /// `-boot splash-time=`, milliseconds the menu prompt stays.
    pub menu_wait: Option<u16>,
    /// `-boot reboot-timeout=`, milliseconds; -1: never.
    pub reboot_timeout: Option<i32>,
    /// `-boot strict=on`: only devices of the boot order.
    pub strict: bool,
    /// Open Firmware paths of bootable devices, first to try first.
    pub order: Vec<String>,
    /// `-nographic`.
    pub nographic: bool,
    pub uuid: [u8; 16],
}

/// Sets all standard items from the board's description.
pub fn fill(
    items: &mut Items,
    platform: &Platform,
    boot: &Boot,
    acpi: Option<&Tables>,
    smbios: &smbios::Tables,
) -> Result<()> {
    let present = platform.cpus.iter().filter(|slot| slot.present).count() as u16;
    // As QEMU does, the limit is that of APIC ids.
    let max = platform.cpus.iter().map(|slot| slot.apic_id + 1).max().unwrap_or(1);
    items.set(key::UUID, boot.uuid);
    items.set(key::RAM_SIZE, (platform.ram_low + platform.ram_high).to_le_bytes());
    items.set(key::NOGRAPHIC, u16::from(boot.nographic).to_le_bytes());
    items.set(key::NB_CPUS, present.to_le_bytes());
    items.set(key::MAX_CPUS, u16::try_from(max).unwrap_or(u16::MAX).to_le_bytes());
    items.set(key::NUMA, numa(platform));
    items.set(key::BOOT_MENU, u16::from(boot.menu).to_le_bytes());
    items.set(key::IRQ0_OVERRIDE, 1u32.to_le_bytes());
    items.put_file("etc/e820", e820::fw_cfg_file(platform))?;
    items.put_file("etc/system-states", system_states(platform))?;
    items.put_file("etc/boot-fail-wait", boot.reboot_timeout.unwrap_or(-1).to_le_bytes())?;
    if let Some(wait) = boot.menu_wait {
        items.put_file("etc/boot-menu-wait", wait.to_le_bytes())?;
    }
    if boot.strict || !boot.order.is_empty() {
        items.put_file("bootorder", bootorder(boot))?;
    }
    items.put_file("etc/smbios/smbios-anchor", smbios.anchor())?;
    items.put_file("etc/smbios/smbios-tables", smbios.structures().to_vec())?;
    if let Some(acpi) = acpi {
        let files = acpi.loader_files();
        items.put_file("etc/acpi/tables", files.tables)?;
        items.put_file("etc/acpi/rsdp", files.rsdp)?;
        items.put_file("etc/table-loader", files.loader)?;
    }
    Ok(())
}

/// Sets the items by which a firmware that reads kernels from here finds one (a bzImage), its
/// initrd and command line.
pub fn put_kernel(items: &mut Items, kernel: &[u8], initrd: &[u8], command_line: &str) -> Result<()> {
    let Some((setup, rest)) = Some(kernel).filter(|kernel| bzimage::is(kernel)).and_then(bzimage::parts)
    else {
        bail!("it is no bzImage, which is what the firmware can start");
    };
    let mut text = command_line.as_bytes().to_vec();
    text.push(0);
    let blobs = [
        (key::SETUP_SIZE, key::SETUP_DATA, setup),
        (key::KERNEL_SIZE, key::KERNEL_DATA, rest),
        (key::INITRD_SIZE, key::INITRD_DATA, initrd),
        (key::CMDLINE_SIZE, key::CMDLINE_DATA, &text),
    ];
    for (size, data, bytes) in blobs {
        items.set(size, u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        items.set(data, bytes);
    }
    Ok(())
}

/// One byte per state S0 to S5: bit 7 supported, low bits the SLP_TYP value.
fn system_states(platform: &Platform) -> [u8; 6] {
    let on = |supported: bool| u8::from(supported) << 7;
    [0x80, 0, 0, 1 | on(platform.s3), 2 | on(platform.s4), 0x80]
}

fn bootorder(boot: &Boot) -> Vec<u8> {
    let mut lines = boot.order.clone();
    if boot.strict {
        lines.push("HALT".into());
    }
    let mut text = lines.join("\n").into_bytes();
    text.push(0);
    text
}

/// Number of nodes, the node of each processor by APIC id, the memory of each node.
fn numa(platform: &Platform) -> Vec<u8> {
    let ids = platform.cpus.iter().map(|slot| slot.apic_id as usize + 1).max().unwrap_or(0);
    let mut words = vec![0u64; 1 + ids + platform.numa.len()];
    words[0] = platform.numa.len() as u64;
    for slot in &platform.cpus {
        words[1 + slot.apic_id as usize] = slot.node.into();
    }
    for (i, node) in platform.numa.iter().enumerate() {
        words[1 + ids + i] = node.memory;
    }
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}
