//! Tiny images of formats that no tool at hand makes, built from their layout.

use super::qcow2::tests::tool;
use super::tests::content;
use crate::graph::tests::graph;
use std::io::Write;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 61 ^ at >> 10) as u8).collect()
}

fn zlib(data: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

/// Blocks of 64 KiB.
pub(super) fn cloop(data: &[u8]) -> Vec<u8> {
    let blocks: Vec<Vec<u8>> = data.chunks(65536).map(zlib).collect();
    let mut out =
        b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\nexit $?\n"
            .to_vec();
    out.resize(128, 0);
    out.extend(65536u32.to_be_bytes());
    out.extend((blocks.len() as u32).to_be_bytes());
    let mut at = 136 + (blocks.len() as u64 + 1) * 8;
    for block in &blocks {
        out.extend(at.to_be_bytes());
        at += block.len() as u64;
    }
    out.extend(at.to_be_bytes());
    out.extend(blocks.concat());
    out
}

/// 64 KiB extents in reverse order; the second is not there, and every third sector neither.
pub(super) fn bochs(data: &mut [u8]) -> Vec<u8> {
    let count = data.len() / 65536;
    let mut out = b"Bochs Virtual HD Image".to_vec();
    out.resize(32, 0);
    out.extend(b"Redolog\0\0\0\0\0\0\0\0\0Growing\0\0\0\0\0\0\0\0\0");
    for word in [0x0002_0000u32, 512, count as u32, 16, 65536, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend((data.len() as u64).to_le_bytes());
    out.resize(512, 0);
    let mut extents = Vec::new();
    for (index, piece) in data.chunks_mut(65536).enumerate() {
        if index == 1 {
            piece.fill(0);
            out.extend(u32::MAX.to_le_bytes());
            continue;
        }
        let place = if index == 0 { count - 2 } else { count - 1 - index };
        out.extend((place as u32).to_le_bytes());
        let mut bitmap = vec![0u8; 512];
        for (sector, bytes) in piece.chunks_mut(512).enumerate() {
            match sector % 3 {
                2 => bytes.fill(0),
                _ => bitmap[sector / 8] |= 1 << (sector % 8),
            }
        }
        bitmap.extend_from_slice(piece);
        extents.push((place, bitmap));
    }
    extents.sort();
    extents.iter().for_each(|(_, extent)| out.extend(extent));
    out
}

fn bz(data: &[u8]) -> Vec<u8> {
    let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::default());
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

/// All of it as ADC literals.
fn adc(data: &[u8]) -> Vec<u8> {
    data.chunks(128).flat_map(|piece| [&[0x7f + piece.len() as u8], piece].concat()).collect()
}

/// Chunks of 64 KiB of the given kinds, in turn, then zeroes.
pub(super) fn dmg(data: &mut [u8], kinds: &[u32]) -> Vec<u8> {
    let mut fork = Vec::new();
    let mut mish = b"mish".to_vec();
    mish.resize(204, 0);
    let entry = |kind: u32, sector: u64, count: u64, offset: u64, len: u64| {
        let mut out = kind.to_be_bytes().to_vec();
        out.extend([0; 4]);
        [sector, count, offset, len].iter().for_each(|word| out.extend(word.to_be_bytes()));
        out
    };
    let chunks = data.len() / 65536;
    for (index, piece) in data.chunks_mut(65536).enumerate() {
        let kind = kinds[index % kinds.len()];
        let packed = match kind {
            1 => piece.to_vec(),
            0x8000_0004 => adc(piece),
            0x8000_0005 => zlib(piece),
            0x8000_0006 => bz(piece),
            _ => {
                piece.fill(0);
                Vec::new()
            }
        };
        mish.extend(entry(kind, index as u64 * 128, 128, fork.len() as u64, packed.len() as u64));
        fork.extend(packed);
    }
    mish.extend(entry(0xffff_ffff, chunks as u64 * 128, 0, 0, 0));
    mish[16..24].copy_from_slice(&(chunks as u64 * 128).to_be_bytes());
    mish[200..204].copy_from_slice(&(chunks as u32 + 1).to_be_bytes());
    let coded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &mish);
    let list = format!("<plist><dict><key>blkx</key><array><data>\n{coded}\n</data></array></dict></plist>");
    let mut out = fork;
    let mut koly = vec![0; 512];
    koly[..4].copy_from_slice(b"koly");
    koly[4..8].copy_from_slice(&4u32.to_be_bytes());
    koly[8..12].copy_from_slice(&512u32.to_be_bytes());
    koly[32..40].copy_from_slice(&(out.len() as u64).to_be_bytes());
    koly[216..224].copy_from_slice(&(out.len() as u64).to_be_bytes());
    koly[224..232].copy_from_slice(&(list.len() as u64).to_be_bytes());
    koly[492..500].copy_from_slice(&(chunks as u64 * 128).to_be_bytes());
    out.extend(list.as_bytes());
    out.extend(koly);
    out
}

/// The content of an image as we and (if it can) qemu-img read it.
fn judge(format: &str, image: &[u8], expected: &[u8], by_them: bool) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (path, raw) = (dir.path().join(format!("a.{format}")), dir.path().join("a.raw"));
    std::fs::write(&path, image).unwrap();
    assert!(content(&graph(), &path, format) == expected, "{format} read by us");
    if by_them {
        let args = ["convert", "-f", format, "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()];
        tool("qemu-img", &args);
        assert!(std::fs::read(&raw).unwrap() == expected, "{format} read by qemu-img");
    }
}

#[test]
fn built_images_are_read_as_qemu_img_reads_them() {
    let data = pattern(5 * 65536);
    judge("cloop", &cloop(&data), &data, true);
    let mut sparse = data.clone();
    let image = bochs(&mut sparse);
    judge("bochs", &image, &sparse, true);
    let mut gaps = data.clone();
    let image = dmg(&mut gaps, &[1, 0x8000_0005, 0, 2]);
    judge("dmg", &image, &gaps, true);
    let mut gaps = data;
    let image = dmg(&mut gaps, &[0x8000_0004, 0x8000_0006, 1]);
    judge("dmg", &image, &gaps, false);
}
