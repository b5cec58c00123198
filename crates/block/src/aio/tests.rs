use super::*;
use rustix::fs::{Mode, OFlags};

fn file(flags: OFlags) -> (tempfile::TempDir, Held) {
    let dir = tempfile::tempdir().unwrap();
    let flags = flags | OFlags::RDWR | OFlags::CREATE;
    let fd = rustix::fs::open(dir.path().join("f"), flags, Mode::from_raw_mode(0o600)).unwrap();
    (dir, Arc::new(fd))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn many(kind: Aio, file: Held) {
    let one = |index: u64| {
        let file = file.clone();
        async move {
            let engine = here(kind).unwrap();
            let mut buffer = engine.buffer(4096);
            buffer.data_mut().fill(index as u8);
            let (buffer, count) =
                engine.run(file.clone(), Operation::Write, index * 4096, buffer).await.unwrap();
            assert_eq!(count, 4096);
            engine.give_back(buffer);
            let (buffer, count) =
                engine.run(file, Operation::Read, index * 4096, engine.buffer(4096)).await.unwrap();
            assert_eq!((count, buffer.data()[4095]), (4096, index as u8));
        }
    };
    // Far more than the queue has entries.
    let tasks: Vec<_> = (0..1000).map(|index| tokio::spawn(one(index))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    let engine = here(kind).unwrap();
    engine.run(file.clone(), Operation::Sync, 0, engine.buffer(0)).await.unwrap();
    let (_, count) = engine.run(file, Operation::Read, 1000 * 4096, engine.buffer(4096)).await.unwrap();
    assert_eq!(count, 0, "past the end");
}

#[test]
fn more_requests_than_entries_all_end() {
    let (_dir, plain) = file(OFlags::empty());
    runtime().block_on(many(Aio::IoUring, plain));
    let (_dir, direct) = file(OFlags::DIRECT);
    // A second runtime on this thread: the first one's engine is no longer driven.
    runtime().block_on(many(Aio::IoUring, direct.clone()));
    runtime().block_on(many(Aio::Native, direct));
}

#[test]
fn requests_that_all_end_at_once_are_all_told_of() {
    const COUNT: u64 = 1000;
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let pipe: Held = Arc::new(reader);
    runtime().block_on(async move {
        let read = || {
            let pipe = pipe.clone();
            async move {
                let engine = here(Aio::IoUring).unwrap();
                engine.run(pipe, Operation::Read, 0, engine.buffer(1)).await.unwrap().1
            }
        };
        let tasks: Vec<_> = (0..COUNT).map(|_| tokio::spawn(read())).collect();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert_eq!(rustix::io::write(&writer, &[1; COUNT as usize]).unwrap(), COUNT as usize);
        for task in tasks {
            let count = tokio::time::timeout(std::time::Duration::from_secs(20), task).await;
            assert_eq!(count.expect("a request that ended is told of").unwrap(), 1);
        }
    });
}

#[test]
fn errors_of_the_kernel_come_back() {
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let pipe: Held = Arc::new(reader);
    for kind in [Aio::IoUring, Aio::Native] {
        let pipe = pipe.clone();
        runtime().block_on(async move {
            let engine = here(kind).unwrap();
            let failed = engine.run(pipe, Operation::Write, 0, engine.buffer(512)).await;
            assert_eq!(failed.err().and_then(|why| why.raw_os_error()), Some(libc::EBADF), "{kind:?}");
        });
    }
}

#[test]
fn a_queue_dropped_with_requests_under_way_waits_for_them() {
    // A read from an empty pipe ends only when its other end is closed, some time later.
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let pipe: Held = Arc::new(reader);
    let closer = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        drop(writer);
    });
    let begin = std::time::Instant::now();
    let (mut queue, _fd) = Queue::uring().unwrap();
    let (done, mut outcome) = oneshot::channel();
    let buffer = buffer::Pool::default().take(512);
    queue.start(Call { file: pipe, operation: Operation::Read, offset: 0, buffer }, done);
    assert!(queue.turn().is_empty());
    drop(queue);
    assert!(begin.elapsed().as_millis() >= 80);
    assert!(outcome.try_recv().is_err(), "nobody is told");
    closer.join().unwrap();
}
