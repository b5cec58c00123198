//! What `qemu-img bench` measures, of this crate: requests on one image from within the process.
//!
//!     block-bench FORMAT AIO DIRECT(0|1) read|write SIZE STEP DEPTH COUNT FILE
//!
//! Prints seconds. Requests go to 0, STEP, 2 STEP ..., modulo the size of the image.

#![allow(missing_docs)]

use base::clock::{Clock, Kind};
use base::notice::Notices;
use block::{Backend, Graph, Options, Setup, WriteFlags};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

fn open(graph: &Arc<Graph>, format: &str, aio: &str, direct: bool, file: &str) -> Backend {
    let options = json!({
        "node-name": "n", "driver": format, "cache": {"direct": direct}, "discard": "unmap",
        "file": {"driver": "file", "filename": file, "aio": aio, "cache": {"direct": direct}},
    });
    let at = graph.clone();
    let node = graph.block_on(async move { at.add(Options::json(options)).await }).expect("the image opens");
    let backend = Backend::new(graph, Setup { name: "d".into(), ..Setup::default() }).expect("a back end");
    backend.insert(&node).expect("a medium");
    backend
}

struct Load {
    write: bool,
    size: usize,
    step: u64,
    count: u64,
    next: AtomicU64,
}

/// What buffers begin at a multiple of, as those of `qemu-img bench` do.
const PAGE: usize = 4096;

/// One request; the buffer comes back.
async fn request(backend: Backend, write: bool, size: usize, offset: u64, mut buffer: Vec<u8>) -> Vec<u8> {
    let disk = backend.access(write, size as u64).await.expect("a medium");
    let start = buffer.as_ptr().align_offset(PAGE);
    let data = &mut buffer[start..start + size];
    match write {
        true => disk.write(offset, data, WriteFlags::empty()).await,
        false => disk.read(offset, data).await,
    }
    .expect("no I/O error");
    drop(disk);
    buffer
}

async fn work(backend: Backend, load: Arc<Load>) {
    let mut buffer = vec![0x5a; load.size + PAGE];
    let places = backend.size() - load.size as u64 + 1;
    loop {
        let turn = load.next.fetch_add(1, Ordering::Relaxed);
        if turn >= load.count {
            return;
        }
        let offset = (turn * load.step) % places / load.size as u64 * load.size as u64;
        // As device front ends do: each request is a task, where the back end runs it.
        let request = request(backend.clone(), load.write, load.size, offset, buffer);
        buffer = backend.spawn(load.write, load.size as u64, request).await.expect("a request ends");
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let graph = Graph::new(Notices::new(), Clock::new(Kind::Realtime), base::fd::FdSets::new());
    match args[..] {
        [format, aio, direct, kind, size, step, depth, count, file] => {
            let number = |text: &str| text.parse::<u64>().expect("a number");
            let backend = open(&graph, format, aio, direct == "1", file);
            let (write, size) = (kind == "write", number(size) as usize);
            let (step, count) = (number(step), number(count));
            let load = Arc::new(Load { write, size, step, count, next: AtomicU64::new(0) });
            let depth = number(depth);
            let handle = graph.main_thread().handle().clone();
            let begin = Instant::now();
            graph.block_on(async move {
                let tasks: Vec<_> =
                    (0..depth).map(|_| handle.spawn(work(backend.clone(), load.clone()))).collect();
                for task in tasks {
                    task.await.expect("the load ran");
                }
            });
            println!("{:.6}", begin.elapsed().as_secs_f64());
        }
        _ => panic!("see the head of block-bench.rs"),
    }
    let at = graph.clone();
    graph.block_on(async move { at.shutdown().await });
}
