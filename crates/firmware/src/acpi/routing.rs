//! PCI interrupt routing: the root bus's _PRT and the link devices.
//!
//! PIIX3: pin p of slot s goes to PIRQ (s + p - 1) mod 4, through registers 60h-63h of the
//! ISA bridge to one of the 8259 inputs. ICH9: slots below 25 (and 30) rotate over PIRQE-H,
//! the others over PIRQA-D; PIRQA-H are I/O APIC pins 16-23, or 8259 inputs through 60h-63h
//! and 68h-6Bh.

use super::term::*;
use crate::platform::Platform;

/// The 8259 inputs that links can choose.
const CHOICES: [u32; 3] = [5, 10, 11];
/// Bit 7 of a routing register: not routed.
const DISABLED: u64 = 0x80;

pub fn prt(platform: &Platform) -> Term {
    if !platform.is_q35() {
        return method("_PRT", 0, false, &[returns(piix_table())]);
    }
    let with_apic = q35_table("GSI");
    let with_pic = q35_table("LNK");
    method("_PRT", 0, false, &[when(equal(path("PICF"), int(0)), &[returns(with_pic)]), returns(with_apic)])
}

/// Address (all functions of a slot), pin, link device, index of its interrupt.
fn entry(slot: u64, pin: u64, link: &str) -> Term {
    package(&[int(slot << 16 | 0xffff), int(pin), path(link), int(0)])
}

fn piix_table() -> Term {
    const LINKS: [&str; 4] = ["LNKA", "LNKB", "LNKC", "LNKD"];
    let mut entries = Vec::new();
    for slot in 0..32 {
        for pin in 0..4 {
            // Power management (slot 1, pin A) is wired to the SCI.
            let link = if (slot, pin) == (1, 0) { "LNKS" } else { LINKS[(slot + pin + 3) % 4] };
            entries.push(entry(slot as u64, pin as u64, link));
        }
    }
    long_package(&entries)
}

fn q35_table(prefix: &str) -> Term {
    let mut entries = Vec::new();
    for slot in 0..32usize {
        for pin in 0..4usize {
            let pirq = match slot {
                0..25 => b'E' + ((slot + pin) % 4) as u8,
                30 => b'E' + pin as u8,
                _ => b'A' + pin as u8,
            };
            entries.push(entry(slot as u64, pin as u64, &format!("{prefix}{}", char::from(pirq))));
        }
    }
    long_package(&entries)
}

pub fn links(platform: &Platform) -> Vec<Term> {
    let letters = if platform.is_q35() { 'A'..='H' } else { 'A'..='D' };
    let mut links: Vec<Term> = letters.clone().zip(0..).map(|(letter, uid)| link(letter, uid)).collect();
    if platform.is_q35() {
        links.extend(letters.zip(16..).map(|(letter, gsi)| fixed(&format!("GSI{letter}"), gsi)));
    } else {
        links.push(fixed("LNKS", platform.pm.sci.into()));
    }
    links
}

/// A link whose interrupt is chosen in a routing register of the ISA bridge.
fn link(letter: char, uid: u64) -> Term {
    let register = || path(&format!("\\_SB_.PCI0.ISA_.PRQ{letter}"));
    let disabled = || and(no_target(), register(), int(DISABLED));
    let current = resources(&[level_irqs(&[0])]);
    device(
        &format!("LNK{letter}"),
        &[
            name("_HID", eisa("PNP0C0F")),
            name("_UID", int(uid)),
            name("_PRS", resources(&[level_irqs(&CHOICES)])),
            method("_STA", 0, false, &[when(disabled(), &[returns(int(9))]), returns(int(0xb))]),
            method("_DIS", 0, false, &[or(register(), register(), int(DISABLED))]),
            method(
                "_CRS",
                0,
                true,
                &[
                    name("PRR0", current),
                    dword_field(path("PRR0"), 5, "PRRI"),
                    store(path("PRRI"), and(no_target(), register(), int(0xf))),
                    returns(path("PRR0")),
                ],
            ),
            method("_SRS", 1, false, &[dword_field(arg(0), 5, "PRRI"), store(register(), path("PRRI"))]),
        ],
    )
}

/// A link that always leads to one interrupt.
fn fixed(at: &str, gsi: u32) -> Term {
    let ranges = resources(&[level_irqs(&[gsi])]);
    device(
        at,
        &[
            name("_HID", eisa("PNP0C0F")),
            name("_UID", int(gsi.into())),
            name("_PRS", ranges.clone()),
            name("_CRS", ranges),
            // There is nothing to choose or to switch off.
            method("_SRS", 1, false, &[]),
            method("_DIS", 0, false, &[]),
        ],
    )
}
