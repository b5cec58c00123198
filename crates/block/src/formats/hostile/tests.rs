use super::super::built;
use super::*;
use std::time::{Duration, Instant};
use testkit::Dice;

/// Disk size of the images that are mutated: metadata are most of them.
const DISK: usize = 192 << 10;

/// More than any format may take while an image of a few MiB is open.
const MEMORY_LIMIT: u64 = 512 << 20;

fn put_file(id: u64, bytes: Vec<u8>) -> Bytes {
    let file = Arc::new(Mutex::new(bytes));
    FILES.lock().insert(id, file.clone());
    file
}

/// A small valid image with some data in it.
fn valid(graph: &Arc<Graph>, format: &'static str, id: u64) -> Vec<u8> {
    let mut data = vec![0; 4 * 65536];
    data.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 300) as u8);
    match format {
        "raw" => return data,
        "bochs" => return built::bochs(&mut data),
        "cloop" => return built::cloop(&data),
        "dmg" => return built::dmg(&mut data, &[0x8000_0004, 0x8000_0005, 0x8000_0006, 1]),
        _ => {}
    }
    let file = put_file(id, Vec::new());
    let mut options = json!({"driver": format, "size": DISK, "file": {"driver": "test-memory", "id": id}});
    if format == "vhdx" {
        options["block-size"] = (1 << 20).into();
    }
    if format == "vpc" {
        options["force-size"] = true.into();
    }
    let at = graph.clone();
    graph.block_on(async move {
        at.create(Options::json(options)).await.unwrap();
        let options = json!({"driver": format, "file": {"driver": "test-memory", "id": id}});
        let pin = at.open(Options::json(options), Settings::default()).await.unwrap();
        for offset in [0, DISK as u64 / 2, DISK as u64 - 5000] {
            pin.write(offset, &data[..5000], WriteFlags::empty()).await.unwrap();
        }
        drop(pin);
        at.collect().await;
    });
    file.lock().clone()
}

/// Where something stands in the image that is not the pattern of the data: a few bytes
/// around every change from zero.
fn interesting(image: &[u8]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..image.len().min(1024)).collect();
    for block in (0..image.len()).step_by(16) {
        let end = (block + 16).min(image.len());
        if image[block..end].iter().any(|byte| *byte != 0) && places.len() < 40_000 {
            places.extend(block..end);
        }
    }
    places
}

/// Changes a few bytes; returns what they were.
fn mutate(image: &mut [u8], places: &[usize], dice: &mut Dice) -> Vec<(usize, u8)> {
    let mut undo = Vec::new();
    for _ in 0..1 + dice.below(4) {
        let at = match dice.below(8) {
            0 => dice.below(image.len() as u64) as usize,
            1..=4 => dice.below(600.min(image.len() as u64)) as usize,
            _ => places[dice.below(places.len() as u64) as usize],
        };
        let width = [1, 1, 2, 4, 8][dice.below(5) as usize];
        let fill = [dice.roll() as u8, 0, 0xff, 0x7f, 0x80][dice.below(5) as usize];
        for at in at..(at + width).min(image.len()) {
            undo.push((at, image[at]));
            image[at] = if dice.below(3) == 0 { dice.roll() as u8 } else { fill };
        }
    }
    undo
}

/// The peak of memory this process has asked for, in bytes.
fn limit_memory() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmData:")).unwrap();
    let now: u64 = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    let maximum = getrlimit(Resource::Data).maximum;
    // An allocation past it ends the process.
    setrlimit(Resource::Data, Rlimit { current: Some(now * 1024 + MEMORY_LIMIT), maximum }).unwrap();
}

fn attack(graph: &Arc<Graph>, number: u64, format: &'static str, rounds: u32) -> (u32, Duration) {
    let valid = valid(graph, format, number);
    if let Some(dir) = std::env::var_os("IMAGE_SEEDS") {
        let seed = [&[number as u8][..], &valid].concat();
        std::fs::write(std::path::Path::new(&dir).join(format), seed).unwrap();
    }
    let places = interesting(&valid);
    let file = put_file(number, valid.clone());
    let mut dice = Dice::new(0x5eed + number);
    let (mut opened, start) = (0, Instant::now());
    let at = graph.clone();
    assert!(graph.block_on(async move { exercise(&at, format, number, false).await }), "{format} is valid");
    for round in 0..rounds {
        let write = round % 16 == 0;
        let undo = mutate(&mut file.lock(), &places, &mut dice);
        let mut sealed = Vec::new();
        if format == "vhdx" {
            let mut bytes = file.lock();
            sealed = bytes[..320 << 10].to_vec();
            super::super::vhdx::reseal(&mut bytes);
        }
        let at = graph.clone();
        opened += u32::from(graph.block_on(async move { exercise(&at, format, number, write).await }));
        let mut bytes = file.lock();
        if write {
            bytes.clone_from(&valid);
            continue;
        }
        bytes[..sealed.len()].copy_from_slice(&sealed);
        undo.iter().rev().for_each(|(at, byte)| bytes[*at] = *byte);
        assert_eq!(bytes.len(), valid.len(), "a read-only image was changed");
    }
    assert!(*file.lock() == valid, "a read-only image was changed");
    (opened, start.elapsed())
}

#[test]
fn mutants_of_every_format_do_no_harm() {
    let graph = crate::graph::tests::graph();
    let rounds = std::env::var("MUTANTS").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    limit_memory();
    for (number, format) in FORMATS.iter().enumerate() {
        let (opened, took) = attack(&graph, number as u64, format, rounds);
        eprintln!("{format}: {opened} of {rounds} mutants opened, {took:?}");
        assert!(opened > rounds / 50, "{format}: hardly a mutant gets past the header");
    }
}

#[test]
fn what_fuzzing_found_stays_an_error() {
    for format in 0..FORMATS.len() as u8 {
        fuzz_entry(&[format]);
        fuzz_entry(&[format | 0x80, 0]);
        fuzz_entry(&[&[format][..], &[0xff; 4096]].concat());
    }
}
