use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where lines go.
#[derive(Default)]
pub enum Sink {
    #[default]
    Stderr,
    File(File),
}

static SINK: Mutex<Sink> = Mutex::new(Sink::Stderr);
static TIMESTAMPS: AtomicBool = AtomicBool::new(false);

/// Opens (`%d` stands for the process id) and truncates a log file, or goes back to standard
/// error.
pub fn set_file(path: Option<&str>) -> io::Result<()> {
    let sink = match path {
        Some(path) => Sink::File(File::create(path.replace("%d", &std::process::id().to_string()))?),
        None => Sink::Stderr,
    };
    *SINK.lock().unwrap_or_else(PoisonError::into_inner) = sink;
    Ok(())
}

/// Whether each line begins with process id and time (`-msg timestamp=on`).
pub fn set_timestamps(on: bool) {
    TIMESTAMPS.store(on, Ordering::Relaxed);
}

/// Writes a line whole. A sink that cannot be written must not stop anything.
pub fn write_line(what: fmt::Arguments<'_>) {
    let mut line = String::new();
    if TIMESTAMPS.load(Ordering::Relaxed) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        line = format!("{}@{}.{:06}:", std::process::id(), now.as_secs(), now.subsec_micros());
    }
    line.push_str(&what.to_string());
    line.truncate(line.trim_end().len());
    line.push('\n');
    let mut sink = SINK.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = match &mut *sink {
        Sink::Stderr => io::stderr().write_all(line.as_bytes()),
        Sink::File(file) => file.write_all(line.as_bytes()),
    };
}
