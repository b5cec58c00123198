use super::*;
use crate::testbed::Testbed;

#[test]
fn pvpanic_tells_what_it_supports() {
    let bed = Testbed::new();
    let device = PvPanic::new(bed.services.power.clone(), 3);
    device.map(&bed.services.ports, 0x505);
    assert_eq!(bed.services.ports.load(0x505, 1), 3);
    for value in [1u64, 2, 3, 4] {
        bed.services.ports.store(0x505, 1, value);
    }
    assert_eq!(*bed.recorder.asked.lock().unwrap(), ["panicked", "crash loaded", "panicked"]);
    let bed = Testbed::new();
    PvPanic::new(bed.services.power.clone(), 1).map(&bed.services.ports, 0x505);
    bed.services.ports.store(0x505, 1, 2);
    assert!(bed.recorder.asked.lock().unwrap().is_empty());
}

#[test]
fn debug_exit_status() {
    let bed = Testbed::new();
    let device = Arc::new(DebugExit { power: bed.services.power.clone() });
    let mut given = serde_json::Map::new();
    given.insert("iobase".into(), "0xf4".into());
    given.insert("iosize".into(), "0x4".into());
    let props = Props::check(&DEBUG_EXIT, &given).unwrap();
    assert_eq!(port_range("isa-debug-exit", &props, "iobase", props.u64("iosize")).unwrap(), 0xf4);
    device.power.exit((0x10 << 1 | 1) & 0xff);
    assert_eq!(*bed.recorder.asked.lock().unwrap(), ["exit 33"]);
    given.insert("iobase".into(), "0xfffe".into());
    let props = Props::check(&DEBUG_EXIT, &given).unwrap();
    assert!(port_range("isa-debug-exit", &props, "iobase", 4).is_err());
    assert!(port_range("isa-debug-exit", &props, "iobase", 2).is_ok());
}

#[test]
fn legacy_ports() {
    let bed = Testbed::new();
    let device = LegacyPorts::new(bed.services.irqs[13].clone());
    device.map(&bed.services.ports);
    bed.services.ports.store(0x80, 1, 0x42);
    assert_eq!(device.post_code(), 0x42);
    assert_eq!(bed.services.ports.load(0x80, 1), 0x42);
    device.raise_ferr();
    assert!(bed.levels.lock().unwrap()[13]);
    bed.services.ports.store(0xf0, 1, 0);
    assert!(!bed.levels.lock().unwrap()[13]);
}
