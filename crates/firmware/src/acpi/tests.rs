use super::*;
use crate::platform::{Chipset, NumaNode};
use base::GIB;
use std::collections::BTreeMap;
use std::process::Command;

fn platforms() -> Vec<Platform> {
    let mut all = Vec::new();
    for chipset in [Chipset::I440fx, Chipset::Q35] {
        all.push(Platform::new(chipset, 1, 128 << 20));
        let mut big = Platform::new(chipset, 8, 6 * GIB);
        big.cpus[7].apic_id = 300;
        big.cpus[6].present = false;
        big.cpus[5].node = 1;
        let node = |memory| NumaNode { memory, distances: vec![] };
        big.numa = vec![node(2 * GIB), node(4 * GIB)];
        big.isa.parallel[0] = true;
        big.isa.floppy = true;
        big.isa.pvpanic = Some(0x505);
        all.push(big);
    }
    all
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Follows the placed RSDP through both directories; all tables by signature.
fn walk(image: &[u8], rsdp: &[u8], base: u64) -> BTreeMap<String, Vec<u8>> {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    assert_eq!(sum(&rsdp[..20]), 0);
    assert_eq!(sum(rsdp), 0);
    let table = |address: u64| {
        let at = (address - base) as usize;
        let bytes = &image[at..at + u32_at(image, at + 4) as usize];
        if &bytes[..4] != b"FACS" {
            assert_eq!(sum(bytes), 0, "{:?}", &bytes[..4]);
        }
        bytes.to_vec()
    };
    let rsdt = table(u32_at(rsdp, 16).into());
    let xsdt = table(u64::from_le_bytes(rsdp[24..32].try_into().unwrap()));
    let short: Vec<u64> = rsdt[36..].chunks(4).map(|c| u32_at(c, 0).into()).collect();
    let long: Vec<u64> = xsdt[36..].chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(short, long);
    let mut all = BTreeMap::new();
    for address in long {
        let bytes = table(address);
        if &bytes[..4] == b"FACP" {
            for at in [36, 40] {
                let inner = table(u32_at(&bytes, at).into());
                all.insert(String::from_utf8_lossy(&inner[..4]).into_owned(), inner);
            }
        }
        all.insert(String::from_utf8_lossy(&bytes[..4]).into_owned(), bytes);
    }
    all
}

/// Carries out loader commands as a firmware does, files at the given addresses.
fn link(files: &LoaderFiles, tables_at: u64) -> (Vec<u8>, Vec<u8>) {
    let (mut tables, mut rsdp) = (files.tables.clone(), files.rsdp.clone());
    for command in files.loader.chunks(128) {
        let text =
            |at: usize| String::from_utf8_lossy(&command[at..at + 56]).trim_end_matches('\0').to_string();
        let file = if text(4) == TABLES { &mut tables } else { &mut rsdp };
        match u32_at(command, 0) {
            1 => {}
            2 => {
                assert_eq!(text(60), TABLES);
                let (at, size) = (u32_at(command, 116) as usize, command[120] as usize);
                let mut value = [0; 8];
                value[..size].copy_from_slice(&file[at..at + size]);
                let value = u64::from_le_bytes(value) + tables_at;
                file[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
            }
            3 => {
                let [at, start, len] = [60, 64, 68].map(|o| u32_at(command, o) as usize);
                file[at] = checksum(&file[start..start + len]);
            }
            other => panic!("command {other}"),
        }
    }
    (tables, rsdp)
}

#[test]
fn loader_and_placement_agree() {
    for platform in platforms() {
        let tables = Tables::build(&platform);
        let base = 0x7fe_0000;
        let (image, rsdp) = tables.place(base);
        assert_eq!((image.clone(), rsdp.clone()), link(&tables.loader_files(), base));
        let all = walk(&image, &rsdp, base);
        let mut wanted = vec!["APIC", "DSDT", "FACP", "FACS", "HPET", "WAET"];
        if platform.is_q35() {
            wanted.push("MCFG");
        }
        if !platform.numa.is_empty() {
            wanted.extend(["SLIT", "SRAT"]);
        }
        wanted.sort();
        assert_eq!(all.keys().map(String::as_str).collect::<Vec<_>>(), wanted);
    }
}

#[test]
fn srat_covers_all_ram_once() {
    let platform = platforms().into_iter().find(|p| !p.numa.is_empty()).unwrap();
    let table = tables::srat(&platform);
    let mut at = 48;
    let (mut total, mut cpus) = (0, 0);
    while at < table.len() {
        if table[at] == 1 {
            total += u64::from_le_bytes(table[at + 16..at + 24].try_into().unwrap());
        } else {
            cpus += 1;
        }
        at += usize::from(table[at + 1]);
    }
    assert_eq!(cpus, 8);
    assert_eq!(total, 6 * GIB - 0x6_0000);
}

/// The reference compiler reads every table back and compiles the DSDT without complaint.
#[test]
fn iasl_accepts_all_tables() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("skipped: iasl (package acpica-tools) is not installed");
        return;
    }
    for platform in platforms() {
        let (image, rsdp) = Tables::build(&platform).place(0x7fe_0000);
        let dir = tempfile::tempdir().unwrap();
        for (signature, bytes) in walk(&image, &rsdp, 0x7fe_0000) {
            let file = dir.path().join(format!("{signature}.dat"));
            std::fs::write(&file, bytes).unwrap();
            let run = |args: &[&str]| {
                let out = Command::new("iasl").args(args).current_dir(dir.path()).output().unwrap();
                let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
                (out.status.success(), text.into_owned())
            };
            let (ok, text) = run(&["-d", &format!("{signature}.dat")]);
            assert!(ok && !text.contains("Error") && !text.contains("Warning"), "{signature}: {text}");
            let (ok, text) = run(&["-vr", &format!("{signature}.dsl")]);
            assert!(ok && text.contains(" 0 Errors"), "{signature}: {text}");
            assert!(text.contains(" 0 Warnings"), "{signature}: {text}");
        }
    }
}
