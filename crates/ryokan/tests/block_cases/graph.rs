//! Group D of the commands: media, disks, nodes.

use super::{NO_DEVICE, NO_LOOKUP, NO_MEDIUM, NO_NODE, bench, refuses};
use serde_json::json;

#[test]
fn media() {
    let mut bench = bench();
    let b = &mut bench;
    refuses(
        b,
        "eject",
        json!({}),
        &[
            (json!({"device": "x"}), NO_DEVICE),
            (json!({"id": "x"}), NO_DEVICE),
            (json!({"device": "top"}), "DeviceNotFound: Device 'top' not found"),
            (json!({}), "Need exactly one of 'device' and 'id'"),
            (json!({"device": "cd", "id": "cd0"}), "Need exactly one of 'device' and 'id'"),
            (json!({"device": "hd"}), "Device 'hd' is not removable"),
            (json!({"device": "hd", "force": true}), "Device 'hd' is not removable"),
            (json!({"device": "hd", "force": 1}), "Invalid parameter type for 'force', expected: bool"),
        ],
    );
    refuses(
        b,
        "change",
        json!({"device": "cd", "target": "@ro.raw"}),
        &[
            (json!({"device": "x"}), NO_DEVICE),
            (json!({"arg": "x"}), "Invalid block format 'x'"),
            (json!({"target": "@x"}), "Could not open '@x': No such file or directory"),
            (json!({"target": "foo:bar"}), "Unknown protocol 'foo'"),
            (json!({"target": "@free.raw", "arg": "qcow2"}), "Image is not in qcow2 format"),
            (json!({"device": "hd"}), "Device 'hd' is not removable"),
            (json!({"device": "vnc"}), "VNC display not active"),
            (json!({"device": "vnc", "target": "password"}), "VNC display not active"),
        ],
    );
    refuses(
        b,
        "blockdev-change-medium",
        json!({"id": "cd0", "filename": "@ro.raw"}),
        &[
            (json!({"id": "x"}), NO_DEVICE),
            (json!({"format": "x"}), "Unknown driver 'x'"),
            (json!({"filename": "@x"}), "Could not open '@x': No such file or directory"),
            (json!({"id": "hd0"}), "Device 'hd0' is not removable"),
        ],
    );
    refuses(
        b,
        "blockdev-insert-medium",
        json!({"id": "cd0", "node-name": "rn"}),
        &[
            (json!({"id": "x"}), NO_DEVICE),
            (json!({"node-name": "x"}), "Node 'x' not found"),
            (json!({}), "Node 'rn' is already in use"),
            (json!({"node-name": "t"}), "Tray of device 'cd0' is not open"),
        ],
    );
    for command in ["blockdev-open-tray", "blockdev-close-tray", "blockdev-remove-medium"] {
        let rows = [(json!({"id": "x"}), NO_DEVICE), (json!({"id": "hd0"}), "Device 'hd0' is not removable")];
        refuses(b, command, json!({}), &rows);
    }
    assert!(!b.vm.qmp.take_events().contains(&"DEVICE_TRAY_MOVED".to_string()));
    bench.quit();
}

#[test]
fn disks() {
    let mut bench = bench();
    let b = &mut bench;
    refuses(
        b,
        "block_resize",
        json!({"size": 8 << 20}),
        &[
            (json!({}), "Cannot find device='' nor node-name=''"),
            (json!({"device": "x"}), "Cannot find device='x' nor node-name=''"),
            (json!({"device": "x", "size": -1}), "Cannot find device='x' nor node-name=''"),
            (json!({"node-name": "x"}), NO_NODE),
            (json!({"device": "r", "size": -1}), "Parameter 'size' expects a >0 size"),
            (json!({"node-name": "top-file"}), "The feature 'resize' is not enabled"),
            (json!({"node-name": "base"}), "The feature 'resize' is not enabled"),
            (json!({"device": "cd"}), NO_MEDIUM),
            (json!({"device": "ro"}), "Image is read-only"),
            (json!({"device": "hd"}), "Image format driver does not support resize"),
            (json!({"device": "q", "size": 1000}), "The new size must be a multiple of 512"),
            (json!({"device": "r", "size": 1.5}), "Invalid parameter type for 'size', expected: int"),
        ],
    );
    let long = "a".repeat(1024);
    let too_long = format!("Could not change backing file to '{long}': No space left on device");
    refuses(
        b,
        "change-backing-file",
        json!({"device": "d", "image-node-name": "top", "backing-file": "y"}),
        &[
            (json!({"device": "x"}), NO_DEVICE),
            (json!({"image-node-name": "x"}), NO_NODE),
            (json!({"device": "cd"}), NO_MEDIUM),
            (
                json!({"image-node-name": "base"}),
                "not allowing backing file change on an image without a backing file",
            ),
            (
                json!({"device": "q", "image-node-name": "mid"}),
                "'q' and image file are not in the same chain",
            ),
            (json!({"backing-file": long}), &too_long),
        ],
    );
    let both = "bps/iops/max total values and read/write values cannot be used at the same time";
    let range = "bps/iops/max values must be within [0, 1000000000000000]";
    refuses(
        b,
        "block_set_io_throttle",
        json!({"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}),
        &[
            (json!({"device": "x"}), NO_DEVICE),
            (json!({"id": "x"}), NO_DEVICE),
            (json!({"device": "cd"}), "Device has no medium"),
            (json!({"device": "r", "bps": 1, "bps_rd": 1}), both),
            (json!({"device": "r", "iops": 1, "iops_wr": 1}), both),
            (json!({"device": "r", "iops": 1, "iops_max": 1, "iops_rd_max": 1}), both),
            (json!({"device": "r", "bps": -1}), range),
            (json!({"device": "r", "iops_wr": -1}), range),
            (json!({"device": "r", "bps": 1, "bps_max": -1}), range),
            (json!({"device": "r", "bps": 1000000000000001_i64}), range),
            (
                json!({"device": "r", "bps": 9, "bps_max": 5}),
                "bps_max/iops_max cannot be lower than bps/iops",
            ),
            (json!({"device": "r", "bps_max": 5}), "bps_max/iops_max require corresponding bps/iops values"),
            (json!({"device": "r", "bps": 9, "bps_max_length": 0}), "the burst length cannot be 0"),
            (json!({"device": "r", "bps": 9, "bps_max_length": 2}), "burst length set without burst rate"),
            (json!({"device": "r", "iops_size": 9}), "iops size requires an iops value to be set"),
        ],
    );
    refuses(
        b,
        "block_passwd",
        json!({"password": "y"}),
        &[
            (json!({"device": "x"}), "Cannot find device='x' nor node-name=''"),
            (json!({"node-name": "x"}), NO_NODE),
            (json!({"device": "q"}), "Node 'q' is not encrypted"),
            (json!({"node-name": "over"}), "Node 'over' is not encrypted"),
            (json!({"device": "cd"}), NO_MEDIUM),
        ],
    );
    refuses(
        b,
        "block-set-write-threshold",
        json!({"node-name": "rn", "write-threshold": 1}),
        &[
            (json!({"node-name": "x"}), "Device 'x' not found"),
            // No node, though a device is called so.
            (json!({"node-name": "r"}), "Device 'r' not found"),
            (json!({"write-threshold": -1}), "Parameter 'write-threshold' expects uint64_t"),
        ],
    );
    refuses(
        b,
        "blockdev-del",
        json!({}),
        &[
            (json!({"node-name": "x"}), "Failed to find node with node-name='x'"),
            (json!({"node-name": "rn"}), "Node rn is in use"),
            (json!({"node-name": "top-file"}), "Node top-file is not owned by the monitor"),
        ],
    );
    bench.quit();
}

#[test]
fn nodes() {
    let mut bench = bench();
    let b = &mut bench;
    let free = json!({"driver": "file", "filename": "@free.qcow2"});
    refuses(
        b,
        "blockdev-add",
        json!({"node-name": "n"}),
        &[
            (json!({}), "Parameter 'driver' is missing"),
            (json!({"driver": "x"}), "Unknown driver 'x'"),
            (json!({"driver": "raw"}), "A block device must be specified for \"file\""),
            (json!({"driver": "raw", "file": "x"}), NO_LOOKUP),
            (json!({"driver": "file"}), "The 'file' block driver requires a file name"),
            (json!({"driver": "file", "filename": "@x"}), "Could not open '@x': No such file or directory"),
            (json!({"driver": "null-co", "node-name": "rn"}), "Duplicate nodes with node-name='rn'"),
            (json!({"driver": "null-co", "node-name": "r"}), "node-name=r is conflicting with a device id"),
            (json!({"driver": "null-co", "node-name": "1a"}), "Invalid node-name: '1a'"),
            (json!({"driver": "null-co", "node-name": "a".repeat(32)}), "Node name too long"),
            (
                json!({"driver": "null-co", "detect-zeroes": "unmap"}),
                "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
            ),
            (
                json!({"driver": "file", "filename": "@free.qcow2", "aio": "native"}),
                "aio=native was specified, but it requires cache.direct=on, which was not specified.",
            ),
            (
                json!({"driver": "file", "filename": "@free.qcow2", "y": 1}),
                "Block protocol 'file' doesn't support the option 'y'",
            ),
            (
                json!({"driver": "qcow2", "file": free, "y": 1}),
                "Block format 'qcow2' does not support the option 'y'",
            ),
            (
                json!({"driver": "qcow2", "file": free, "backing": "x"}),
                "Could not open backing file: Cannot find device='x' nor node-name='x'",
            ),
            (
                json!({"driver": "qcow2", "file": free, "cache-size": 1, "l2-cache-size": 2}),
                "l2-cache-size may not exceed cache-size",
            ),
            (
                json!({"driver": "qcow2", "file": free, "cache-size": 1, "refcount-cache-size": 2}),
                "refcount-cache-size may not exceed cache-size",
            ),
            (json!({"driver": "qcow2", "file": "t"}), "Image is not in qcow2 format"),
            (
                json!({"driver": "bochs", "file": "t"}),
                "Driver 'bochs' can only be used for read-only devices",
            ),
            (
                json!({"driver": "blkdebug", "image": "t", "set-state": [{"event": "read_aio"}]}),
                "Parameter 'new_state' is missing",
            ),
            (
                json!({"driver": "quorum", "children": ["t"], "vote-threshold": 2}),
                "threshold may not exceed children count",
            ),
            (json!({"driver": "blkverify", "test": "t"}), "A block device must be specified for \"raw\""),
            (json!({"driver": "throttle", "file": "t"}), "Parameter 'throttle-group' is missing"),
        ],
    );
    // The form of 2015.
    let rows = [
        (json!({}), "Block device needs an ID"),
        (json!({"driver": "null-co"}), "Block device needs an ID"),
        (json!({"id": "r", "driver": "null-co"}), "Device with id 'r' already exists"),
        (json!({"id": "1", "driver": "null-co"}), "Invalid device name"),
        (json!({"id": "rn", "driver": "null-co"}), "Device name 'rn' conflicts with an existing node name"),
        (
            json!({"id": "i", "driver": "null-co", "node-name": "r"}),
            "node-name=r is conflicting with a device id",
        ),
        (json!({"id": "i", "driver": "null-co", "node-name": "rn"}), "Duplicate nodes with node-name='rn'"),
        (json!({"id": "i"}), "Must specify either driver or file"),
        (json!({"id": "i", "file": free}), "Parameter 'driver' is missing"),
        (json!({"id": "i", "driver": "x"}), "Unknown driver 'x'"),
        (json!({"id": "i", "driver": "qcow2"}), "A block device must be specified for \"file\""),
        (json!({"id": "i", "driver": "qcow2", "file": "x"}), NO_LOOKUP),
        (json!({"id": "i", "driver": "file"}), "The 'file' block driver requires a file name"),
        (json!({"id": "i", "driver": "null-co", "rerror": "y"}), "'y' invalid read error action"),
        (
            json!({"id": "i", "driver": "raw", "file": {"id": "k", "driver": "file", "filename": "@free.qcow2"}}),
            "Block protocol 'file' doesn't support the option 'id'",
        ),
    ];
    for (options, text) in rows {
        refuses(b, "blockdev-add", json!({"options": options}), &[(json!({}), text)]);
    }
    // A string is the name of a node there, not of a file.
    b.run("blockdev-add", json!({"options": {"id": "i", "driver": "raw", "file": "t"}}));
    let medium = b.medium("i");
    let file = medium["file"].as_str().unwrap();
    assert!(file.contains("t.raw"), "{file}");
    bench.quit();
}

#[test]
fn io_threads_of_nodes() {
    let mut bench = bench();
    refuses(
        &mut bench,
        "x-blockdev-set-iothread",
        json!({"node-name": "t", "iothread": null}),
        &[
            (json!({"node-name": "x"}), "Failed to find node with node-name='x'"),
            (json!({"iothread": "x"}), "Cannot find iothread x"),
            (json!({"iothread": 1}), "Invalid parameter type for 'iothread', expected: string or null"),
            (
                json!({"node-name": "rn"}),
                "Node rn is associated with a BlockBackend and could be in use (use force=true to override \
                 this check)",
            ),
        ],
    );
    bench.run("object-add", json!({"qom-type": "iothread", "id": "io"}));
    bench.run("x-blockdev-set-iothread", json!({"node-name": "t", "iothread": "io"}));
    bench.run("x-blockdev-set-iothread", json!({"node-name": "t", "iothread": null}));
    bench.run("x-blockdev-set-iothread", json!({"node-name": "rn", "iothread": "io", "force": true}));
}

#[test]
fn words_of_creation() {
    let mut bench = bench();
    refuses(
        &mut bench,
        "blockdev-create",
        json!({"job-id": "j"}),
        &[
            (
                json!({"options": {"driver": "vmdk", "file": "t", "size": 512, "adapter-type": "IDE"}}),
                "Parameter 'adapter-type' does not accept value 'IDE'",
            ),
            (
                json!({"options": {"driver": "vmdk", "file": "t", "size": 512, "adapter-type": 1}}),
                "Invalid parameter type for 'options.adapter-type', expected: string",
            ),
            (
                json!({"options": {"driver": "qcow2", "file": "t", "size": 512, "version": "v1"}}),
                "Parameter 'version' does not accept value 'v1'",
            ),
        ],
    );
}

/// Over QMP a string is a string, and neither a number nor a boolean.
#[test]
fn types() {
    let mut bench = bench();
    let b = &mut bench;
    let file = json!({"driver": "file", "filename": "@free.raw"});
    refuses(
        b,
        "blockdev-add",
        json!({"driver": "raw", "node-name": "n", "file": file}),
        &[
            (json!({"read-only": "on"}), "Invalid parameter type for 'read-only', expected: boolean"),
            (json!({"read-only": 1}), "Invalid parameter type for 'read-only', expected: boolean"),
            (json!({"size": "512"}), "Invalid parameter type for 'size', expected: integer"),
            (json!({"size": 1.5}), "Invalid parameter type for 'size', expected: integer"),
            (json!({"node-name": 5}), "Invalid parameter type for 'node-name', expected: string"),
            (json!({"node-name": null}), "Invalid parameter type for 'node-name', expected: string"),
            (json!({"driver": 5}), "Invalid parameter type for 'driver', expected: string"),
            (json!({"discard": "on"}), "Parameter 'discard' does not accept value 'on'"),
            (
                json!({"cache": {"direct": "on"}}),
                "Invalid parameter type for 'cache.direct', expected: boolean",
            ),
            (json!({"cache": "none"}), "Invalid parameter type for 'cache', expected: object"),
            (json!({"file": 5}), "Invalid parameter type for 'file', expected: BlockdevRef"),
            (json!({"file": null}), "Invalid parameter type for 'file', expected: BlockdevRef"),
            (
                json!({"file": {"driver": "file", "filename": "@free.raw", "read-only": "on"}}),
                "Invalid parameter type for 'file.read-only', expected: boolean",
            ),
            (
                json!({"file": {"driver": "file", "filename": 5}}),
                "Invalid parameter type for 'file.filename', expected: string",
            ),
            (
                json!({"driver": "qcow2", "file": {"driver": "file", "filename": "@free.qcow2"}, "backing": 5}),
                "Could not open backing file: Invalid parameter type for 'backing', expected: BlockdevRefOrNull",
            ),
            (
                json!({"driver": "qcow2", "file": {"driver": "file", "filename": "@free.qcow2"},
                    "lazy-refcounts": "on"}),
                "Invalid parameter type for 'lazy-refcounts', expected: boolean",
            ),
        ],
    );
    let rule = |rule: serde_json::Value| json!({"driver": "blkdebug", "image": file, "inject-error": [rule]});
    refuses(
        b,
        "blockdev-add",
        json!({"node-name": "n"}),
        &[
            (
                json!({"driver": "quorum", "vote-threshold": 1,
                    "children": ["t", {"driver": "null-co", "read-zeroes": "on"}]}),
                "Invalid parameter type for 'children[1].read-zeroes', expected: boolean",
            ),
            (
                rule(json!({"event": "none", "errno": "5"})),
                "Invalid parameter type for 'inject-error[0].errno', expected: integer",
            ),
            (
                rule(json!({"event": "none", "once": "on"})),
                "Invalid parameter type for 'inject-error[0].once', expected: boolean",
            ),
            (rule(json!("none")), "Invalid parameter type for 'inject-error[0]', expected: object"),
            (
                json!({"driver": "nbd", "server": {"type": "inet", "host": "localhost", "port": 10809}}),
                "Invalid parameter type for 'server.port', expected: string",
            ),
        ],
    );
    refuses(
        b,
        "blockdev-reopen",
        json!({}),
        &[
            (
                json!({"options": [{"driver": "raw", "node-name": "t", "file": "t-file", "read-only": "on"}]}),
                "Invalid parameter type for 'options[0].read-only', expected: boolean",
            ),
            (
                json!({"options": [{"driver": "raw", "node-name": "t", "read-only": false, "file":
                    {"driver": "file", "node-name": "t-file", "filename": "@t.raw", "read-only": "on"}}]}),
                "Invalid parameter type for 'options[0].file.read-only', expected: boolean",
            ),
        ],
    );
    let made = json!({"id": "o"});
    refuses(
        b,
        "object-add",
        made,
        &[
            (
                json!({"qom-type": "iothread", "poll-max-ns": "5"}),
                "Invalid parameter type for 'poll-max-ns', expected: integer",
            ),
            (
                json!({"qom-type": "throttle-group", "limits": {"iops-total": "5"}}),
                "Invalid parameter type for 'limits.iops-total', expected: integer",
            ),
            (
                json!({"qom-type": "throttle-group", "limits": "x"}),
                "Invalid parameter type for 'limits', expected: object",
            ),
            (
                json!({"qom-type": "memory-backend-ram", "size": 1 << 20, "share": "on"}),
                "Invalid parameter type for 'share', expected: boolean",
            ),
            (json!({"qom-type": "secret", "data": 5}), "Invalid parameter type for 'data', expected: string"),
        ],
    );
    bench.quit();
}
