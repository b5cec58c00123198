//! Group F: snapshots and bitmaps.

use super::{NO_DEVICE, NO_LOOKUP, NO_MEDIUM, NO_NODE, bench, refuses};
use serde_json::json;
use testkit::Bench;

#[test]
fn snapshots_and_bitmaps() {
    let mut bench = bench();
    let b = &mut bench;
    refuses(
        b,
        "blockdev-snapshot-sync",
        json!({"snapshot-file": "@new.qcow2"}),
        &[
            (json!({}), "Cannot find device='' nor node-name=''"),
            (json!({"device": "x"}), "Cannot find device='x' nor node-name=''"),
            (json!({"node-name": "x"}), NO_NODE),
            (json!({"device": "r", "format": "x"}), "Invalid block format 'x'"),
            (json!({"node-name": "rn"}), "New overlay node-name missing"),
            (json!({"node-name": "rn", "snapshot-node-name": "qn"}), "New overlay node-name already in use"),
            (json!({"device": "r", "snapshot-node-name": "r"}), "New overlay node-name already in use"),
            (json!({"device": "cd"}), NO_MEDIUM),
            (json!({"device": "none"}), "Device 'none' has no medium"),
            (
                json!({"device": "r", "snapshot-file": "@no/x"}),
                "Could not create '@no/x': No such file or directory",
            ),
            (json!({"device": "r", "format": "raw"}), "The overlay does not support backing images"),
            (
                json!({"device": "r", "mode": "existing"}),
                "Could not open '@new.qcow2': No such file or directory",
            ),
            (
                json!({"node-name": "base", "snapshot-node-name": "n"}),
                "Node 'base' is busy: node is used as backing hd of 'mid'",
            ),
        ],
    );
    refuses(
        b,
        "blockdev-snapshot",
        json!({"node": "qn", "overlay": "over"}),
        &[
            (json!({"node": "x"}), NO_LOOKUP),
            (json!({"overlay": "x"}), NO_LOOKUP),
            (json!({"node": "cd"}), NO_MEDIUM),
            (json!({"overlay": "d"}), "The overlay is already in use"),
            (json!({"overlay": "qn"}), "The overlay is already in use"),
            (json!({"overlay": "t"}), "The overlay does not support backing images"),
            (json!({"node": "over"}), "Making 'over' a backing child of 'over' would create a cycle"),
        ],
    );
    refuses(
        b,
        "blockdev-snapshot-internal-sync",
        json!({"name": "s"}),
        &[
            (json!({"device": "x"}), NO_DEVICE),
            (json!({"device": "cd"}), NO_MEDIUM),
            (json!({"device": "ro"}), "Device 'ro' is read only"),
            (
                json!({"device": "r"}),
                "Block format 'raw' used by device 'r' does not support internal snapshots",
            ),
            (json!({"device": "q", "name": ""}), "Name is empty"),
        ],
    );
    b.run("blockdev-snapshot-internal-sync", json!({"device": "q", "name": "s"}));
    refuses(
        b,
        "blockdev-snapshot-internal-sync",
        json!({"device": "q"}),
        &[(json!({"name": "s"}), "Snapshot with name 's' already exists on device 'q'")],
    );
    let none = |id: &str, name: &str| {
        format!("Snapshot with id '{id}' and name '{name}' does not exist on device 'q'")
    };
    let (no_name, no_id) = (none("(null)", "x"), none("9", "(null)"));
    let (neither, mixed) = (none("9", "s"), none("1", "x"));
    refuses(
        b,
        "blockdev-snapshot-delete-internal-sync",
        json!({"device": "q"}),
        &[
            (json!({"device": "x", "name": "s"}), NO_DEVICE),
            (json!({}), "Name or id must be provided"),
            (json!({"device": "cd", "name": "s"}), NO_MEDIUM),
            (
                json!({"device": "r", "name": "s"}),
                "Block format 'raw' used by device 'r' does not support internal snapshot deletion",
            ),
            (json!({"name": "x"}), &no_name),
            (json!({"id": "9"}), &no_id),
            (json!({"id": "9", "name": "s"}), &neither),
            (json!({"id": "1", "name": "x"}), &mixed),
        ],
    );
    bitmaps(b);
    bench.quit();
}

fn bitmaps(b: &mut Bench) {
    b.run("block-dirty-bitmap-add", json!({"node": "r", "name": "b"}));
    b.run("block-dirty-bitmap-add", json!({"node": "small", "name": "s"}));
    let long = "y".repeat(1024);
    let (too_long, power) =
        (format!("Bitmap name too long: {long}"), "Granularity must be power of 2 and at least 512");
    refuses(
        b,
        "block-dirty-bitmap-add",
        json!({"node": "r", "name": "c"}),
        &[
            (json!({"name": ""}), "Bitmap name cannot be empty"),
            (json!({"node": "x", "name": ""}), "Bitmap name cannot be empty"),
            (json!({"node": "x"}), NO_LOOKUP),
            (json!({"node": "cd"}), NO_MEDIUM),
            (json!({"granularity": 0}), power),
            (json!({"granularity": 256}), power),
            (json!({"granularity": 513}), power),
            (json!({"granularity": -1}), "Parameter 'granularity' expects uint32_t"),
            (json!({"name": "b"}), "Bitmap already exists: b"),
            (json!({"name": long}), &too_long),
        ],
    );
    let rows = [
        (json!({"node": "x"}), "Node 'x' not found"),
        (json!({"name": "x"}), "Dirty bitmap 'x' not found"),
        (json!({"name": ""}), "Dirty bitmap '' not found"),
        (json!({"y": 1}), "Invalid parameter 'y'"),
    ];
    for verb in ["remove", "clear", "enable", "disable"] {
        refuses(b, &format!("block-dirty-bitmap-{verb}"), json!({"node": "r", "name": "b"}), &rows);
        for (more, text) in &rows {
            let mut data = json!({"node": "r", "name": "b"});
            more.as_object().unwrap().iter().for_each(|(key, value)| data[key] = value.clone());
            let action = json!([{"type": format!("block-dirty-bitmap-{verb}"), "data": data}]);
            refuses(b, "transaction", json!({"actions": action}), &[(json!({}), *text)]);
        }
    }
    refuses(
        b,
        "block-dirty-bitmap-merge",
        json!({"node": "r", "target": "b", "bitmaps": []}),
        &[
            (json!({"node": "x"}), "Node 'x' not found"),
            (json!({"target": "x"}), "Dirty bitmap 'x' not found"),
            (json!({"bitmaps": ["x"]}), "Dirty bitmap 'x' not found"),
            (json!({"bitmaps": [{"node": "x", "name": "b"}]}), "Node 'x' not found"),
            (json!({"bitmaps": [{"node": "r"}]}), "Parameter 'name' is missing"),
            (json!({"bitmaps": [{"node": "r", "name": "b", "y": 1}]}), "Invalid parameter 'y'"),
            (
                json!({"bitmaps": [{"node": "small", "name": "s"}]}),
                "Bitmaps are of different sizes (destination size is 8388608 and source size is 4194304) and can't \
                 be merged",
            ),
        ],
    );
    // An incremental backup holds the bitmap.
    b.io("r", "write 0 64k");
    b.run(
        "blockdev-backup",
        json!({"device": "r", "job-id": "j", "target": "t", "sync": "incremental",
        "bitmap": "b", "auto-finalize": false}),
    );
    b.story("j", "pending");
    let held = "Bitmap 'b' is currently in use by another operation and cannot be used";
    for verb in ["remove", "clear", "enable", "disable"] {
        let rows = [(json!({"node": "r", "name": "b"}), held)];
        refuses(b, &format!("block-dirty-bitmap-{verb}"), json!({}), &rows);
    }
    b.run("job-finalize", json!({"id": "j"}));
    b.done("j");
}
