//! ACPI tables from a [`Platform`]: files for a firmware's linker-loader, or an image for a
//! boot without firmware.

mod dsdt;
mod hotplug;
mod isa;
mod layout;
mod routing;
mod tables;
mod term;
#[cfg(test)]
mod tests;

use crate::platform::Platform;
use layout::{Layout, Loader, Zone};

pub(crate) use layout::checksum;

const TABLES: &str = "etc/acpi/tables";
const RSDP: &str = "etc/acpi/rsdp";
const RSDP_LEN: usize = 36;
/// FACS must be aligned to 64 bytes, and so is the whole blob.
const ALIGN: u32 = 64;

/// All tables of a board, not yet at an address.
#[derive(Clone, Debug)]
pub struct Tables {
    layout: Layout,
    rsdt: usize,
    xsdt: usize,
}

/// Contents of `etc/acpi/tables`, `etc/acpi/rsdp` and `etc/table-loader`.
#[derive(Clone, Debug)]
pub struct LoaderFiles {
    pub tables: Vec<u8>,
    pub rsdp: Vec<u8>,
    pub loader: Vec<u8>,
}

impl Tables {
    pub fn build(platform: &Platform) -> Tables {
        let mut layout = Layout::default();
        let facs = layout.append(&tables::facs(), ALIGN as usize);
        let mut code = tables::header(b"DSDT", 2, Layout::HEADER);
        code.extend(dsdt::body(platform));
        let dsdt = layout.table(code);
        let fadt = layout.table(tables::fadt(platform));
        layout.point(fadt + 36, 4, facs);
        layout.point(fadt + 40, 4, dsdt);
        layout.point(fadt + 140, 8, dsdt);
        let mut list = vec![fadt, layout.table(tables::madt(platform))];
        if platform.isa.hpet {
            list.push(layout.table(tables::hpet()));
        }
        if !platform.numa.is_empty() {
            list.push(layout.table(tables::srat(platform)));
            list.push(layout.table(tables::slit(platform)));
        }
        if platform.is_q35() {
            list.push(layout.table(tables::mcfg()));
        }
        list.push(layout.table(tables::waet()));
        let rsdt = directory(&mut layout, b"RSDT", 4, &list);
        let xsdt = directory(&mut layout, b"XSDT", 8, &list);
        Tables { layout, rsdt, xsdt }
    }

    /// Bytes that [`Tables::place`] needs.
    pub fn len(&self) -> u64 {
        self.layout.bytes.len() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.layout.bytes.is_empty()
    }

    /// The RSDP (ACPI 6.4 §5.2.5.3), revision 2, with the tables at `base`.
    fn rsdp(&self, base: u64) -> Vec<u8> {
        let mut bytes = vec![0; RSDP_LEN];
        bytes[..8].copy_from_slice(b"RSD PTR ");
        bytes[9..15].copy_from_slice(b"RYOKAN");
        bytes[15] = 2;
        bytes[16..20].copy_from_slice(&((base + self.rsdt as u64) as u32).to_le_bytes());
        bytes[20] = RSDP_LEN as u8;
        bytes[24..32].copy_from_slice(&(base + self.xsdt as u64).to_le_bytes());
        bytes
    }

    pub fn loader_files(&self) -> LoaderFiles {
        let mut loader = Loader::default();
        loader.allocate(TABLES, ALIGN, Zone::High);
        loader.allocate(RSDP, 16, Zone::FSegment);
        for &(at, size) in &self.layout.pointers {
            loader.pointer(TABLES, TABLES, at, size);
        }
        for &sum in &self.layout.sums {
            loader.sum(TABLES, sum);
        }
        loader.pointer(RSDP, TABLES, 16, 4);
        loader.pointer(RSDP, TABLES, 24, 8);
        loader.sum(RSDP, (0, 20, 8));
        loader.sum(RSDP, (0, RSDP_LEN, 32));
        let tables = self.layout.bytes.clone();
        LoaderFiles { tables, rsdp: self.rsdp(0), loader: loader.into_bytes() }
    }

    /// Tables for `base` (a multiple of 64, below 4 GiB) and the RSDP, to be put on a
    /// 16-byte boundary in E0000h-FFFFFh.
    pub fn place(&self, base: u64) -> (Vec<u8>, Vec<u8>) {
        let mut rsdp = self.rsdp(base);
        rsdp[8] = checksum(&rsdp[..20]);
        rsdp[32] = checksum(&rsdp);
        (self.layout.placed(base), rsdp)
    }
}

/// RSDT or XSDT: pointers of `size` bytes to all tables.
fn directory(layout: &mut Layout, signature: &[u8; 4], size: usize, list: &[usize]) -> usize {
    let at = layout.table(tables::header(signature, 1, Layout::HEADER + size * list.len()));
    for (i, &table) in list.iter().enumerate() {
        layout.point(at + Layout::HEADER + size * i, size, table);
    }
    at
}
