use super::*;
use crate::storage::cdrom::{INVALID_FIELD, LBA_OUT_OF_RANGE};
use crate::testbed::{Random, Testbed};
use device::Device;

struct NoHost;
impl ScsiHost for NoHost {
    fn plugged(&self, _: u8, _: u16, _: bool) {}
    fn resized(&self, _: u8, _: u16) {}
}

fn bus() -> Arc<ScsiBus> {
    let host: Arc<dyn ScsiHost> = Arc::new(NoHost);
    ScsiBus::new("scsi.0".into(), (7, 7), Arc::downgrade(&host))
}

fn disk() -> (Testbed, Arc<ScsiBus>, Arc<dyn Device>, tempfile::NamedTempFile) {
    let bed = Testbed::new();
    let (_, file) = bed.drive("d", &[0; 1 << 20]);
    let bus = bus();
    let device =
        bed.make(&HD, bus.clone(), &[("drive", "d"), ("serial", "xyz"), ("wwn", "0x5000c50015ea71ac")]);
    (bed, bus, device, file)
}

fn run(lun: &Lun, cdb: &[u8]) -> Command {
    let mut block = [0; 32];
    block[..cdb.len()].copy_from_slice(cdb);
    lun.start(&block, &[0])
}

fn data(command: Command) -> Vec<u8> {
    match command {
        Command::Data(data) => data,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_disk_tells_who_and_how_large_it_is() {
    let (_bed, bus, _device, _file) = disk();
    let lun = bus.lun(0, 0).unwrap();
    let inquiry = data(run(&lun, &[0x12, 0, 0, 0, 96]));
    // Synchronous transfers and queues of commands.
    assert_eq!(inquiry[7], 0x12);
    assert_eq!(&inquiry[8..32], b"QEMU    QEMU HARDDISK   ");
    assert_eq!(data(run(&lun, &[0x25])), [0, 0, 7, 0xff, 0, 0, 2, 0]);
    let long = data(run(&lun, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32]));
    assert_eq!(long[..12], [0, 0, 0, 0, 0, 0, 7, 0xff, 0, 0, 2, 0]);
    assert_eq!(data(run(&lun, &[0x12, 1, 0x80, 0, 96])), [0, 0x80, 0, 3, b'x', b'y', b'z']);
    let page = data(run(&lun, &[0x12, 1, 0x83, 0, 96]));
    assert_eq!(page[4..11], [2, 0, 0, 3, b'x', b'y', b'z']);
    assert_eq!(page[11..], [1, 3, 0, 8, 0x50, 0, 0xc5, 0, 0x15, 0xea, 0x71, 0xac]);
    assert!(matches!(run(&lun, &[0x12, 1, 0x99, 0, 96]), Command::Check(INVALID_FIELD)));
    assert_eq!(data(run(&lun, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16])), report_luns(&[0]));
}

#[test]
fn ports_and_cd_drives_have_names() {
    let bed = Testbed::new();
    let (_, _file) = bed.drive("d", &[0; 1 << 20]);
    let bus = bus();
    let port =
        [("drive", "d"), ("port_wwn", "0x5000c50015ea71ad"), ("port_index", "3"), ("scsi_version", "6")];
    bed.make(&HD, bus.clone(), &port);
    bed.make(&CD, bus.clone(), &[("serial", "s1"), ("wwn", "0x5000c50015ea71ae"), ("device_id", "abc")]);
    let disk = bus.lun(0, 0).unwrap();
    assert_eq!(data(run(&disk, &[0x12, 0, 0, 0, 96]))[2], 6);
    let page = data(run(&disk, &[0x12, 1, 0x83, 0, 96]));
    assert_eq!(page[4..16], [0x61, 0x93, 0, 8, 0x50, 0, 0xc5, 0, 0x15, 0xea, 0x71, 0xad]);
    assert_eq!(page[16..], [0x61, 0x94, 0, 4, 0, 0, 0, 3]);
    let cd = bus.lun(1, 0).unwrap();
    assert_eq!(data(run(&cd, &[0x12, 1, 0, 0, 96])), [5, 0, 0, 3, 0, 0x80, 0x83]);
    assert_eq!(data(run(&cd, &[0x12, 1, 0x80, 0, 96])), [5, 0x80, 0, 2, b's', b'1']);
    let page = data(run(&cd, &[0x12, 1, 0x83, 0, 96]));
    assert_eq!(page[..11], [5, 0x83, 0, 19, 2, 0, 0, 3, b'a', b'b', b'c']);
    assert_eq!(page[11..], [1, 3, 0, 8, 0x50, 0, 0xc5, 0, 0x15, 0xea, 0x71, 0xae]);
    assert!(matches!(run(&cd, &[0x12, 1, 0xb0, 0, 96]), Command::Check(INVALID_FIELD)));
    let wrong = bed.try_make(&CD, bus, &[("cyls", "3")]).err().unwrap();
    assert_eq!(wrong.text, "Property 'scsi-cd.cyls' not found");
}

#[test]
fn a_target_answers_for_units_that_it_lacks() {
    let ask = |lun: u16, cdb: &[u8]| {
        let mut block = [0; 32];
        block[..cdb.len()].copy_from_slice(cdb);
        absent(lun, &block)
    };
    let first = data(ask(0, &[0x12, 0, 0, 0, 255]));
    assert_eq!((first[0], first[2], &first[16..27], first.len()), (0x3f, 5, &b"QEMU TARGET"[..], 36));
    assert_eq!(data(ask(3, &[0x12, 0, 0, 0, 5])), [0x7f, 0, 0, 0, 31]);
    assert_eq!(data(ask(3, &[3, 0, 0, 0, 18]))[12], 0x25);
    assert!(matches!(ask(0, &[0]), Command::Check(_)));
    assert!(matches!(ask(0, &[0x12, 1, 0x83, 0, 255]), Command::Check(INVALID_FIELD)));
}

#[test]
fn transfers_stay_on_the_disk() {
    let (_bed, bus, _device, _file) = disk();
    let lun = bus.lun(0, 0).unwrap();
    assert!(matches!(
        run(&lun, &[0x28, 0, 0, 0, 7, 0xff, 0, 0, 1]),
        Command::Read { offset: 0xffe00, len: 512 }
    ));
    assert!(matches!(run(&lun, &[0x28, 0, 0, 0, 7, 0xff, 0, 0, 2]), Command::Check(LBA_OUT_OF_RANGE)));
    let far = [0x88, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1];
    assert!(matches!(run(&lun, &far), Command::Check(LBA_OUT_OF_RANGE)));
    assert!(matches!(run(&lun, &[0x2a, 8, 0, 0, 0, 1, 0, 0, 1]), Command::Write { fua: true, .. }));
    assert!(matches!(run(&lun, &[0x0a, 0, 0, 1, 0]), Command::Write { len: 131_072, .. }));
    let sense = data(run(&lun, &[3, 0, 0, 0, 18]));
    assert_eq!((sense[2], sense[12]), (5, 0x21));
}

#[test]
fn parameters_are_checked() {
    let (_bed, bus, _device, _file) = disk();
    let lun = bus.lun(0, 0).unwrap();
    assert!(matches!(run(&lun, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24]), Command::Take { len: 24 }));
    let mut cdb = [0; 32];
    cdb[0] = 0x42;
    let mut list = [0; 24];
    list[3] = 16;
    list[15] = 4;
    list[19] = 2;
    let Command::Disk(requests) = lun.taken(&cdb, &list) else { panic!() };
    assert_eq!(requests, [block::Request::Discard { offset: 2048, len: 1024 }]);
    list[8] = 1;
    assert!(matches!(lun.taken(&cdb, &list), Command::Check(LBA_OUT_OF_RANGE)));
    list[3] = 32;
    assert!(matches!(lun.taken(&cdb, &list), Command::Check(_)));
    // The geometry, which is given or made up from the size.
    let page = data(run(&lun, &[0x1a, 8, 4, 0, 255]));
    assert_eq!((page.len(), &page[4..10]), (28, &[4, 22, 0, 0, 2, 16][..]));
    assert_eq!(data(run(&lun, &[0x1a, 8, 5, 0, 255]))[8..10], [16, 63]);
    let all = data(run(&lun, &[0x1a, 8, 0x3f, 0, 255]));
    assert_eq!(all.len(), 4 + 12 + 24 + 32 + 20);
    // The caching page switches the write cache.
    assert_eq!(data(run(&lun, &[0x1a, 8, 8, 0, 255]))[6], 4);
    cdb[0] = 0x15;
    let mut page = vec![0, 0, 0, 0, 8, 18];
    page.resize(24, 0);
    assert!(matches!(lun.taken(&cdb, &page), Command::Disk(_)));
    assert!(!lun.backend.write_cache());
    assert_eq!(data(run(&lun, &[0x1a, 8, 8, 0, 255]))[6], 0);
}

#[test]
fn places_are_chosen_and_checked() {
    let (bed, bus, _device, _file) = disk();
    let files: Vec<_> = ["a", "b", "c"].into_iter().map(|name| bed.drive(name, &[0; 4096]).1).collect();
    let error = |given: &[(&str, &str)]| bed.try_make(&HD, bus.clone(), given).err().unwrap().text;
    assert_eq!(error(&[("drive", "a"), ("channel", "1")]), "bad scsi channel id: 1");
    assert_eq!(error(&[("drive", "a"), ("scsi-id", "8")]), "bad scsi device id: 8");
    assert_eq!(error(&[("drive", "a"), ("scsi-id", "0"), ("lun", "0")]), "lun already used by 'dev0'");
    assert_eq!(error(&[]), "drive property not set");
    bed.make(&HD, bus.clone(), &[("drive", "a")]);
    assert!(bus.lun(1, 0).is_some());
    let cd = bed.make(&CD, bus.clone(), &[("scsi-id", "1")]);
    assert!(bus.lun(1, 1).unwrap().cdrom.is_some());
    cd.unplug();
    assert!(bus.lun(1, 1).is_none());
    drop(files);
}

#[test]
fn random_command_blocks_are_harmless() {
    let (bed, bus, _device, _file) = disk();
    let (_, _cd_file) = bed.drive("cd", &[0; 1 << 20]);
    bed.make(&CD, bus.clone(), &[("drive", "cd")]);
    let mut random = Random(99);
    for round in 0..60_000u64 {
        let lun = bus.lun((round & 1) as u8, 0).unwrap();
        let mut cdb = [0; 32];
        cdb.as_chunks_mut::<8>().0.iter_mut().for_each(|part| *part = random.next().to_le_bytes());
        if random.below(2) == 0 {
            cdb[2..7].fill(0);
        }
        match lun.start(&cdb, &[0, 1, 300]) {
            Command::Read { offset, len } | Command::Write { offset, len, .. } => {
                assert!(len > 0 && offset + len <= 1 << 20);
            }
            Command::Take { len } => {
                let data: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
                lun.taken(&cdb, &data);
            }
            _ => {}
        }
    }
}
