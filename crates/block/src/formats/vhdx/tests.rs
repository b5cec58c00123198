use super::super::tests::{close, content, open};
use super::*;
use crate::formats::qcow2::tests::tool;
use crate::graph::tests::graph;

/// A log of two entries that were written but not carried out: the table word of the first
/// block, and zeroes over what was in the way.
fn dirty_log(image: &mut [u8], start: u64, sequence: u64, guid: &[u8; 16]) {
    let bat = Fields(&image[REGIONS[0] as usize..]).le64(16 + 16) as usize;
    let mut sector = image[bat..bat + SECTOR as usize].to_vec();
    let data_at = (image.len() as u64 - MIB) | 6;
    put(&mut sector, 0, &data_at.to_le_bytes());
    let size = image.len() as u64;
    let entry = |sequence: u64, descriptor: &[u8], data: Option<&[u8]>| {
        let mut out = vec![0; SECTOR as usize];
        put(&mut out, 0, b"loge");
        put(&mut out, 16, &sequence.to_le_bytes());
        put(&mut out, 24, &1u32.to_le_bytes());
        put(&mut out, 32, guid);
        put(&mut out, 48, &size.to_le_bytes());
        put(&mut out, 56, &size.to_le_bytes());
        put(&mut out, 64, descriptor);
        put(&mut out, 64 + 24, &sequence.to_le_bytes());
        if let Some(data) = data {
            let mut body = data.to_vec();
            put(&mut body, 0, b"data");
            put(&mut body, 4, &((sequence >> 32) as u32).to_le_bytes());
            put(&mut body, 4092, &(sequence as u32).to_le_bytes());
            out.extend(body);
        }
        let len = out.len() as u32;
        put(&mut out, 8, &len.to_le_bytes());
        seal(&mut out);
        out
    };
    let mut write = vec![0; 32];
    put(&mut write, 0, b"desc");
    put(&mut write, 4, &sector[4092..]);
    put(&mut write, 8, &sector[..8]);
    put(&mut write, 16, &(bat as u64).to_le_bytes());
    let mut zero = vec![0; 32];
    put(&mut zero, 0, b"zero");
    put(&mut zero, 8, &8192u64.to_le_bytes());
    put(&mut zero, 16, &(size - MIB + 4096).to_le_bytes());
    let place = |inner: u64| (MIB + inner % MIB) as usize;
    let tail = (start as u32).to_le_bytes();
    let mut first = entry(sequence, &write, Some(&sector));
    put(&mut first, 12, &tail);
    seal(&mut first);
    put(image, place(start), &first);
    let mut second = entry(sequence + 1, &zero, None);
    put(&mut second, 12, &tail);
    seal(&mut second);
    put(image, place(start + 2 * SECTOR), &second);
    let mut header = image[HEADERS[1] as usize..][..SECTOR as usize].to_vec();
    let newest = HEADERS.map(|at| Fields(&image[at as usize..]).le64(8)).into_iter().max().unwrap();
    put(&mut header, 8, &(newest + 1).to_le_bytes());
    put(&mut header, 48, guid);
    seal(&mut header);
    put(image, HEADERS[1] as usize, &header);
}

/// An image of 4 MiB whose log says that its first MiB is 0x5a, but for 8 KiB of zeroes.
fn with_dirty_log(dir: &std::path::Path, start: u64) -> Vec<u8> {
    let path = dir.join("new.vhdx");
    tool("qemu-img", &["create", "-q", "-f", "vhdx", "-o", "block_size=1M", path.to_str().unwrap(), "4M"]);
    let mut image = std::fs::read(path).unwrap();
    image.resize(image.len().next_multiple_of(MIB as usize), 0);
    image.extend(vec![0x5a; MIB as usize]);
    dirty_log(&mut image, start, 0x1_0000_0005, &[7; 16]);
    image
}

#[test]
fn a_log_is_replayed_as_qemu_img_does() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (ours, theirs) = (dir.path().join("a.vhdx"), dir.path().join("b.vhdx"));
    let mut expected = vec![0; 4 << 20];
    expected[..1 << 20].fill(0x5a);
    expected[4096..12288].fill(0);
    // The second log goes around the end; qemu-img starts over at the head of such a log.
    for (start, by_them) in [(0, true), (MIB - 2 * SECTOR, false)] {
        let image = with_dirty_log(dir.path(), start);
        std::fs::write(&ours, &image).unwrap();
        std::fs::write(&theirs, &image).unwrap();
        let graph = graph();
        let options = serde_json::json!({"driver": "vhdx", "read-only": true, "file": {"driver": "file", "filename": ours}});
        let at = graph.clone();
        let refused = graph.block_on(async move {
            at.open(crate::Options::json(options), crate::Settings::default()).await.map(drop)
        });
        assert!(refused.unwrap_err().text.contains("contains a log that needs to be replayed"));
        let pin = open(&graph, &ours, "vhdx", false);
        close(&graph, pin);
        assert!(content(&graph, &ours, "vhdx") == expected, "replayed by us");
        assert!(tool("qemu-img", &["check", ours.to_str().unwrap()]).contains("No errors"));
        if by_them {
            tool("qemu-img", &["check", "-q", "-r", "all", theirs.to_str().unwrap()]);
            assert!(content(&graph, &theirs, "vhdx") == expected, "replayed by qemu-img");
        }
    }
}

#[test]
fn crc_of_the_castagnoli_polynomial() {
    // RFC 3720, B.4: 32 bytes of zeroes.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
}
