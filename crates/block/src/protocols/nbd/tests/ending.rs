//! A server that ends while clients use it.

use super::serve;
use crate::graph::tests::graph;
use crate::throttle::{Bucket, Config, Group};
use base::clock::{Clock, Kind};
use std::path::Path;
use testkit::nbd::{Client, WRITE};

const SENT: u64 = 10;

#[test]
fn requests_in_flight_are_done_and_answered_before_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (image, socket) = (path("disk.raw"), path("nbd"));
    std::fs::write(&image, vec![1; 1 << 20]).unwrap();
    let graph = graph();
    let server = serve(&graph, &socket, &image, true, None);
    let group = Group::new("slow", Clock::new(Kind::Realtime));
    let mut limits = Config::default();
    limits.iops[0] = Bucket { avg: 20, ..Bucket::default() };
    group.set_config(limits);
    graph.backend("d").unwrap().set_throttle_group(Some(group));
    let mut client = Client::new(Path::new(&socket), "disk").unwrap();
    // All at once, so that the server has them all when it answers the first.
    let write = |number: u64| Client::request(WRITE, number, number * 4096, 512, &[0x40 + number as u8; 512]);
    client.send(&(0..SENT).flat_map(write).collect::<Vec<_>>()).unwrap();
    let first = client.reply().unwrap();
    graph.block_on(async move { server.stop().await });
    let data = std::fs::read(&image).unwrap();
    let mut answered = vec![first];
    answered.extend(std::iter::from_fn(|| client.reply()));
    answered.sort_unstable();
    assert_eq!(answered, (0..SENT).map(|number| (number, 0)).collect::<Vec<_>>());
    for number in 0..SENT as usize {
        assert!(data[number * 4096..][..512].iter().all(|byte| *byte == 0x40 + number as u8), "{number}");
    }
}
