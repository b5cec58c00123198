use super::*;
use crate::formats::qcow2::tests::tool;
use crate::graph::{Settings, tests::graph};
use crate::options::Options;
use serde_json::json;

/// The whole disk as the graph reads it.
fn disk(options: serde_json::Value) -> base::Result<Vec<u8>> {
    let graph = graph();
    let at = graph.clone();
    graph.block_on(async move {
        let pin =
            at.open(Options::json(options), Settings { read_only: true, ..Settings::default() }).await?;
        let mut data = vec![0; pin.size() as usize];
        pin.read(0, &mut data).await?;
        Ok(data)
    })
}

#[test]
fn names_of_files_are_taken_apart() {
    let name = Name::parse("fat:floppy:12:/tmp/a:b");
    assert_eq!(name, Name { rw: false, floppy: true, bits: Some(12), dir: "/tmp/a:b".into() });
    assert!(Name::parse("fat:rw:16:x").rw);
}

#[test]
fn a_directory_is_a_sound_file_system() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("sub/deeper still")).unwrap();
    let long = "a rather long name.with two.txt";
    let content: Vec<u8> = (0..100_000u32).map(|at| (at / 77) as u8).collect();
    std::fs::write(tree.join("HELLO.TXT"), b"hello\n").unwrap();
    std::fs::write(tree.join(long), &content).unwrap();
    std::fs::write(tree.join("sub/deeper still/empty"), b"").unwrap();
    for at in 0..40 {
        std::fs::write(tree.join(format!("sub/file number {at:02}")), format!("{at}")).unwrap();
    }
    let kinds = [
        (json!({}), 63),
        (json!({"fat-type": 12}), 63),
        (json!({"fat-type": 32}), 63),
        (json!({"floppy": true}), 0),
        (json!({"floppy": true, "fat-type": 12}), 0),
    ];
    for (mut options, first) in kinds {
        options["driver"] = "vvfat".into();
        options["dir"] = tree.to_str().into();
        let data = disk(options.clone()).unwrap();
        let volume = dir.path().join("volume");
        std::fs::write(&volume, &data[first * 512..]).unwrap();
        let name = volume.to_str().unwrap();
        let text = tool("fsck.fat", &["-n", "-v", name]);
        assert!(
            !text.contains("differ") && !text.contains("wrong") && !text.contains("orrupt"),
            "{options}: {text}"
        );
        let out = dir.path().join("out");
        let _ = std::fs::remove_file(&out);
        tool("mcopy", &["-i", name, &format!("::{long}"), out.to_str().unwrap()]);
        assert!(std::fs::read(&out).unwrap() == content, "{options}");
        let list = tool("mdir", &["-b", "-/", "-i", name]);
        assert!(
            list.contains("::/sub/deeper still/empty") && list.contains("::/sub/file number 39"),
            "{list}"
        );
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = dir.path().to_str().unwrap();
    let why = disk(json!({"driver": "vvfat", "dir": path, "rw": true})).unwrap_err();
    assert_eq!(why.text, "Unable to set VVFAT to 'rw' when drive is read-only");
    assert!(disk(json!({"driver": "vvfat", "dir": path, "fat-type": 8})).is_err());
    assert!(disk(json!({"driver": "vvfat", "dir": "/nonexistent/x"})).is_err());
    let big = std::fs::File::create(dir.path().join("big")).unwrap();
    big.set_len(2 << 20).unwrap();
    let why = disk(json!({"filename": format!("fat:floppy:12:{path}")})).unwrap_err();
    assert!(why.text.starts_with("Directory does not fit in FAT12"), "{}", why.text);
}

mod writing;
