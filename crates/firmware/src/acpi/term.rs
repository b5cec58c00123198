//! AML terms as owned bytes, so that objects nest without borrowing each other.
//! Encodings: ACPI 6.4 §20.2 and §6.4 (resources); the encoder is `acpi_tables`.

use acpi_tables::aml;
use acpi_tables::{Aml, AmlSink};

/// One encoded term.
#[derive(Clone)]
pub struct Term(Vec<u8>);

impl Aml for Term {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// Encodes anything.
pub fn term(object: impl Aml) -> Term {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    Term(bytes)
}

impl Term {
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

fn refs(children: &[Term]) -> Vec<&dyn Aml> {
    children.iter().map(|child| child as &dyn Aml).collect()
}

pub fn path(name: &str) -> Term {
    term(aml::Path::new(name))
}

pub fn int(value: u64) -> Term {
    term(value)
}

pub fn text(value: &'static str) -> Term {
    term(value)
}

pub fn eisa(id: &str) -> Term {
    term(aml::EISAName::new(id))
}

pub fn name(at: &str, value: Term) -> Term {
    term(aml::Name::new(at.into(), &value))
}

pub fn package(children: &[Term]) -> Term {
    term(aml::Package::new(refs(children)))
}

/// A package of more than 255 elements has another encoding; this picks the right one.
pub fn long_package(children: &[Term]) -> Term {
    if children.len() <= 255 {
        return package(children);
    }
    // DefVarPackage: 13h PkgLength NumElements elements.
    let mut body = int(children.len() as u64).0;
    children.iter().for_each(|child| body.extend_from_slice(&child.0));
    let mut bytes = vec![0x13];
    bytes.extend(package_length(body.len()));
    bytes.extend(body);
    Term(bytes)
}

/// PkgLength of a term whose contents (behind the length) are `len` bytes.
fn package_length(len: usize) -> Vec<u8> {
    let own = [62, 4092, 1 << 20].iter().position(|&most| len <= most).unwrap_or(3) + 1;
    let total = len + own;
    if own == 1 {
        return vec![total as u8];
    }
    let mut bytes = vec![((own - 1) << 6) as u8 | (total & 0xf) as u8];
    (0..own - 1).for_each(|i| bytes.push((total >> (4 + 8 * i)) as u8));
    bytes
}

pub fn device(at: &str, children: &[Term]) -> Term {
    term(aml::Device::new(at.into(), refs(children)))
}

pub fn scope(at: &str, children: &[Term]) -> Term {
    term(aml::Scope::new(at.into(), refs(children)))
}

pub fn method(at: &str, args: u8, serialized: bool, body: &[Term]) -> Term {
    term(aml::Method::new(at.into(), args, serialized, refs(body)))
}

pub fn returns(value: Term) -> Term {
    term(aml::Return::new(&value))
}

pub fn store(to: Term, value: Term) -> Term {
    term(aml::Store::new(&to, &value))
}

pub fn arg(number: u8) -> Term {
    term(aml::Arg(number))
}

pub fn local(number: u8) -> Term {
    term(aml::Local(number))
}

/// `target = a & b`; see [`no_target`].
pub fn and(target: Term, a: Term, b: Term) -> Term {
    term(aml::And::new(&target, &a, &b))
}

pub fn or(target: Term, a: Term, b: Term) -> Term {
    term(aml::Or::new(&target, &a, &b))
}

/// The result is only used as a value.
pub fn no_target() -> Term {
    Term(vec![0])
}

pub fn equal(a: Term, b: Term) -> Term {
    term(aml::Equal::new(&a, &b))
}

pub fn not_equal(a: Term, b: Term) -> Term {
    term(aml::NotEqual::new(&a, &b))
}

pub fn when(condition: Term, body: &[Term]) -> Term {
    term(aml::If::new(&condition, refs(body)))
}

pub fn otherwise(body: &[Term]) -> Term {
    term(aml::Else::new(refs(body)))
}

pub fn uuid(text: &str) -> Term {
    term(aml::Uuid::new(text))
}

pub fn dword_field(source: Term, offset: u64, name: &str) -> Term {
    term(aml::CreateDWordField::new(&path(name), &source, &int(offset)))
}

pub fn region(name: &str, space: aml::OpRegionSpace, start: u64, len: u64) -> Term {
    term(aml::OpRegion::new(name.into(), space, &int(start), &int(len)))
}

/// A field of whole bytes, each named.
pub fn byte_fields(region: &str, names: &[&[u8; 4]]) -> Term {
    fields(region, aml::FieldAccessType::Byte, 8, names)
}

/// A field of doublewords, each named.
pub fn dword_fields(region: &str, names: &[&[u8; 4]]) -> Term {
    fields(region, aml::FieldAccessType::DWord, 32, names)
}

fn fields(region: &str, access: aml::FieldAccessType, bits: usize, names: &[&[u8; 4]]) -> Term {
    use aml::{FieldEntry::Named, FieldLockRule::NoLock, FieldUpdateRule::Preserve};
    let fields = names.iter().map(|&&name| Named(name, bits)).collect();
    term(aml::Field::new(region.into(), access, NoLock, Preserve, fields))
}

pub fn mutex(name: &str) -> Term {
    term(aml::Mutex::new(name.into(), 0))
}

/// `timeout` in milliseconds; FFFFh: for ever.
pub fn acquire(mutex: &str, timeout: u16) -> Term {
    term(aml::Acquire::new(mutex.into(), timeout))
}

pub fn release(mutex: &str) -> Term {
    term(aml::Release::new(mutex.into()))
}

pub fn notify(object: &str, value: u64) -> Term {
    term(aml::Notify::new(&path(object), &int(value)))
}

/// `a << b` as a value.
pub fn shift_left(a: Term, b: Term) -> Term {
    term(aml::ShiftLeft::new(&no_target(), &a, &b))
}

pub fn call(method: &str, arguments: &[Term]) -> Term {
    term(aml::MethodCall::new(method.into(), refs(arguments)))
}

pub fn resources(children: &[Term]) -> Term {
    term(aml::ResourceTemplate::new(refs(children)))
}

pub fn io(start: u16, len: u8) -> Term {
    term(aml::IO::new(start, start, 1, len))
}

/// Edge-triggered, active-high interrupt of an ISA device (§6.4.2.1, two-byte form).
pub fn irq(number: u8) -> Term {
    let [low, high] = (1u16 << (number & 15)).to_le_bytes();
    Term(vec![0x22, low, high])
}

/// DMA channel, 8 bits, not a bus master, compatibility speed (§6.4.2.2).
pub fn dma(channel: u8) -> Term {
    Term(vec![0x2a, 1 << (channel & 7), 0])
}

/// Level-triggered, active-high, shared interrupt, any of `numbers` (§6.4.3.6).
pub fn level_irqs(numbers: &[u32]) -> Term {
    let mut bytes = vec![0x89];
    bytes.extend((2 + 4 * numbers.len() as u16).to_le_bytes());
    bytes.extend([0b1001, numbers.len() as u8]);
    numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    Term(bytes)
}

pub fn memory32(writable: bool, start: u32, len: u32) -> Term {
    term(aml::Memory32Fixed::new(writable, start, len))
}

pub fn bus_window(first: u16, last: u16) -> Term {
    term(aml::AddressSpace::new_bus_number(first, last))
}

pub fn io_window(first: u16, last: u16) -> Term {
    term(aml::AddressSpace::new_io(first, last, None))
}

pub fn memory_window(first: u32, last: u32) -> Term {
    term(aml::AddressSpace::new_memory(aml::AddressSpaceCacheable::NotCacheable, true, first, last, None))
}

pub fn memory_window64(first: u64, last: u64) -> Term {
    term(aml::AddressSpace::new_memory(aml::AddressSpaceCacheable::Cacheable, true, first, last, None))
}
