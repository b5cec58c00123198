//! The command language of `qemu-io`, by which people and test suites read and write disks:
//! same words, same output.
//!
//! Output goes to `out` line by line; that of `aio_*` comes when they end.

mod args;
mod io;

use crate::backend::Backend;
use crate::backend::stats::Kind;
use crate::options::Options;
use crate::types::*;
use args::{Words, size_text};
use std::sync::Arc;

/// Where output goes.
pub type Out = Arc<dyn Fn(&str) + Send + Sync>;

/// What is known of a command: its name, how many words follow (`None`: any number), what
/// it is for.
struct Command {
    name: &'static str,
    alias: &'static str,
    least: usize,
    most: Option<usize>,
    usage: &'static str,
    help: &'static str,
}

const fn command(
    name: &'static str,
    alias: &'static str,
    count: (usize, Option<usize>),
    usage: &'static str,
    help: &'static str,
) -> Command {
    Command { name, alias, least: count.0, most: count.1, usage, help }
}

static COMMANDS: &[Command] = &[
    command("aio_flush", "", (0, Some(0)), "", "completes all outstanding aio requests"),
    command(
        "aio_read",
        "",
        (2, None),
        "[-Ciqrv] [-P pattern] off len [len..]",
        "asynchronously reads a number of bytes",
    ),
    command(
        "aio_write",
        "",
        (2, None),
        "[-Cfiqruz] [-P pattern] off len [len..]",
        "asynchronously writes a number of bytes",
    ),
    command("alloc", "a", (1, Some(2)), "offset [count]", "checks if offset is allocated in the file"),
    command(
        "break",
        "",
        (2, Some(2)),
        "event tag",
        "sets a breakpoint on event and tags the stopped request as tag",
    ),
    command("discard", "d", (2, None), "[-Cq] off len", "discards a number of bytes at a specified offset"),
    command("flush", "f", (0, Some(0)), "", "flush all in-core file state to disk"),
    command("help", "?", (0, Some(1)), "[command]", "help for one or all commands"),
    command("info", "i", (0, Some(0)), "", "prints information about the current file"),
    command("length", "l", (0, Some(0)), "", "gets the length of the current file"),
    command("map", "", (0, Some(0)), "", "prints the allocated areas of a file"),
    command(
        "read",
        "r",
        (2, None),
        "[-abCqrv] [-P pattern [-s off] [-l len]] off len",
        "reads a number of bytes at a specified offset",
    ),
    command(
        "readv",
        "rv",
        (2, None),
        "[-Cqrv] [-P pattern] off len [len..]",
        "reads a number of bytes at a specified offset",
    ),
    command("remove_break", "", (1, Some(1)), "tag", "remove a breakpoint by tag"),
    command(
        "reopen",
        "",
        (0, None),
        "[(-r|-w)] [-c cache] [-o options]",
        "reopens an image with new options",
    ),
    command("resume", "", (1, Some(1)), "tag", "resumes the request tagged as tag"),
    command("sleep", "", (1, Some(1)), "", "waits for the given value in milliseconds"),
    command(
        "truncate",
        "t",
        (1, None),
        "[-m prealloc_mode] off",
        "truncates the current file at the given offset",
    ),
    command("wait_break", "", (1, Some(1)), "tag", "waits for the suspension of a request"),
    command(
        "write",
        "w",
        (2, None),
        "[-bcCfnqruz] [-P pattern | -s source_file] off len",
        "writes a number of bytes at a specified offset",
    ),
    command(
        "writev",
        "wv",
        (2, None),
        "[-Cfqr] [-P pattern] off len [len..]",
        "writes a number of bytes at a specified offset",
    ),
];

/// Runs one command line on a disk. What is wrong with the disk rather than the command is
/// returned: it is told where the command came from.
pub async fn run(backend: &Backend, line: &str, out: &Out) -> String {
    let words = args::split(line);
    let Some(command) = find(&words, out) else { return String::new() };
    let writes = ["write", "writev", "aio_write", "discard", "truncate"].contains(&command.name);
    if writes && backend.node().is_some_and(|node| node.is_read_only()) {
        return "Block node is read-only\n".into();
    }
    // It stays lent: requests may go on after the command.
    if writes && let Err(why) = backend.lend() {
        return format!("{}\n", why.text);
    }
    perform(backend, command, words, out).await;
    String::new()
}

/// The command that a line means, if its words are as many as it takes.
fn find(words: &[String], out: &Out) -> Option<&'static Command> {
    let name = words.first()?;
    let Some(command) =
        COMMANDS.iter().find(|one| one.name == name || (!one.alias.is_empty() && one.alias == name))
    else {
        out(&format!("command \"{name}\" not found\n"));
        return None;
    };
    let count = words.len() - 1;
    if count < command.least || command.most.is_some_and(|most| count > most) {
        let expected = match command.most {
            None => format!("expected at least {} arguments", command.least),
            Some(most) if most == command.least => format!("expected {most} arguments"),
            Some(most) => format!("expected between {} and {most} arguments", command.least),
        };
        out(&format!("bad argument count {count} to {name}, {expected}\n"));
        return None;
    }
    Some(command)
}

async fn perform(backend: &Backend, command: &Command, words: Vec<String>, out: &Out) {
    let rest: Vec<String> = words[1..].to_vec();
    let result = match command.name {
        "read" | "readv" | "aio_read" => io::read(backend, command.name, rest, out).await,
        "write" | "writev" | "aio_write" => io::write(backend, command.name, rest, out).await,
        "discard" => io::discard(backend, rest, out).await,
        "help" => help(rest, out),
        _ => other(backend, command.name, rest, out).await,
    };
    if let Err(text) = result {
        out(&format!("{text}\n"));
    }
}

impl Command {
    /// How it is used, in one line.
    fn line(&self) -> String {
        let usage = if self.usage.is_empty() { String::new() } else { format!("{} ", self.usage) };
        format!("{} {usage}-- {}", self.name, self.help)
    }
}

fn usage(name: &str) -> String {
    COMMANDS.iter().find(|one| one.name == name).map(Command::line).unwrap_or_default()
}

type Answer = Result<(), String>;

fn failed(what: &str, error: &std::io::Error) -> String {
    format!("{what} failed: {}", base::failure::strerror(error))
}

fn help(words: Vec<String>, out: &Out) -> Answer {
    let tell = |one: &Command| out(&format!("{}\n", one.line()));
    match words.first() {
        None => {
            COMMANDS.iter().for_each(tell);
            out("\nUse 'help commandname' for extended help.\n");
        }
        Some(name) => match COMMANDS.iter().find(|one| one.name == name || one.alias == name) {
            Some(one) => tell(one),
            None => out(&format!("command {name} not found\n")),
        },
    }
    Ok(())
}

async fn other(backend: &Backend, name: &str, words: Vec<String>, out: &Out) -> Answer {
    match name {
        "flush" => {
            let access = backend.access(true, 0).await.map_err(|error| failed("flush", &error))?;
            access.flush().await.map_err(|error| failed("flush", &error))
        }
        "aio_flush" => {
            let started = backend.stats().start();
            backend.drain().await;
            backend.stats().done(Kind::Flush, 0, started, true);
            Ok(())
        }
        "length" => {
            out(&format!("{}\n", size_text(backend.size() as f64)));
            Ok(())
        }
        "sleep" => {
            let time = words[0].parse().map_err(|_| "sleep: invalid argument".to_string())?;
            tokio::time::sleep(std::time::Duration::from_millis(time)).await;
            Ok(())
        }
        "info" => info(backend, out),
        "map" => map(backend, out).await,
        "alloc" => alloc(backend, &words, out).await,
        "truncate" => truncate(backend, words).await,
        "reopen" => reopen(backend, words).await,
        _ => breakpoint(backend, name, &words).await,
    }
}

fn info(backend: &Backend, out: &Out) -> Answer {
    let Some(node) = backend.node() else { return Err("info: no medium".into()) };
    let told = node.layer().info();
    out(&format!("format name: {}\n", node.driver().name));
    let size = |size: u64| size_text(size as f64);
    let cluster = told.cluster_size.unwrap_or(0);
    out(&format!(
        "cluster size: {}\nvm state offset: {}\n",
        size(cluster),
        size(told.vm_state_offset.unwrap_or(0))
    ));
    Ok(())
}

async fn map(backend: &Backend, out: &Out) -> Answer {
    let size = backend.size();
    let mut at = 0;
    while at < size {
        let access = backend.access(false, 0).await.map_err(|error| failed("map", &error))?;
        let top = access.node();
        let (mut allocated, mut len) = (None, 0);
        while at + len < size {
            let status = top.block_status(at + len, size - at - len).await;
            let status = status.map_err(|error| failed("failed to get allocation", &error))?;
            let (now, run) = (status.flags.contains(StatusFlags::ALLOCATED), status.len);
            if *allocated.get_or_insert(now) != now {
                break;
            }
            len += run;
        }
        let word = if allocated == Some(true) { "    allocated" } else { "not allocated" };
        let (length, offset) = (size_text(len as f64), size_text(at as f64));
        out(&format!("{length} ({len:#x}) bytes {word} at offset {offset} ({at:#x})\n"));
        at += len;
    }
    Ok(())
}

async fn alloc(backend: &Backend, words: &[String], out: &Out) -> Answer {
    let start = args::number(&words[0])?;
    let count = words.get(1).map_or(Ok(512), |word| args::number(word))?;
    let access = backend.access(false, 0).await.map_err(|error| failed("alloc", &error))?;
    let (mut at, mut sum) = (start, 0);
    while at < start + count {
        let status = access
            .block_status(at, start + count - at)
            .await
            .map_err(|error| failed("is_allocated", &error))?;
        if status.flags.contains(StatusFlags::ALLOCATED) {
            sum += status.len.min(start + count - at);
        }
        at += status.len;
    }
    out(&format!("{sum}/{count} bytes allocated at offset {}\n", size_text(start as f64)));
    Ok(())
}

async fn truncate(backend: &Backend, words: Vec<String>) -> Answer {
    let mut words = Words::parse("truncate", words, "", "m")?;
    let preallocation = match words.value('m') {
        None => Preallocation::Off,
        Some(word) => Preallocation::parse(&word).ok_or_else(|| format!("Invalid parameter '{word}'"))?,
    };
    let size = args::number(words.rest.first().ok_or("truncate: missing size")?)?;
    let Some(node) = backend.node() else { return Err("truncate: no medium".into()) };
    node.truncate(size, Truncate { exact: false, preallocation, zero: false }).await.map_err(|why| why.text)
}

async fn reopen(backend: &Backend, words: Vec<String>) -> Answer {
    let mut words = Words::parse("reopen", words, "rw", "co")?;
    let (Some(node), Some(graph)) = (backend.node(), backend.graph()) else {
        return Err("reopen: no medium".into());
    };
    let mut new = match words.value('o') {
        Some(text) => args::options(&text)?,
        None => Options::new(),
    };
    let mut cache = new.take_table("cache").map_err(|why| why.text)?.unwrap_or_default();
    let mut writeback = cache.take_bool("writeback").map_err(|why| why.text)?;
    if let Some(mode) = words.value('c') {
        if writeback.is_some() || !cache.is_empty() {
            return Err("Cannot set both -c and the cache options".into());
        }
        let Some((back, direct, no_flush)) = crate::drive::cache_mode(&mode) else {
            return Err(format!("Invalid cache option: {mode}"));
        };
        writeback = Some(back);
        cache.set("direct", direct);
        cache.set("no-flush", no_flush);
    }
    if writeback.is_some_and(|on| on != backend.write_cache()) && backend.front_end().is_some() {
        return Err("Cannot change cache.writeback: Device attached".into());
    }
    if (words.flag('r') || words.flag('w')) && new.contains("read-only") {
        return Err("Cannot set both -r/-w and 'read-only'".into());
    }
    if !cache.is_empty() {
        new.set("cache", cache.0);
    }
    if !new.is_empty() {
        graph.reopen(vec![graph.as_it_is(&node, new)]).await.map_err(|why| why.text)?;
    }
    if let Some(on) = writeback {
        backend.set_write_cache(on);
    }
    if words.flag('r') || words.flag('w') {
        let on = words.flag('r');
        let drained = graph.drain(&node).await;
        let was = backend.is_read_only();
        backend.set_read_only(on);
        let changed = match backend.refresh_perm() {
            Ok(()) => graph.set_read_only(&node, on).await,
            Err(why) => Err(why),
        };
        if let Err(why) = changed {
            backend.set_read_only(was);
            // What was held before can be held again.
            let _ = backend.refresh_perm();
            return Err(why.text);
        }
        drop(drained);
        backend.refresh_perm().map_err(|why| why.text)?;
    }
    Ok(())
}

async fn breakpoint(backend: &Backend, name: &str, words: &[String]) -> Answer {
    let debug = backend.node().and_then(|node| crate::filters::blkdebug::find(&node));
    let Some(debug) = debug else {
        let why = match name {
            "break" => "Could not set breakpoint".to_string(),
            "resume" => "Could not resume request".to_string(),
            "remove_break" => format!("Could not remove breakpoint {}", words[0]),
            _ => "Could not wait for a breakpoint".to_string(),
        };
        return Err(format!("{why}: Operation not supported"));
    };
    let Some(rules) = crate::driver::layer_of::<crate::filters::blkdebug::BlkDebug>(&debug) else {
        return Ok(());
    };
    match name {
        "break" => {
            rules.set_break(&words[0], &words[1]).map_err(|why| format!("Could not set breakpoint: {why}"))
        }
        "resume" => rules.resume(&words[0]).map_err(|why| format!("Could not resume request: {why}")),
        "remove_break" => {
            let tag = &words[0];
            rules.remove_break(tag).map_err(|why| format!("Could not remove breakpoint {tag}: {why}"))
        }
        _ => {
            rules.wait_suspended(&words[0]).await;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
