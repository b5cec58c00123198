//! PCI hot-plug through ACPI (ACPI 6.4 §6.3): slots that can be ejected, and the general
//! purpose event by which the board tells of functions that came or shall go. The registers
//! are those of `devices::pci` (ports AE00h to AE13h).

use super::term::*;
use acpi_tables::aml::OpRegionSpace::SystemIO;

/// First port and number of ports.
pub const PORTS: (u16, u8) = (0xae00, 0x14);
/// Slots 0 and 1 hold the chipset.
const SLOTS: std::ops::Range<u64> = 2..32;
const FOREVER: u16 = 0xffff;
const DEVICE_CHECK: u64 = 1;
const EJECT_REQUEST: u64 = 3;

fn slot_name(slot: u64) -> String {
    format!("S{:02X}_", slot << 3)
}

/// What stands below the root bridge.
pub fn slots() -> Vec<Term> {
    let mut terms = vec![
        region("PCST", SystemIO, PORTS.0.into(), 8),
        dword_fields("PCST", &[b"PCIU", b"PCID"]),
        region("SEJ_", SystemIO, u64::from(PORTS.0) + 8, 4),
        dword_fields("SEJ_", &[b"B0EJ"]),
        region("BNMR", SystemIO, u64::from(PORTS.0) + 16, 4),
        dword_fields("BNMR", &[b"BNUM"]),
        mutex("BLCK"),
        method(
            "PCEJ",
            1,
            false,
            &[
                acquire("BLCK", FOREVER),
                store(path("BNUM"), int(0)),
                store(path("B0EJ"), shift_left(int(1), arg(0))),
                release("BLCK"),
            ],
        ),
        method("PCNT", 0, false, &news()),
    ];
    terms.extend(SLOTS.map(|slot| {
        let eject = method("_EJ0", 1, false, &[call("PCEJ", &[int(slot)])]);
        device(&slot_name(slot), &[name("_SUN", int(slot)), name("_ADR", int(slot << 16)), eject])
    }));
    terms
}

/// Reads what came and what shall go, and tells the slots.
fn news() -> Vec<Term> {
    let mut body = vec![
        acquire("BLCK", FOREVER),
        store(path("BNUM"), int(0)),
        store(local(0), path("PCIU")),
        store(local(1), path("PCID")),
        release("BLCK"),
    ];
    for slot in SLOTS {
        for (number, event) in [(0, DEVICE_CHECK), (1, EJECT_REQUEST)] {
            let concerned = and(no_target(), local(number), int(1 << slot));
            body.push(when(concerned, &[notify(&slot_name(slot), event)]));
        }
    }
    body
}

/// General purpose event 1.
pub fn event() -> Term {
    scope("\\_GPE", &[method("_E01", 0, false, &[call("\\_SB_.PCI0.PCNT", &[])])])
}
