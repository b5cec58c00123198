//! Reading and writing commands.

use super::args::{Words, number, size_text};
use super::{Answer, Out, failed};
use crate::backend::Backend;
use crate::backend::stats::Kind;
use crate::types::*;
use std::time::Instant;

/// Longest request, as the tool has it.
const MAX: u64 = 0x7fff_fe00;

/// A request as given by words.
struct Job {
    verb: &'static str,
    offset: u64,
    len: u64,
    quiet: bool,
    compact: bool,
    started: Instant,
}

impl Job {
    fn report(&self, out: &Out) {
        if self.quiet {
            return;
        }
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let time = format!("{:05.2} sec", seconds);
        let rate = size_text(self.len as f64 / seconds);
        let ops = 1.0 / seconds;
        if self.compact {
            return out(&format!("{},1,{time},{:.3},{ops:.3}\n", self.len, self.len as f64 / seconds));
        }
        out(&format!(
            "{} {}/{} bytes at offset {}\n{}, 1 ops; {time} ({rate}/sec and {ops:.4} ops/sec)\n",
            self.verb,
            self.len,
            self.len,
            self.offset,
            size_text(self.len as f64)
        ));
    }
}

fn take_job(words: &Words, verb: &'static str) -> Result<Job, String> {
    let mut numbers = words.rest.iter();
    let offset = number(numbers.next().ok_or("missing offset")?)?;
    let mut len = 0u64;
    for word in numbers {
        let one = number(word)?;
        if one > MAX || len + one > MAX {
            return Err(format!("length cannot exceed {MAX}, given {word}"));
        }
        len += one;
    }
    let (quiet, compact) = (words.flag('q'), words.flag('C'));
    Ok(Job { verb, offset, len, quiet, compact, started: Instant::now() })
}

fn pattern(words: &mut Words, letter: char) -> Result<Option<u8>, String> {
    match words.value(letter) {
        None => Ok(None),
        Some(word) => match crate::options::parse_size(&word) {
            Some(value) if value <= 255 => Ok(Some(value as u8)),
            _ => Err(format!("{word} is not a valid pattern byte")),
        },
    }
}

/// Runs a request now, or beside what follows (`aio_*`, which alone count in the statistics).
async fn conduct<F>(asynchronous: bool, backend: &Backend, work: F) -> Answer
where
    F: Future<Output = Answer> + Send + 'static,
{
    if !asynchronous {
        return work.await;
    }
    backend.thread().handle().spawn(async move {
        // What went wrong was told by the work itself.
        let _ = work.await;
    });
    // Let it reach the disk before the next command, as the tool does.
    tokio::task::yield_now().await;
    Ok(())
}

pub(super) async fn read(backend: &Backend, name: &'static str, words: Vec<String>, out: &Out) -> Answer {
    let mut words = Words::parse(name, words, "abCiqrvp", "Psl")?;
    let byte = pattern(&mut words, 'P')?;
    let skip = words.value('s').map_or(Ok(0), |word| number(&word))?;
    let part = words.value('l').map(|word| number(&word)).transpose()?;
    let job = take_job(&words, "read")?;
    if byte.is_none() && (skip > 0 || part.is_some()) {
        return Err("-s and -l can only be used with -P".into());
    }
    let part = part.unwrap_or(job.len.saturating_sub(skip));
    if skip.checked_add(part).is_none_or(|end| end > job.len) {
        return Err("pattern verification range exceeds end of read data".into());
    }
    let (dump, vm, asynchronous) = (words.flag('v'), words.flag('b'), name == "aio_read");
    if asynchronous && words.flag('i') {
        backend.stats().invalid(Kind::Read);
        return Ok(());
    }
    let (disk, told) = (backend.clone(), out.clone());
    let work = async move {
        let result = async {
            let access = disk.access(false, job.len).await?;
            let mut data = vec![0xab; job.len as usize];
            if vm {
                let node = access.node();
                let facet = node.layer().snapshots().ok_or_else(|| errno(libc::ENOTSUP))?;
                facet.read_vmstate(job.offset, &mut data).await?;
            } else if job.offset.checked_add(job.len).is_none_or(|end| end > access.size()) {
                return Err(errno(libc::EIO));
            } else {
                access.read(job.offset, &mut data).await?;
            }
            Ok(data)
        };
        let (started, result) = (disk.stats().start(), result.await);
        if asynchronous {
            disk.stats().done(Kind::Read, job.len, started, result.is_ok());
        }
        let data = match result {
            Ok(data) => data,
            Err(error) => return tell_failure(asynchronous, "read", &error, &told),
        };
        if let Some(byte) = byte {
            let range = &data[skip as usize..(skip + part) as usize];
            if range.iter().any(|one| *one != byte) {
                told(&format!("Pattern verification failed at offset {}, {part} bytes\n", job.offset + skip));
            }
        }
        if dump && !job.quiet {
            hex_dump(&data, job.offset, &told);
        }
        job.report(&told);
        Ok(())
    };
    conduct(asynchronous, backend, work).await
}

fn tell_failure(asynchronous: bool, verb: &str, error: &std::io::Error, out: &Out) -> Answer {
    if asynchronous {
        out(&format!("aio_{}\n", failed(verb, error)));
        return Ok(());
    }
    Err(failed(verb, error))
}

fn hex_dump(data: &[u8], offset: u64, out: &Out) {
    for (index, line) in data.chunks(16).enumerate() {
        let hex: String = line.iter().map(|byte| format!("{byte:02x} ")).collect();
        let text: String =
            line.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' }).collect();
        out(&format!("{:08x}:  {hex} {text}\n", offset + index as u64 * 16));
    }
}

/// What a write command writes.
enum Content {
    Data(Vec<u8>),
    Zeroes,
}

pub(super) async fn write(backend: &Backend, name: &'static str, words: Vec<String>, out: &Out) -> Answer {
    let mut words = Words::parse(name, words, "bcCfinpqruz", "Ps")?;
    let byte = pattern(&mut words, 'P')?;
    let source = words.value('s');
    let job = take_job(&words, "wrote")?;
    let (zero, unmap, compressed, fua) = (words.flag('z'), words.flag('u'), words.flag('c'), words.flag('f'));
    if words.flag('b') && zero {
        return Err("-b and -z cannot be specified at the same time".into());
    }
    if words.flag('n') && !zero {
        return Err("-n requires -z to be specified".into());
    }
    if unmap && !zero {
        return Err("-u requires -z to be specified".into());
    }
    if zero && byte.is_some() {
        return Err("-z and -P cannot be specified at the same time".into());
    }
    let content = match (zero, source) {
        (true, _) => Content::Zeroes,
        (_, Some(path)) => {
            let file =
                std::fs::read(&path).map_err(|why| format!("{path}: {}", base::failure::strerror(&why)))?;
            if file.is_empty() {
                return Err(format!("{path}: file is empty"));
            }
            Content::Data(file.into_iter().cycle().take(job.len as usize).collect())
        }
        _ => Content::Data(vec![byte.unwrap_or(0xcd); job.len as usize]),
    };
    let mut flags = WriteFlags::empty();
    flags.set(WriteFlags::FUA, fua || !backend.write_cache());
    flags.set(WriteFlags::COMPRESSED, compressed);
    let mut zeroes = ZeroFlags::empty();
    zeroes.set(ZeroFlags::MAY_UNMAP, unmap);
    zeroes.set(ZeroFlags::FUA, fua || !backend.write_cache());
    zeroes.set(ZeroFlags::NO_FALLBACK, words.flag('n'));
    let (vm, asynchronous) = (words.flag('b'), name == "aio_write");
    if asynchronous && words.flag('i') {
        backend.stats().invalid(Kind::Write);
        return Ok(());
    }
    let (disk, told) = (backend.clone(), out.clone());
    let work = async move {
        let result = async {
            let access = disk.access(true, job.len).await?;
            if vm {
                let node = access.node();
                let facet = node.layer().snapshots().ok_or_else(|| errno(libc::ENOTSUP))?;
                let Content::Data(data) = &content else { return Err(errno(libc::EINVAL)) };
                return facet.write_vmstate(job.offset, data).await;
            }
            if job.offset.checked_add(job.len).is_none_or(|end| end > access.size()) {
                return Err(errno(libc::EIO));
            }
            match &content {
                Content::Data(data) => access.write(job.offset, data, flags).await,
                Content::Zeroes => access.write_zeroes(job.offset, job.len, zeroes).await,
            }
        };
        let (started, result) = (disk.stats().start(), result.await);
        if asynchronous {
            disk.stats().done(Kind::Write, job.len, started, result.is_ok());
        }
        match result {
            Ok(()) => {
                job.report(&told);
                Ok(())
            }
            Err(error) => tell_failure(asynchronous, "write", &error, &told),
        }
    };
    conduct(asynchronous, backend, work).await
}

pub(super) async fn discard(backend: &Backend, words: Vec<String>, out: &Out) -> Answer {
    let words = Words::parse("discard", words, "Cq", "")?;
    let job = take_job(&words, "discard")?;
    let result = async {
        let access = backend.access(true, job.len).await?;
        if job.offset.checked_add(job.len).is_none_or(|end| end > access.size()) {
            return Err(errno(libc::EIO));
        }
        access.discard(job.offset, job.len).await
    };
    result.await.map_err(|error| failed("discard", &error))?;
    job.report(out);
    Ok(())
}
