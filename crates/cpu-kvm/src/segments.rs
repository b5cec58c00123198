//! Segments in KVM's form and ours.

use cpu::state::{Segment, TableRegister};
use kvm_bindings::{kvm_dtable, kvm_segment};

pub fn to_kvm(segment: &Segment) -> kvm_segment {
    let bit = |at: u16| (segment.access >> at & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind(),
        s: bit(4),
        dpl: segment.dpl(),
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: u8::from(!segment.present()),
        padding: 0,
    }
}

pub fn from_kvm(segment: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u16| u16::from(value & 1) << at;
    let present = if segment.unusable != 0 { 0 } else { segment.present };
    let access = u16::from(segment.type_ & 15)
        | bit(segment.s, 4)
        | u16::from(segment.dpl & 3) << 5
        | bit(present, 7)
        | bit(segment.avl, 12)
        | bit(segment.l, 13)
        | bit(segment.db, 14)
        | bit(segment.g, 15);
    Segment { selector: segment.selector, base: segment.base, limit: segment.limit, access }
}

pub fn table_to_kvm(table: &TableRegister) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, padding: [0; 3] }
}

pub fn table_from_kvm(table: &kvm_dtable) -> TableRegister {
    TableRegister { base: table.base, limit: table.limit }
}
