use super::*;
use crate::graph::tests::graph;
use crate::options::Options;
use base::Mutex;
use serde_json::json;

#[test]
fn output_is_the_customary_one() {
    let graph = graph();
    let at = graph.clone();
    let node = graph.block_on(async move {
        let options = json!({"driver": "null-co", "node-name": "n", "size": 1 << 20, "read-zeroes": true});
        at.add(Options::json(options)).await.unwrap()
    });
    let backend = Backend::new(&graph, crate::Setup { name: "d".into(), ..Default::default() }).unwrap();
    backend.insert(&node).unwrap();
    let run_line = |line: &str| {
        let text = Arc::new(Mutex::new(String::new()));
        let (sink, disk, line) = (text.clone(), backend.clone(), line.to_string());
        let out: Out = Arc::new(move |more: &str| sink.lock().push_str(more));
        graph.block_on(async move {
            run(&disk, &line, &out).await;
            run(&disk, "aio_flush", &out).await;
        });
        text.lock().clone()
    };
    let text = run_line("write -P 0x22 4k 8k");
    assert!(text.starts_with("wrote 8192/8192 bytes at offset 4096\n8 KiB, 1 ops; 00.0"), "{text}");
    let text = run_line("aio_read -P 1 0 512");
    assert!(text.starts_with("Pattern verification failed at offset 0, 512 bytes\nread 512/512"), "{text}");
    assert_eq!(run_line("bogus"), "command \"bogus\" not found\n");
    assert_eq!(run_line("write"), "bad argument count 0 to write, expected at least 2 arguments\n");
    assert_eq!(run_line("write 1M 512"), "write failed: Input/output error\n");
    assert_eq!(
        run_line("read 1x 2"),
        "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- 1x\n"
    );
    let text = run_line("discard -x 1 2");
    let usage = "discard [-Cq] off len -- discards a number of bytes at a specified offset";
    assert_eq!(text, format!("discard: invalid option -- 'x'\n{usage}\n"));
    assert_eq!(run_line("length"), "1 MiB\n");
    assert_eq!(run_line("map"), "1 MiB (0x100000) bytes     allocated at offset 0 bytes (0x0)\n");
    assert_eq!(run_line("write -q 0 1k"), "");
    assert_eq!(run_line("break pwritev A"), "Could not set breakpoint: Operation not supported\n");
}
