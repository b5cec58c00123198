//! Servers and clients that do not keep to the protocol.

use super::super::replay::{Replayed, replay};
use super::super::wire::*;
use super::serve;
use crate::graph::tests::graph;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use testkit::Dice;

fn reply(option: u32, code: u32, body: &[u8]) -> Vec<u8> {
    let mut out = REP_MAGIC.to_be_bytes().to_vec();
    for number in [option, code, body.len() as u32] {
        out.extend(number.to_be_bytes());
    }
    out.extend(body);
    out
}

fn greeting() -> Vec<u8> {
    [&MAGIC.to_be_bytes()[..], &OPT_MAGIC.to_be_bytes(), &(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes()].concat()
}

fn export(size: u64) -> Vec<u8> {
    let flags = HAS_FLAGS | SEND_FLUSH;
    [&INFO_EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat()
}

fn sizes(least: u32, most: u32) -> Vec<u8> {
    let mut out = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [least, 4096, most] {
        out.extend(size.to_be_bytes());
    }
    out
}

/// The negotiation of a proper server.
fn proper() -> Vec<u8> {
    [
        greeting(),
        reply(OPT_STRUCTURED_REPLY, REP_ACK, &[]),
        reply(OPT_SET_META, REP_META, &[&7u32.to_be_bytes()[..], b"base:allocation"].concat()),
        reply(OPT_SET_META, REP_ACK, &[]),
        reply(OPT_GO, REP_INFO, &sizes(512, 1 << 20)),
        reply(OPT_GO, REP_INFO, &export(1 << 20)),
        reply(OPT_GO, REP_ACK, &[]),
    ]
    .concat()
}

fn chunk(flags: u16, kind: u16, cookie: u64, body: &[u8]) -> Vec<u8> {
    let mut out = STRUCTURED_MAGIC.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
    out
}

fn data(offset: u64, len: usize) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &vec![9; len]].concat()
}

fn hole(offset: u64, len: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat()
}

fn status(context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut out = context.to_be_bytes().to_vec();
    for (len, state) in extents {
        out.extend(len.to_be_bytes());
        out.extend(state.to_be_bytes());
    }
    out
}

fn play(bytes: Vec<u8>) -> Replayed {
    graph().block_on(async move { replay(&bytes).await })
}

#[test]
fn chunks_in_any_order_make_one_answer() {
    let good = chunk(CHUNK_DONE, CHUNK_STATUS, 2, &status(7, &[(8192, 3), (100, 0)]));
    let bytes = [
        proper(),
        chunk(0, CHUNK_HOLE, 1, &hole(4096 + 1024, 3072)),
        good,
        chunk(0, CHUNK_DATA, 1, &data(4096, 1024)),
        chunk(CHUNK_DONE, CHUNK_NONE, 1, &[]),
    ]
    .concat();
    let done = play(bytes);
    assert_eq!(done.size, Some(1 << 20));
    assert_eq!(done.extent.unwrap().unwrap(), Some((8192, 3)));
    let read = done.read.unwrap().unwrap();
    assert!(read[..1024].iter().all(|b| *b == 9) && read[1024..].iter().all(|b| *b == 0));
    // Less than a block counts as data; more than asked is cut.
    for (told, seen) in [((100, 3), (512, 0)), ((1000, 3), (512, 3)), ((1 << 30, 2), (65536, 2))] {
        let bytes = [proper(), chunk(CHUNK_DONE, CHUNK_STATUS, 2, &status(7, &[told]))].concat();
        assert_eq!(play(bytes).extent.unwrap().unwrap(), Some(seen));
    }
}

#[test]
fn chunks_that_make_no_sense_end_the_connection_or_the_request() {
    let mut error = 5u32.to_be_bytes().to_vec();
    error.extend(100u16.to_be_bytes());
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("unknown cookie", chunk(CHUNK_DONE, CHUNK_NONE, 99, &[])),
        ("nothing told", chunk(CHUNK_DONE, CHUNK_NONE, 1, &[])),
        ("part missing", chunk(CHUNK_DONE, CHUNK_DATA, 1, &data(4096, 4095))),
        ("before the range", chunk(CHUNK_DONE, CHUNK_DATA, 1, &data(4095, 4096))),
        ("past the range", chunk(CHUNK_DONE, CHUNK_DATA, 1, &data(4097, 4096))),
        ("far off", chunk(CHUNK_DONE, CHUNK_DATA, 1, &data(u64::MAX, 4096))),
        ("empty data", chunk(CHUNK_DONE, CHUNK_DATA, 1, &data(4096, 0))),
        ("short data", chunk(CHUNK_DONE, CHUNK_DATA, 1, &[1, 2])),
        ("huge hole", chunk(CHUNK_DONE, CHUNK_HOLE, 1, &hole(4096, u32::MAX))),
        ("long hole chunk", chunk(CHUNK_DONE, CHUNK_HOLE, 1, &[0; 13])),
        ("status for a read", chunk(CHUNK_DONE, CHUNK_STATUS, 1, &status(7, &[(4096, 0)]))),
        ("unknown kind", chunk(CHUNK_DONE, 77, 1, &[])),
        ("message too short", chunk(CHUNK_DONE, CHUNK_ERROR, 1, &error)),
        ("error without number", chunk(CHUNK_DONE, CHUNK_ERROR, 1, &[0; 6])),
        (
            "error elsewhere",
            chunk(CHUNK_DONE, CHUNK_ERROR_OFFSET, 1, &[0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ),
        ("end that is none", chunk(0, CHUNK_NONE, 1, &[])),
        ("simple reply to a read", [&SIMPLE_MAGIC.to_be_bytes()[..], &[0; 4], &1u64.to_be_bytes()].concat()),
        ("a length of 4 GiB", [&chunk(0, CHUNK_DATA, 1, &[])[..16], &u32::MAX.to_be_bytes()].concat()),
        ("junk", vec![0xaa; 64]),
        ("nothing", Vec::new()),
    ];
    for (what, bytes) in bad {
        let done = play([proper(), bytes].concat());
        let code = done.read.expect(what).expect_err(what).raw_os_error();
        assert_eq!(code, Some(libc::EIO), "{what}");
    }
    for (what, body) in [
        ("another context", status(8, &[(4096, 0)])),
        ("no extent", status(7, &[])),
        ("an empty extent", status(7, &[(0, 0)])),
        ("half an extent", status(7, &[(4096, 0)])[..8].to_vec()),
        ("half a second extent", [status(7, &[(4096, 0)]), vec![0; 4]].concat()),
    ] {
        let done = play([proper(), chunk(CHUNK_DONE, CHUNK_STATUS, 2, &body)].concat());
        assert!(done.extent.expect(what).is_err(), "{what}");
    }
    let refused = chunk(CHUNK_DONE, CHUNK_ERROR, 1, &[0, 0, 0, 28, 0, 2, b'n', b'o']);
    let code = play([proper(), refused].concat()).read.unwrap().unwrap_err().raw_os_error();
    assert_eq!(code, Some(libc::ENOSPC));
}

#[test]
fn negotiations_that_make_no_sense_fail() {
    let start =
        [greeting(), reply(OPT_STRUCTURED_REPLY, REP_ACK, &[]), reply(OPT_SET_META, REP_ACK, &[])].concat();
    let ack = reply(OPT_GO, REP_ACK, &[]);
    let go = |body: &[u8]| reply(OPT_GO, REP_INFO, body);
    let fine = go(&export(4096));
    assert_eq!(play([&start[..], &fine, &ack].concat()).size, Some(4096));
    for (what, rest) in [
        ("no export told", ack.clone()),
        ("a size above 2^63", [go(&export(u64::MAX)), ack.clone()].concat()),
        ("a short export", [go(&export(4096)[..11]), ack.clone()].concat()),
        ("no kind", [go(&[1]), fine.clone(), ack.clone()].concat()),
        ("an odd block size", [go(&sizes(3, 1 << 20)), fine.clone(), ack.clone()].concat()),
        ("a huge block size", [go(&sizes(1 << 20, 1 << 20)), fine.clone(), ack.clone()].concat()),
        ("most below least", [go(&sizes(4096, 512)), fine.clone(), ack.clone()].concat()),
        ("a size of no whole blocks", [go(&sizes(4096, 8192)), go(&export(5000)), ack.clone()].concat()),
        ("an answer to something else", [reply(OPT_LIST, REP_ACK, &[]), ack.clone()].concat()),
        ("a huge answer", [&reply(OPT_GO, REP_INFO, &[])[..16], &u32::MAX.to_be_bytes()].concat()),
        ("a refusal", reply(OPT_GO, REP_ERR_UNKNOWN, b"no")),
    ] {
        assert_eq!(play([start.clone(), rest].concat()).size, None, "{what}");
    }
}

#[test]
fn spoilt_transcripts_do_no_harm() {
    let whole = [
        proper(),
        chunk(0, CHUNK_DATA, 1, &data(4096, 4096)),
        chunk(CHUNK_DONE, CHUNK_NONE, 1, &[]),
        chunk(CHUNK_DONE, CHUNK_STATUS, 2, &status(7, &[(4096, 0)])),
    ]
    .concat();
    let mut dice = Dice::new(7);
    graph().block_on(async move {
        for _ in 0..3000 {
            let mut bytes = whole.clone();
            for _ in 0..1 + dice.roll() % 3 {
                let at = dice.roll() as usize % bytes.len();
                match dice.roll() % 3 {
                    0 => bytes[at] ^= 1 << (dice.roll() % 8),
                    1 => bytes.truncate(at.max(1)),
                    _ => drop(bytes.splice(at..(at + 4).min(bytes.len()), [0xff; 4])),
                }
            }
            let limit = tokio::time::timeout(Duration::from_secs(5), replay(&bytes));
            limit.await.expect("the client waits for nothing more");
        }
    });
}

fn hello(socket: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&u32::from(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes()).unwrap();
    stream
}

fn ask(stream: &mut UnixStream, option: u32, body: &[u8]) -> (u32, Vec<u8>) {
    let mut out = OPT_MAGIC.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(body);
    stream.write_all(&out).unwrap();
    answer(stream)
}

fn answer(stream: &mut UnixStream) -> (u32, Vec<u8>) {
    let mut head = [0; 20];
    stream.read_exact(&mut head).unwrap();
    let mut body = vec![0; be(&head[16..]) as usize];
    stream.read_exact(&mut body).unwrap();
    (be(&head[12..16]) as u32, body)
}

fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut out = REQUEST_MAGIC.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(command.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(len.to_be_bytes());
    out
}

/// Error number of a simple reply.
fn error_of(stream: &mut UnixStream) -> u64 {
    let mut head = [0; 16];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(be(&head[..4]), u64::from(SIMPLE_MAGIC));
    be(&head[4..8])
}

#[test]
fn the_server_answers_wrong_options_and_requests_and_outlives_stuck_clients() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (image, socket) = (path("disk.raw"), path("sock"));
    std::fs::write(&image, vec![3; 8 << 20]).unwrap();
    let owner = graph();
    let server = serve(&owner, &socket, &image, true, None);
    let mut client = hello(&socket);
    let named = |more: &[u8]| [&4u32.to_be_bytes()[..], b"disk", more].concat();
    assert_eq!(ask(&mut client, 4711, &[]).0, REP_ERR_UNSUP);
    assert_eq!(ask(&mut client, OPT_STARTTLS, &[]).0, REP_ERR_POLICY);
    assert_eq!(ask(&mut client, OPT_LIST, &[1]).0, REP_ERR_INVALID);
    assert_eq!(ask(&mut client, OPT_SET_META, &named(&[0; 4])).0, REP_ERR_INVALID);
    for bad in [&b""[..], &[0, 0, 0, 9, 1], &named(&[]), &named(&[0, 1]), &named(&[0, 0, 0, 0]), &[0xff; 12]]
    {
        assert_eq!(ask(&mut client, OPT_INFO, bad).0, REP_ERR_INVALID, "{bad:?}");
    }
    assert_eq!(ask(&mut client, OPT_GO, &[0, 0, 0, 1, b'x', 0, 0]).0, REP_ERR_UNKNOWN);
    assert_eq!(ask(&mut client, OPT_GO, &named(&[0, 0])).0, REP_INFO);
    while answer(&mut client).0 != REP_ACK {}
    for (what, bytes, code) in [
        ("an unknown command", request(0, 99, 1, 0, 0), 22),
        ("an unknown flag", request(1 << 9, CMD_READ, 1, 0, 512), 22),
        ("block status without contexts", request(0, CMD_BLOCK_STATUS, 1, 0, 512), 22),
        ("a read past the end", request(0, CMD_READ, 1, (8 << 20) - 1, 2), 22),
        ("a read at the end of numbers", request(0, CMD_READ, 1, u64::MAX, 2), 22),
        ("too long a read", request(0, CMD_READ, 1, 0, MAX_PAYLOAD + 1), 22),
        ("zeroes past the end", request(0, CMD_WRITE_ZEROES, 1, 8 << 20, 1), 28),
        ("reading nothing", request(0, CMD_READ, 1, 0, 0), 0),
        ("writing nothing", request(0, CMD_WRITE, 1, 8 << 20, 0), 0),
        ("trimming nothing", request(0, CMD_TRIM, 1, 0, 0), 0),
    ] {
        client.write_all(&bytes).unwrap();
        assert_eq!(error_of(&mut client), code, "{what}");
    }
    // One that asks for much and reads nothing must not hold up the server's end.
    for cookie in 0..16 {
        client.write_all(&request(0, CMD_READ, cookie, 0, 8 << 20)).unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    owner.block_on(async move { server.stop().await });
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn spoilt_clients_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (image, socket) = (path("disk.raw"), path("sock"));
    std::fs::write(&image, vec![3; 1 << 20]).unwrap();
    let owner = graph();
    let server = serve(&owner, &socket, &image, true, None);
    let option = |kind: u32, body: &[u8]| {
        [&OPT_MAGIC.to_be_bytes()[..], &kind.to_be_bytes(), &(body.len() as u32).to_be_bytes(), body].concat()
    };
    let named = |more: &[u8]| [&4u32.to_be_bytes()[..], b"disk", more].concat();
    let context = [&1u32.to_be_bytes()[..], &15u32.to_be_bytes(), b"base:allocation"].concat();
    let whole = [
        3u32.to_be_bytes().to_vec(),
        option(OPT_LIST, &[]),
        option(OPT_STRUCTURED_REPLY, &[]),
        option(OPT_SET_META, &named(&context)),
        option(OPT_INFO, &named(&[0, 1, 0, 3])),
        option(OPT_GO, &named(&[0, 0])),
        request(0, CMD_READ, 1, 0, 4096),
        request(FLAG_REQ_ONE, CMD_BLOCK_STATUS, 2, 0, 65536),
        request(0, CMD_WRITE_ZEROES, 3, 4096, 4096),
        request(FLAG_FUA, CMD_WRITE, 4, 0, 16),
        vec![3; 16],
        request(0, CMD_DISC, 5, 0, 0),
    ]
    .concat();
    let mut dice = Dice::new(11);
    owner.block_on(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for round in 0..2000 {
            let mut bytes = whole.clone();
            for _ in 0..(round > 0) as u64 * (1 + dice.roll() % 3) {
                let at = dice.roll() as usize % bytes.len();
                match dice.roll() % 2 {
                    0 => bytes[at] ^= 1 << (dice.roll() % 8),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let (mut near, far) = tokio::io::duplex(1 << 20);
            near.write_all(&bytes).await.unwrap();
            near.shutdown().await.unwrap();
            let served = tokio::time::timeout(Duration::from_secs(8), server.attend(far));
            served.await.expect("a client that has left is not waited for");
            let mut said = Vec::new();
            near.read_to_end(&mut said).await.unwrap();
            assert!(said.len() >= 18);
            assert!(round > 0 || said.len() > 4096 + 18);
        }
        server.stop().await;
    });
}
