//! Runs in a guest: writes to a disk as fast as it can what [`record::Plan`] says, and verifies
//! all of it on command.
//!
//! - `writer run DISKS SEED THREADS BLOCKS [zeros] [durable] [pace=MICROSECONDS]` writes until it
//!   is told to pause. DISKS are names in `/dev` with commas between them; each request goes to
//!   one after the other. With `durable` each thread flushes after every eight requests and says
//!   `DURABLE THREAD REQUESTS.` then. It answers at the socket `/tmp/DISKS`.
//! - `writer DISKS COMMAND` sends a command there and prints the answer:
//!   - `pause`: no request is under way, all are flushed: `PAUSED REQUESTS,... DIGEST`;
//!   - `verify`: as `pause`, then the disk is read and compared: `GOOD REQUESTS,... DIGEST`, or
//!     `BAD` with the reason;
//!   - `resume`: `WRITING`;
//!   - `quit`: it pauses and ends;
//!   - `state`: `STATE REQUESTS,... ` and errors met so far.
//! - `writer eject CD` opens the tray of a CD drive.

#[path = "../record.rs"]
mod record;

use record::{BLOCK, LARGEST, Plan, Record};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

type Result<T> = std::result::Result<T, String>;

/// `O_DIRECT` of x86-64.
const O_DIRECT: i32 = 0o40000;
/// Requests between two flushes of a thread.
const FLUSH_EVERY: u64 = 8;

struct Shared {
    disks: Vec<File>,
    plan: Plan,
    durable: bool,
    pace: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    record: Record,
    pause: bool,
    /// Threads that are at a request.
    busy: usize,
    errors: Vec<String>,
}

fn main() -> std::process::ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["run", disks, seed, threads, blocks, ref flags @ ..] => run(disks, [seed, threads, blocks], flags),
        ["eject", cd] => eject(cd),
        [disks, command] => ask(disks, command),
        _ => Err(
            "usage: writer run DISKS SEED THREADS BLOCKS [zeros] [durable] [pace=US] | writer DISKS COMMAND | writer eject CD"
                .into(),
        ),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(text) => {
            println!("BAD {text}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn eject(cd: &str) -> Result<()> {
    unsafe extern "C" {
        fn ioctl(file: i32, request: u64, ...) -> i32;
    }
    /// Without it the drive locks its door when it is opened.
    const O_NONBLOCK: i32 = 0o4000;
    /// Linux, include/uapi/linux/cdrom.h.
    const CDROMEJECT: u64 = 0x5309;
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(format!("/dev/{cd}"));
    let file = file.map_err(|e| format!("{cd}: {e}"))?;
    // SAFETY: the request takes no argument and the descriptor is open.
    match unsafe { ioctl(file.as_raw_fd(), CDROMEJECT) } {
        0 => Ok(()),
        _ => Err(format!("{cd}: {}", std::io::Error::last_os_error())),
    }
}

fn ask(disks: &str, command: &str) -> Result<()> {
    let mut socket = UnixStream::connect(format!("/tmp/{disks}")).map_err(|e| e.to_string())?;
    writeln!(socket, "{command}").map_err(|e| e.to_string())?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).map_err(|e| e.to_string())?;
    println!("{answer}");
    Ok(())
}

fn run(names: &str, numbers: [&str; 3], flags: &[&str]) -> Result<()> {
    let [seed, threads, blocks] = numbers.map(|text| text.parse().unwrap_or(0));
    let plan = Plan { seed, threads: threads as usize, blocks, zeros: flags.contains(&"zeros") };
    if threads == 0 || plan.part() < LARGEST {
        return Err("no threads, or too few blocks".into());
    }
    let pace = flags.iter().find_map(|flag| flag.strip_prefix("pace=")?.parse().ok()).unwrap_or(0);
    let open = |name| {
        let path = format!("/dev/{name}");
        let opened = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(&path);
        opened.map_err(|e| format!("{path}: {e}"))
    };
    let shared = Arc::new(Shared {
        disks: names.split(',').map(open).collect::<Result<_>>()?,
        plan,
        durable: flags.contains(&"durable"),
        pace: Duration::from_micros(pace),
        state: Mutex::new(State { record: Record::new(plan), pause: false, busy: 0, errors: Vec::new() }),
        changed: Condvar::new(),
    });
    let listener = UnixListener::bind(format!("/tmp/{names}")).map_err(|e| e.to_string())?;
    println!("STARTED");
    for thread in 0..plan.threads {
        let shared = shared.clone();
        std::thread::spawn(move || shared.write(thread));
    }
    for client in listener.incoming().flatten() {
        let mut line = String::new();
        let _ = BufReader::new(&client).read_line(&mut line);
        if line.trim() == "quit" {
            break;
        }
        let answer = shared.obey(line.trim()).unwrap_or_else(|text| format!("BAD {text}"));
        let _ = (&client).write_all(answer.as_bytes());
    }
    shared.pause()?;
    std::fs::remove_file(format!("/tmp/{names}")).map_err(|e| e.to_string())
}

/// Memory at an address that `O_DIRECT` takes.
struct Aligned(Vec<u8>);

impl Aligned {
    fn new(size: usize) -> Aligned {
        Aligned(vec![0; size + BLOCK])
    }

    fn bytes(&mut self, size: usize) -> &mut [u8] {
        let skip = self.0.as_ptr().align_offset(BLOCK);
        &mut self.0[skip..skip + size]
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// One thread's requests, until one fails.
    fn write(&self, thread: usize) {
        let mut memory = Aligned::new(LARGEST as usize * BLOCK);
        for number in 1.. {
            let mut state = self.lock();
            while state.pause {
                state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
            }
            state.busy += 1;
            drop(state);
            let done = self.one(thread, number, &mut memory);
            let mut state = self.lock();
            state.busy -= 1;
            self.changed.notify_all();
            if let Err(e) = done {
                state.errors.push(format!("thread {thread}, request {number}: {e}"));
                return;
            }
            drop(state);
            if !self.pace.is_zero() {
                std::thread::sleep(self.pace);
            }
        }
    }

    fn one(&self, thread: usize, number: u64, memory: &mut Aligned) -> std::io::Result<()> {
        let request = self.plan.request(thread, number);
        let bytes = memory.bytes(request.count as usize * BLOCK);
        for (index, block) in (request.first..).zip(bytes.chunks_exact_mut(BLOCK)) {
            match request.zero {
                true => block.fill(0),
                false => self.plan.fill(block, index, number),
            }
        }
        for disk in &self.disks {
            disk.write_all_at(bytes, request.first * BLOCK as u64)?;
        }
        self.lock().record.step(thread);
        if number.is_multiple_of(FLUSH_EVERY) {
            self.flush()?;
            if self.durable {
                println!("DURABLE {thread} {number}.");
            }
        }
        Ok(())
    }

    fn flush(&self) -> std::io::Result<()> {
        self.disks.iter().try_for_each(File::sync_all)
    }

    fn obey(&self, command: &str) -> Result<String> {
        match command {
            "pause" => self.pause().map(|told| format!("PAUSED {told}")),
            "verify" => {
                let told = self.pause()?;
                self.verify()?;
                Ok(format!("GOOD {told}"))
            }
            "resume" => {
                self.lock().pause = false;
                self.changed.notify_all();
                Ok("WRITING".into())
            }
            "state" => {
                let state = self.lock();
                Ok(format!("STATE {} {:?}", tell(&state.record.done), state.errors))
            }
            _ => Err(format!("unknown command {command}")),
        }
    }

    /// Lets no more requests begin, waits for those under way, flushes.
    fn pause(&self) -> Result<String> {
        let mut state = self.lock();
        state.pause = true;
        while state.busy > 0 {
            state = self.changed.wait(state).unwrap_or_else(|e| e.into_inner());
        }
        if let Some(error) = state.errors.first() {
            return Err(error.clone());
        }
        self.flush().map_err(|e| format!("flush: {e}"))?;
        Ok(format!("{} {}", tell(&state.record.done), state.record.digest()))
    }

    fn verify(&self) -> Result<()> {
        const PIECE: usize = 64;
        let mut memory = Aligned::new(PIECE * BLOCK);
        let state = self.lock();
        for disk in &self.disks {
            for (at, numbers) in state.record.last.chunks(PIECE).enumerate() {
                let first = (at * PIECE) as u64;
                let bytes = memory.bytes(numbers.len() * BLOCK);
                let read = disk.read_exact_at(bytes, first * BLOCK as u64);
                read.map_err(|e| format!("read of block {first}: {e}"))?;
                self.compare(first, bytes, numbers)?;
            }
        }
        Ok(())
    }

    fn compare(&self, first: u64, bytes: &[u8], numbers: &[u64]) -> Result<()> {
        for ((index, block), wanted) in (first..).zip(bytes.chunks_exact(BLOCK)).zip(numbers) {
            let found = self.plan.parse(block, index)?;
            if found != *wanted {
                return Err(format!("block {index} is of request {found} and should be of {wanted}"));
            }
        }
        Ok(())
    }
}

fn tell(done: &[u64]) -> String {
    done.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}
