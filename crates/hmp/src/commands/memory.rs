use super::push;
use crate::Session;
use crate::commands::registers;
use crate::parse::{Args, Format};
use base::Result;
use iced_x86::{Decoder, DecoderOptions, FastFormatter};
use schema::memory::{Memsave, Pmemsave};

pub async fn x(session: Session, args: Args) -> Result<String> {
    dump(&session, args.format(), args.need_int("addr") as u64, false)
}

pub async fn xp(session: Session, args: Args) -> Result<String> {
    dump(&session, args.format(), args.need_int("addr") as u64, true)
}

fn read(session: &Session, addr: u64, len: usize, physical: bool) -> Result<Option<Vec<u8>>> {
    if !physical {
        return session.machine().read_linear(session.cpu(), addr, len);
    }
    let mut bytes = vec![0; len];
    session.machine().services.memory.read(addr, &mut bytes);
    Ok(Some(bytes))
}

fn dump(session: &Session, format: Format, mut addr: u64, physical: bool) -> Result<String> {
    if format.letter == 'i' {
        return disassemble(session, format.count, addr, physical);
    }
    let size = if format.letter == 'c' { 1 } else { format.size.unwrap_or(4) };
    let line = if size == 1 { 8 } else { 16 };
    let mut left = u64::from(format.count) * u64::from(size);
    let mut out = String::new();
    while left > 0 {
        let len = left.min(line) as usize;
        let mut text = format!("{addr:016x}:");
        match read(session, addr, len, physical)? {
            None => {
                text.push_str(" Cannot access memory\n");
                push(&mut out, &text);
                return Ok(out);
            }
            Some(bytes) => {
                for item in bytes.chunks_exact(usize::from(size)) {
                    text.push(' ');
                    text.push_str(&number(little_endian(item), format.letter, size));
                }
            }
        }
        text.push('\n');
        if !push(&mut out, &text) {
            break;
        }
        addr = addr.wrapping_add(len as u64);
        left -= len as u64;
    }
    Ok(out)
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &b| value << 8 | u64::from(b))
}

/// One item, padded to the width that its size may need.
fn number(value: u64, letter: char, size: u8) -> String {
    let bits = u32::from(size) * 8;
    let signed = ((value << (64 - bits)) as i64) >> (64 - bits);
    let decimal = (bits as usize * 10).div_ceil(33);
    match letter {
        'o' => {
            let text = if value == 0 { "0".into() } else { format!("0{value:o}") };
            format!("{text:>width$}", width = (bits as usize).div_ceil(3))
        }
        'u' => format!("{value:>decimal$}"),
        'd' => format!("{signed:>decimal$}"),
        'c' => character(value as u8),
        _ => format!("0x{value:0width$x}", width = usize::from(size) * 2),
    }
}

fn character(byte: u8) -> String {
    match byte {
        b'\'' => "'\\''".into(),
        b'\\' => "'\\\\'".into(),
        b'\n' => "'\\n'".into(),
        b'\r' => "'\\r'".into(),
        32..=126 => format!("'{}'", char::from(byte)),
        _ => format!("'\\x{byte:02x}'"),
    }
}

fn disassemble(session: &Session, count: u32, mut addr: u64, physical: bool) -> Result<String> {
    let bits = registers::code_bits(session);
    let mut out = String::new();
    let mut formatter = FastFormatter::new();
    for _ in 0..count {
        let mut bytes = Vec::new();
        // Up to 15 bytes, fewer at the end of what is mapped.
        for len in [15, (4096 - (addr & 4095)).min(15) as usize] {
            if let Some(found) = read(session, addr, len, physical)? {
                bytes = found;
                break;
            }
        }
        if bytes.is_empty() {
            push(&mut out, &format!("0x{addr:08x}:  Cannot access memory\n"));
            break;
        }
        let mut decoder = Decoder::with_ip(bits, &bytes, addr, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        let len = if instruction.is_invalid() { 1 } else { instruction.len() };
        let hex: Vec<String> = bytes[..len].iter().map(|b| format!("{b:02x}")).collect();
        if !push(&mut out, &format!("0x{addr:08x}:  {:<24} {text}\n", hex.join(" "))) {
            break;
        }
        addr = addr.wrapping_add(len as u64);
    }
    Ok(out)
}

pub async fn print(_: Session, args: Args) -> Result<String> {
    let value = args.need_int("val");
    let text = match args.format().letter {
        'o' if value == 0 => "0".into(),
        'o' => format!("0{value:o}"),
        'u' => (value as u64).to_string(),
        'd' => value.to_string(),
        'c' => character(value as u8),
        _ if value == 0 => "0".into(),
        _ => format!("{value:#x}"),
    };
    Ok(text + "\n")
}

/// The BSD checksum over physical memory.
pub async fn sum(session: Session, args: Args) -> Result<String> {
    let start = args.need_int("start") as u64;
    let end = start.wrapping_add(args.need_int("size").max(0) as u64);
    let mut sum = 0u16;
    let mut at = start;
    while at < end {
        let len = (end - at).min(65536) as usize;
        let bytes = read(&session, at, len, true)?.unwrap_or_default();
        sum = bytes.iter().fold(sum, |sum, &b| sum.rotate_right(1).wrapping_add(u16::from(b)));
        at += len as u64;
    }
    Ok(format!("{sum:05}\n"))
}

pub async fn memsave(session: Session, args: Args) -> Result<String> {
    let command = Memsave {
        val: args.need_int("val"),
        size: args.need_int("size"),
        filename: args.need("filename"),
        cpu_index: i64::try_from(session.cpu()).ok(),
    };
    session.control.call(command).await.map(|()| String::new())
}

pub async fn pmemsave(session: Session, args: Args) -> Result<String> {
    let command =
        Pmemsave { val: args.need_int("val"), size: args.need_int("size"), filename: args.need("filename") };
    session.control.call(command).await.map(|()| String::new())
}

pub async fn balloon(session: Session, args: Args) -> Result<String> {
    let value = args.need_int("value").checked_mul(1 << 20).unwrap_or(i64::MAX);
    session.control.call(schema::memory::Balloon { value }).await.map(|()| String::new())
}

pub async fn info_balloon(session: Session, _: Args) -> Result<String> {
    let info = session.control.call(schema::memory::QueryBalloon {}).await?;
    Ok(format!("balloon: actual={}\n", info.actual >> 20))
}
