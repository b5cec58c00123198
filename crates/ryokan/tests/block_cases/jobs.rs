//! Group E: block jobs.

use super::{NO_DEVICE, NO_LOOKUP, NO_MEDIUM, NO_NODE, bench, refuses};
use serde_json::json;

#[test]
fn jobs() {
    let mut bench = bench();
    let b = &mut bench;
    let name = |text: &'static str| (json!({"job-id": "1j"}), text);
    refuses(
        b,
        "block-stream",
        json!({"device": "d", "job-id": "j"}),
        &[
            name("Invalid job ID '1j'"),
            (json!({"device": "x"}), NO_LOOKUP),
            (json!({"device": "cd"}), NO_MEDIUM),
            (json!({"base": "@x"}), "Can't find '@x' in the backing chain"),
            (json!({"base-node": "x"}), NO_NODE),
            (json!({"base-node": "qn"}), "Node 'qn' is not a backing image of 'd'"),
            (json!({"base-node": "top"}), "Node 'top' is not a backing image of 'd'"),
            (
                json!({"base": "@base.qcow2", "base-node": "base"}),
                "'base' and 'base-node' cannot be specified at the same time",
            ),
            (json!({"bottom": "qn"}), "Node 'qn' is not in a chain starting from 'd'"),
            (json!({"backing-file": "y"}), "backing file specified, but streaming the entire chain"),
            (json!({"speed": -1}), "Parameter 'speed' expects a non-negative value"),
            (
                json!({"filter-node-name": "mid"}),
                "Could not create node: Duplicate nodes with node-name='mid'",
            ),
        ],
    );
    refuses(
        b,
        "block-commit",
        json!({"device": "d", "job-id": "j"}),
        &[
            name("Invalid job ID '1j'"),
            // The device is looked at first: clients find out by it what there is.
            (json!({"device": "x", "top": "@x", "speed": -1}), NO_DEVICE),
            (json!({"top": "@x"}), "Top image file @x not found"),
            (json!({"top-node": "x"}), NO_NODE),
            (json!({"top-node": "qn"}), "'qn' is not in this backing file chain"),
            (json!({"base": "@x"}), "Can't find '@x' in the backing chain"),
            (json!({"base-node": "qn"}), "'qn' is not in this backing file chain"),
            // A base is looked for below the top.
            (
                json!({"top": "@mid.qcow2", "base": "@mid.qcow2"}),
                "Can't find '@mid.qcow2' in the backing chain",
            ),
            (json!({"device": "q"}), "cannot commit an image into itself"),
            (json!({"backing-file": "y"}), "'backing-file' specified, but 'top' is the active layer"),
            (json!({"speed": -1}), "Parameter 'speed' expects a non-negative value"),
            (json!({"filter-node-name": "mid"}), "Duplicate nodes with node-name='mid'"),
            (json!({"device": "mid"}), "Need a root block node"),
        ],
    );
    refuses(
        b,
        "drive-backup",
        json!({"device": "r", "job-id": "j", "target": "@new.raw", "sync": "full"}),
        &[
            name("Invalid job ID '1j'"),
            (json!({"device": "x"}), NO_LOOKUP),
            (json!({"device": "cd"}), NO_MEDIUM),
            (json!({"format": "x"}), "Invalid block format 'x'"),
            (json!({"format": "dmg"}), "Format driver 'dmg' does not support image creation"),
            (json!({"mode": "existing"}), "Could not open '@new.raw': No such file or directory"),
            (json!({"target": "@no/x"}), "Could not create '@no/x': No such file or directory"),
            (
                json!({"sync": "dirty-bitmap"}),
                "must provide a valid bitmap name for \"dirty-bitmap\" sync mode",
            ),
            (json!({"sync": "dirty-bitmap", "bitmap": "x"}), "Bitmap 'x' could not be found"),
            (json!({"speed": -1}), "Parameter 'speed' expects a non-negative value"),
            (
                json!({"mode": "existing", "target": "@free.qcow2", "format": "raw"}),
                "Source and target image have different sizes",
            ),
        ],
    );
    refuses(
        b,
        "blockdev-backup",
        json!({"device": "r", "job-id": "j", "target": "t", "sync": "full"}),
        &[
            (json!({"device": "x"}), NO_LOOKUP),
            (json!({"target": "x"}), NO_LOOKUP),
            (json!({"target": "r"}), "Source and target cannot be the same"),
            (json!({"device": "cd"}), NO_MEDIUM),
            (json!({"target": "cd"}), NO_MEDIUM),
            (json!({"target": "small"}), "Source and target image have different sizes"),
            (json!({"target": "ro"}), "Block node is read-only"),
        ],
    );
    let size = "Parameter 'granularity' expects a value in range [512B, 64MB]";
    let mirror = [
        (json!({"device": "x"}), NO_LOOKUP),
        (json!({"device": "cd"}), NO_MEDIUM),
        (json!({"granularity": 1}), size),
        (json!({"granularity": 128 << 20}), size),
        (json!({"granularity": 1000}), "Parameter 'granularity' expects a power of 2"),
        (json!({"sync": "incremental"}), "Sync mode 'incremental' not supported"),
        (json!({"sync": "dirty-bitmap"}), "Sync mode 'dirty-bitmap' not supported"),
        (json!({"speed": -1}), "Parameter 'speed' expects a non-negative value"),
        (json!({"buf-size": -1}), "Invalid parameter 'buf-size'"),
    ];
    let shared = json!({"device": "r", "job-id": "j", "target": "t", "sync": "full"});
    refuses(b, "blockdev-mirror", shared.clone(), &mirror);
    refuses(
        b,
        "blockdev-mirror",
        shared.clone(),
        &[
            (json!({"target": "x"}), NO_LOOKUP),
            (json!({"target": "rn"}), "Can't mirror node into itself"),
            (json!({"target": "base"}), "Node 'base' is busy: node is used as backing hd of 'mid'"),
            (json!({"replaces": "x"}), "Node name 'x' not found"),
            (json!({"filter-node-name": "mid"}), "Duplicate nodes with node-name='mid'"),
        ],
    );
    let shared = json!({"device": "r", "job-id": "j", "target": "@new.raw", "sync": "full"});
    refuses(b, "drive-mirror", shared.clone(), &mirror);
    refuses(
        b,
        "drive-mirror",
        shared,
        &[
            (json!({"format": "x"}), "Invalid block format 'x'"),
            (json!({"format": "dmg"}), "Format driver 'dmg' does not support image creation"),
            (json!({"target": "@no/x"}), "Could not create '@no/x': No such file or directory"),
            (json!({"mode": "existing", "target": "@x"}), "Could not open '@x': No such file or directory"),
            (
                json!({"replaces": "rn"}),
                "a node-name must be provided when replacing a named node of the graph",
            ),
            (json!({"replaces": "x", "node-name": "n"}), "Node name 'x' not found"),
            (
                json!({"replaces": "top", "node-name": "n", "device": "small"}),
                "cannot replace image with a mirror image of different size",
            ),
            (json!({"node-name": "rn"}), "Duplicate nodes with node-name='rn'"),
        ],
    );
    bench.quit();
}

/// A mirror never writes to what has another size: it fails as it begins.
#[test]
fn mirrors_of_another_size_fail() {
    let mut bench = bench();
    bench.images.create("big.qcow2", "16M", &[]);
    bench.open("big", "big.qcow2", json!({}));
    let failed = "COMPLETED: Source and target image have different sizes";
    for target in ["small", "big"] {
        let asked = json!({"device": "r", "job-id": "j", "target": target, "sync": "full"});
        bench.run("blockdev-mirror", asked);
        assert!(bench.story("j", "null").contains(&failed.to_string()));
    }
    let (file, size) = (bench.images.path("other.raw"), 4 << 20);
    bench.images.create("other.raw", "4M", &[]);
    let asked = json!({"device": "r", "job-id": "j", "target": file, "mode": "existing", "format": "raw",
        "sync": "full"});
    bench.run("drive-mirror", asked);
    assert!(bench.story("j", "null").contains(&failed.to_string()));
    assert_eq!(bench.node("small")["image"]["virtual-size"], json!(size));
    assert_eq!(std::fs::metadata(&file).unwrap().len(), size);
    bench.quit();
}

/// Commands on jobs: without the job, while it runs, while it is paused.
#[test]
fn steering() {
    let mut bench = bench();
    let b = &mut bench;
    for command in ["pause", "resume", "cancel", "complete", "set-speed"] {
        let shared = if command == "set-speed" { json!({"speed": 1}) } else { json!({}) };
        let rows = ["x", "r"].map(|device| {
            (json!({"device": device}), format!("DeviceNotActive: Block job '{device}' not found"))
        });
        let rows = rows.each_ref().map(|(arguments, text)| (arguments.clone(), text.as_str()));
        refuses(b, &format!("block-job-{command}"), shared, &rows);
    }
    for command in ["pause", "resume", "cancel", "complete", "finalize", "dismiss"] {
        refuses(b, &format!("job-{command}"), json!({"id": "x"}), &[(json!({}), "Job not found")]);
    }
    let asked = json!({"device": "r", "job-id": "j", "target": "t", "sync": "none"});
    b.run("blockdev-backup", asked);
    // Its first change is not to be taken for one of a refused command.
    while b.run("query-jobs", json!({}))[0]["total-progress"] == 0 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let cannot =
        |verb: &str, state: &str| format!("Job 'j' in state '{state}' cannot accept command verb '{verb}'");
    for verb in ["finalize", "dismiss"] {
        let text = cannot(verb, "running");
        for command in [format!("job-{verb}"), format!("block-job-{verb}")] {
            refuses(b, &command, json!({"id": "j"}), &[(json!({}), &text)]);
        }
    }
    let text = cannot("complete", "running");
    refuses(b, "block-job-complete", json!({"device": "j"}), &[(json!({}), &text)]);
    refuses(
        b,
        "block-job-set-speed",
        json!({"device": "j"}),
        &[(json!({"speed": -1}), "Parameter 'speed' expects a non-negative value")],
    );
    // What the job works on belongs to it.
    let rooted = "Need a root block node";
    let busy = "Node 'r' is busy: block device is in use by block job: backup";
    refuses(b, "block_resize", json!({"size": 4096}), &[(json!({"device": "r"}), "Device 'r' is in use")]);
    b.run("blockdev-add", json!({"driver": "copy-on-read", "node-name": "over-r", "file": "r"}));
    let through = (json!({"node-name": "over-r"}), "Device 'over-r' is in use");
    refuses(b, "block_resize", json!({"size": 4096}), &[through]);
    b.run("blockdev-del", json!({"node-name": "over-r"}));
    refuses(
        b,
        "eject",
        json!({}),
        &[(json!({"device": "r"}), busy), (json!({"device": "r", "force": true}), busy)],
    );
    refuses(b, "blockdev-snapshot-internal-sync", json!({"name": "s"}), &[(json!({"device": "r"}), rooted)]);
    let shared = json!({"job-id": "k", "device": "r", "sync": "full"});
    refuses(b, "drive-mirror", shared.clone(), &[(json!({"target": "@new.raw"}), rooted)]);
    refuses(b, "blockdev-backup", shared, &[(json!({"target": "over"}), busy)]);
    b.run("block-job-pause", json!({"device": "j"}));
    // The first time is its beginning.
    b.story("j", "paused");
    b.story("j", "paused");
    let paused = "The block job for device 'j' is currently paused";
    refuses(b, "block-job-cancel", json!({"device": "j"}), &[(json!({}), paused)]);
    b.run("block-job-cancel", json!({"device": "j", "force": true}));
    assert!(b.story("j", "null").contains(&"CANCELLED".to_string()));
    bench.quit();
}
