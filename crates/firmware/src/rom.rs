//! BIOS images and option ROMs: where they are looked for, and how they are mapped.

use base::{Failure, KIB, MIB, Result, bail, fail};
use memory::{Edit, MappingId, RamBlock, Target};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The image that the boards use unless `-bios` names another.
pub const DEFAULT_BIOS: &str = "bios-256k.bin";
const GIB4: u64 = 1 << 32;
/// What is seen of the image below 1 MiB.
const SHADOW: u64 = 128 * KIB;
const MAX_BIOS: u64 = 16 * MIB;
/// An option ROM's length is one byte of 512-byte units.
const MAX_OPTION_ROM: u64 = 255 * 512;

/// Directories to search: those of `-L`, `../share/ryokan` beside the executable, then
/// where distributions install firmware.
pub fn search_path(given: &[String], executable: Option<&Path>) -> Vec<PathBuf> {
    let mut path: Vec<PathBuf> = given.iter().map(PathBuf::from).collect();
    if let Some(dir) = executable.and_then(Path::parent) {
        path.push(dir.join("../share/ryokan"));
    }
    path.extend(["/usr/share/seabios", "/usr/share/qemu"].map(PathBuf::from));
    path
}

/// A firmware file: `name` itself if there is such a file, else the first in `dirs`.
pub fn find(name: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    let direct = PathBuf::from(name);
    if direct.is_file() {
        return Some(direct);
    }
    dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Reads a whole file of at most `limit` bytes.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        bail!("larger than {limit} bytes");
    }
    Ok(bytes)
}

/// A BIOS image in its own memory.
#[derive(Clone, Copy, Debug)]
pub struct Bios {
    block: RamBlock,
}

impl Bios {
    /// Finds and loads the image that the user (or the board) named.
    pub fn find(name: &str, dirs: &[PathBuf]) -> Result<Bios> {
        let path = find(name, dirs).ok_or_else(|| {
            fail!("could not load PC BIOS '{name}'")
                .hint("install a BIOS (Debian: apt-get install seabios), name one with -bios or its directory with -L, or boot a kernel with -kernel, which needs none")
        })?;
        Bios::load(&path)
    }

    /// Loads an image: a multiple of 64 KiB.
    pub fn load(path: &Path) -> Result<Bios> {
        let bytes = read_limited(path, MAX_BIOS).map_err(|e| Failure {
            text: format!("could not load PC BIOS '{}': {e}", path.display()),
            ..e
        })?;
        Bios::from_bytes(&bytes).map_err(|e| e.within(format!("could not load PC BIOS '{}'", path.display())))
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Bios> {
        let len = bytes.len() as u64;
        if len == 0 || !len.is_multiple_of(64 * KIB) {
            bail!("its size, {len} bytes, is not a multiple of 64 KiB");
        }
        let block = RamBlock::new("pc.bios", len)?;
        block.write(0, bytes);
        Ok(Bios { block })
    }

    pub fn block(&self) -> RamBlock {
        self.block
    }

    /// Where the whole image is: up to the end of 4 GiB.
    pub fn high(&self) -> (u64, u64) {
        (GIB4 - self.block.len(), self.block.len())
    }

    /// Maps the image at the top of 4 GiB and, at the given priority, its end below 1 MiB
    /// (the chipset lays RAM over that with a higher one).
    pub fn map(&self, edit: &mut Edit<'_>, shadow_priority: i32) -> (MappingId, MappingId) {
        let (start, len) = self.high();
        let whole = Target::Rom { block: self.block, offset: 0 };
        let high = edit.map("pc.bios", start, len, 1, whole);
        let (start, len, target) = shadow(self.block);
        (high, edit.map("isa-bios", start, len, shadow_priority, target))
    }
}

/// Whether an image has a UEFI firmware volume: `_FVH` at 28h of one of its pages (UEFI PI
/// specification, volume 3, EFI_FIRMWARE_VOLUME_HEADER).
pub fn is_uefi(image: &[u8]) -> bool {
    image.chunks(4096).any(|page| page.get(0x28..0x2c) == Some(b"_FVH"))
}

/// What is seen of a firmware below 1 MiB, its end: first address, length, and what is there.
pub fn shadow(block: RamBlock) -> (u64, u64, Target) {
    let len = block.len().min(SHADOW);
    let offset = block.len() - len;
    (MIB - len, len, Target::Rom { block, offset })
}

/// Reads an option ROM: signature 55AAh and a length that the file has.
pub fn option_rom(path: &Path) -> Result<Vec<u8>> {
    let within = |e: Failure| e.within(format!("Could not open option rom '{}'", path.display()));
    let bytes = read_limited(path, 2 * MIB).map_err(within)?;
    let units = match bytes[..] {
        [0x55, 0xaa, units, ..] => u64::from(units) * 512,
        _ => return Err(within(fail!("not an option ROM"))),
    };
    if units == 0 || units > MAX_OPTION_ROM || units > bytes.len() as u64 {
        return Err(within(fail!("the length in its header is wrong")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::{AddressSpace, SpaceKind};

    #[test]
    fn maps_both_ends() {
        let mut image = vec![0x11; 256 << 10];
        image[0] = 0x22;
        image[(128 << 10)..].fill(0x33);
        *image.last_mut().unwrap() = 0x44;
        let bios = Bios::from_bytes(&image).unwrap();
        let space = AddressSpace::new(SpaceKind::Memory);
        space.edit(|edit| bios.map(edit, 1));
        assert_eq!(space.load(0xfffc_0000, 1), 0x22);
        assert_eq!(space.load(0xffff_ffff, 1), 0x44);
        assert_eq!(space.load(0xe_0000, 1), 0x33);
        assert_eq!(space.load(0xf_ffff, 1), 0x44);
        assert_eq!(space.load(0xd_ffff, 1), 0);
        space.store(0xf_ffff, 1, 0);
        assert_eq!(space.load(0xf_ffff, 1), 0x44);
    }

    #[test]
    fn uefi_is_known_by_its_volumes() {
        let mut image = vec![0; 128 << 10];
        assert!(!is_uefi(&image) && !is_uefi(b"_FVH"));
        image[0x10028..0x1002c].copy_from_slice(b"_FVH");
        assert!(is_uefi(&image) && !is_uefi(&image[..0x1002b]));
        assert!(!is_uefi(&image[1..]));
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("odd.bin");
        std::fs::write(&odd, [0; 1000]).unwrap();
        let name = odd.to_str().unwrap();
        let text = Bios::find(name, &[]).unwrap_err().text;
        assert!(text.starts_with(&format!("could not load PC BIOS '{name}': its size")), "{text}");
        assert_eq!(Bios::find("nope.bin", &[]).unwrap_err().text, "could not load PC BIOS 'nope.bin'");
        assert!(option_rom(&odd).unwrap_err().text.contains("not an option ROM"));
        std::fs::write(&odd, [0x55, 0xaa, 2, 0]).unwrap();
        assert!(option_rom(&odd).unwrap_err().text.contains("length"));
        let dirs = search_path(&[dir.path().display().to_string()], Some(Path::new("/opt/bin/ryokan")));
        assert_eq!(find("odd.bin", &dirs), Some(odd));
        assert_eq!(dirs[1], Path::new("/opt/bin/../share/ryokan"));
    }
}
