//! What the disk commands refuse, and with which class and words: one table a command. Whatever
//! is refused leaves the machine as it was.

mod exports;
mod graph;
mod jobs;
mod snapshots;
mod transactions;

use serde_json::{Value, json};
use testkit::{Bench, Images};

/// `d`: top.qcow2 (node `top`) over mid.qcow2 over base.qcow2; `r`: raw; `q`: qcow2; `ro`: raw,
/// read-only; `cd`: an empty CD drive (device `cd0`); `hd`: a disk (device `hd0`); `none`:
/// nothing. Nodes without device: `t` of the size of `r` and `q` (8 MiB), `small`, and `over`,
/// an image without backing file.
fn bench() -> Bench {
    let images = Images::new();
    images.create("base.qcow2", "8M", &[]);
    images.io("base.qcow2", &["write -P 1 0 1M"]);
    images.overlay("mid.qcow2", "base.qcow2");
    images.overlay("top.qcow2", "mid.qcow2");
    for name in ["r.raw", "ro.raw", "t.raw", "q.qcow2", "over.qcow2", "free.qcow2", "free.raw"] {
        images.create(name, "8M", &[]);
    }
    images.create("small.raw", "4M", &[]);
    let top = format!(
        "if=none,id=d,driver=qcow2,node-name=top,file.filename={},file.node-name=top-file,\
         backing.node-name=mid,backing.backing.node-name=base",
        images.path("top.qcow2")
    );
    let drive = |id: &str, file: &str, more: &str| {
        let driver = file.rsplit('.').next().unwrap_or_default();
        format!("if=none,id={id},driver={driver},node-name={id}n,file.filename={}{more}", images.path(file))
    };
    let (r, q) = (drive("r", "r.raw", ""), drive("q", "q.qcow2", ""));
    let ro = drive("ro", "ro.raw", ",read-only=on");
    let mut args = Vec::new();
    for one in [&top, &r, &q, &ro, "if=none,id=cd", "if=none,id=hd,driver=null-co,node-name=hdn"] {
        args.extend(["-drive", one]);
    }
    args.extend(["-drive", "if=none,id=none", "-device", "ide-cd,drive=cd,id=cd0"]);
    args.extend(["-device", "virtio-blk-pci,drive=hd,id=hd0"]);
    let mut bench = Bench::start(images, &args);
    bench.open("t", "t.raw", json!({}));
    bench.open("small", "small.raw", json!({}));
    bench.open("over", "over.qcow2", json!({"backing": null}));
    bench
}

/// A string that begins with `@` names an image.
fn placed(bench: &Bench, value: &Value) -> Value {
    match value {
        Value::String(text) => match text.strip_prefix('@') {
            Some(name) => bench.images.path(name).into(),
            None => value.clone(),
        },
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), placed(bench, value))).collect(),
        Value::Array(list) => list.iter().map(|value| placed(bench, value)).collect(),
        _ => value.clone(),
    }
}

/// What must not change. How much of the host's disk an image takes may: a file was made.
fn state(bench: &mut Bench) -> Value {
    let mut all = json!([
        bench.run("query-named-block-nodes", json!({"flat": true})),
        bench.run("query-block", Value::Null),
        bench.run("query-jobs", Value::Null),
        bench.run("query-block-exports", Value::Null),
        bench.run("x-debug-query-block-graph", Value::Null)["edges"].as_array().map(Vec::len),
    ]);
    forget_sizes(&mut all);
    all
}

fn forget_sizes(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("actual-size");
            if map.get("format").is_some_and(|format| format == "file") {
                // An image's file does not shrink again.
                map.remove("virtual-size");
            }
            map.values_mut().for_each(forget_sizes);
        }
        Value::Array(list) => list.iter_mut().for_each(forget_sizes),
        _ => {}
    }
}

/// Rows of arguments (over those that all share) and what the command answers: the class, where
/// it is not GenericError, and the text, `@` for the folder of the images.
#[track_caller]
fn refuses(bench: &mut Bench, command: &str, shared: Value, rows: &[(Value, &str)]) {
    let before = state(bench);
    for (more, text) in rows {
        let mut arguments = shared.clone();
        for (key, value) in more.as_object().unwrap() {
            arguments[key] = value.clone();
        }
        let arguments = placed(bench, &arguments);
        let classed = ["DeviceNotFound: ", "DeviceNotActive: "].iter().any(|class| text.starts_with(class));
        let wanted = if classed { text.to_string() } else { format!("GenericError: {text}") };
        let said = bench.refused(command, arguments.clone());
        assert_eq!(said, wanted.replace('@', &bench.images.path("")), "{command} {arguments}");
    }
    assert_eq!(state(bench), before, "after {command}");
}

const NO_DEVICE: &str = "DeviceNotFound: Device 'x' not found";
const NO_LOOKUP: &str = "Cannot find device='x' nor node-name='x'";
const NO_NODE: &str = "Cannot find device='' nor node-name='x'";
const NO_MEDIUM: &str = "Device 'cd' has no medium";
