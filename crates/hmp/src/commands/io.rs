use crate::Session;
use crate::parse::Args;
use base::Result;

/// Letter and bytes of a port access.
fn access(args: &Args) -> (char, u8) {
    match args.format().size {
        Some(1) => ('b', 1),
        Some(2) => ('w', 2),
        Some(4 | 8) => ('l', 4),
        _ => ('b', 1),
    }
}

pub async fn input(session: Session, args: Args) -> Result<String> {
    let ports = &session.machine().services.ports;
    let (letter, size) = access(&args);
    let mut port = args.need_int("addr") as u64 & 0xffff;
    if let Some(index) = args.int("index") {
        // An index register with its data register behind it.
        ports.store(port, 1, index as u64 & 0xff);
        port = (port + 1) & 0xffff;
    }
    let value = ports.load(port, size);
    Ok(format!("port{letter}[0x{port:04x}] = 0x{value:0width$x}\n", width = usize::from(size) * 2))
}

pub async fn output(session: Session, args: Args) -> Result<String> {
    let (_, size) = access(&args);
    let port = args.need_int("addr") as u64 & 0xffff;
    let mask = (1u64 << (u32::from(size) * 8)) - 1;
    session.machine().services.ports.store(port, size, args.need_int("val") as u64 & mask);
    Ok(String::new())
}
