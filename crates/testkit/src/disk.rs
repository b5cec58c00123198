//! Disk images that boot: MBR, GRUB 2 behind it, one ext2 partition. Made without root rights
//! from Debian's `grub-pc-bin` and `grub-common`, and `mke2fs`.

use crate::guests::{Result, cache, package, run};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SECTOR: u64 = 512;
/// The partition begins at 1 MiB; GRUB's core image fits before it.
const PARTITION: u64 = 2048;
/// What GRUB needs to find its configuration and to load Linux.
const MODULES: [&str; 14] = [
    "biosdisk",
    "part_msdos",
    "ext2",
    "normal",
    "configfile",
    "linux",
    "echo",
    "serial",
    "terminal",
    "test",
    "reboot",
    "halt",
    "ls",
    "cat",
];

/// What the image boots.
pub struct Content<'a> {
    pub kernel: &'a Path,
    pub initrd: &'a [u8],
    pub command_line: &'a str,
}

/// A raw image named after `name` in the cache that boots `content` by BIOS and GRUB, which
/// talks on the first serial port.
pub fn grub(name: &str, content: &Content<'_>) -> Result<PathBuf> {
    let work = cache().join(format!("{name}-{}.d", std::process::id()));
    let _ = fs::remove_dir_all(&work);
    let tree = work.join("root");
    fs::create_dir_all(tree.join("boot/grub")).map_err(|e| format!("{}: {e}", tree.display()))?;
    let put =
        |path: &str, bytes: &[u8]| fs::write(tree.join(path), bytes).map_err(|e| format!("{path}: {e}"));
    let kernel = fs::read(content.kernel).map_err(|e| format!("{}: {e}", content.kernel.display()))?;
    put("boot/vmlinuz", &kernel)?;
    put("boot/initrd", content.initrd)?;
    let config = format!(
        "serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\n\
         echo GRUB-UP\nlinux /boot/vmlinuz {}\ninitrd /boot/initrd\nboot\n",
        content.command_line
    );
    put("boot/grub/grub.cfg", config.as_bytes())?;
    let partition = work.join("partition");
    let size = kernel.len() + content.initrd.len() + (8 << 20);
    file_system(&tree, &partition, (size as u64).next_multiple_of(1 << 20))?;
    let core = core_image(&work)?;
    let boot = fs::read(package("grub-pc-bin")?.join("usr/lib/grub/i386-pc/boot.img"))
        .map_err(|e| format!("boot.img: {e}"))?;
    let partition = fs::read(&partition).map_err(|e| e.to_string())?;
    let image = assemble(&boot, &core, &partition)?;
    let path = cache().join(format!("{name}-{}.img", std::process::id()));
    fs::write(&path, image).map_err(|e| format!("{}: {e}", path.display()))?;
    let _ = fs::remove_dir_all(&work);
    Ok(path)
}

/// An ext2 file system of `size` bytes with the contents of a folder.
pub fn file_system(tree: &Path, image: &Path, size: u64) -> Result<()> {
    let mut command = Command::new("/sbin/mke2fs");
    command.args(["-q", "-F", "-t", "ext2", "-b", "4096", "-d"]).arg(tree).arg(image);
    run(command.arg(format!("{}k", size / 1024)))
}

/// GRUB's core image with its modules, and the path of its configuration built in.
fn core_image(work: &Path) -> Result<Vec<u8>> {
    let modules = package("grub-pc-bin")?.join("usr/lib/grub/i386-pc");
    let core = work.join("core.img");
    let mut command = match which("grub-mkimage") {
        Some(path) => Command::new(path),
        None => {
            let library = package("libdevmapper1.02.1")?.join("lib/x86_64-linux-gnu");
            let mut command = Command::new(package("grub-common")?.join("usr/bin/grub-mkimage"));
            command.env("LD_LIBRARY_PATH", library);
            command
        }
    };
    command.args(["-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub", "-d"]).arg(modules).arg("-o").arg(&core);
    run(command.args(MODULES))?;
    fs::read(&core).map_err(|e| format!("{}: {e}", core.display()))
}

/// MBR with one partition, core image from sector 1, the partition at 1 MiB. GRUB's boot
/// sectors already name these places.
fn assemble(boot: &[u8], core: &[u8], partition: &[u8]) -> Result<Vec<u8>> {
    let boot = boot.get(..440).ok_or("boot.img is too short")?;
    if core.len() as u64 > (PARTITION - 1) * SECTOR {
        return Err(format!("GRUB's core image is too large: {} bytes", core.len()));
    }
    let mut image = vec![0; (PARTITION * SECTOR) as usize];
    image[..440].copy_from_slice(boot);
    let sectors = (partition.len() as u64 / SECTOR) as u32;
    // Active, CHS addresses not given, Linux.
    image[446..454].copy_from_slice(&[0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff]);
    image[454..458].copy_from_slice(&(PARTITION as u32).to_le_bytes());
    image[458..462].copy_from_slice(&sectors.to_le_bytes());
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image[512..512 + core.len()].copy_from_slice(core);
    image.extend_from_slice(partition);
    Ok(image)
}

fn which(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|p| p.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let image = assemble(&[1; 512], &[2; 700], &[3; 2048]).unwrap();
        assert_eq!((image[0], image[440], image[512], image[1211], image[1 << 20]), (1, 0, 2, 2, 3));
        assert_eq!(image[454..462], [0, 8, 0, 0, 4, 0, 0, 0]);
        assert_eq!(image[510..512], [0x55, 0xaa]);
        assert!(assemble(&[1; 512], &vec![0; 1 << 20], &[]).is_err());
        assert!(assemble(&[1; 100], &[], &[]).is_err());
    }
}
