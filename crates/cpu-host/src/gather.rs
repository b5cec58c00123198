//! VGATHER*, VPGATHER*: memory is read element by element, with faults between (SDM vol. 2,
//! VPGATHERDD): the caller walks the elements.

use crate::SimdContext;
use iced_x86::{Instruction, MemorySize, Mnemonic};

/// A gather instruction's operands.
///
/// For each element 0..[`Gather::count`]: if [`Gather::index`] is `Some(i)`, load
/// [`Gather::element_size`] bytes at `segment + base + i * scale + displacement` and
/// [`Gather::set`] it; on a fault stop there (finished elements stay, their masks are clear).
/// In the end [`Gather::finish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gather {
    destination: u8,
    indices: u8,
    mask: u8,
    /// Bytes of an element: 4 or 8.
    pub element_size: u8,
    /// Bytes of an index: 4 or 8.
    pub index_size: u8,
    pub count: u8,
    /// The destination is a YMM register.
    wide: bool,
}

impl Gather {
    /// `None` if this is no gather or if two of its registers are the same (#UD).
    pub(crate) fn new(instruction: &Instruction) -> Option<Gather> {
        use Mnemonic as M;
        let (index_size, element_size) = match instruction.mnemonic() {
            M::Vpgatherdd | M::Vgatherdps => (4, 4),
            M::Vpgatherdq | M::Vgatherdpd => (4, 8),
            M::Vpgatherqd | M::Vgatherqps => (8, 4),
            M::Vpgatherqq | M::Vgatherqpd => (8, 8),
            _ => return None,
        };
        let (destination, indices) = (instruction.op0_register(), instruction.memory_index());
        let wide_index = indices.is_ymm();
        let width = |wide: bool| if wide { 32u8 } else { 16 };
        let wide = destination.is_ymm();
        let count = (width(wide) / element_size).min(width(wide_index) / index_size);
        let gather = Gather {
            destination: destination.number() as u8,
            indices: indices.number() as u8,
            mask: instruction.op2_register().number() as u8,
            element_size,
            index_size,
            count,
            wide,
        };
        let distinct = gather.destination != gather.indices
            && gather.destination != gather.mask
            && gather.indices != gather.mask;
        debug_assert!(instruction.memory_size() != MemorySize::Unknown);
        distinct.then_some(gather)
    }

    fn element(register: &[u64; 4], size: u8, i: u8) -> u64 {
        if size == 8 {
            register[usize::from(i) & 3]
        } else {
            register[usize::from(i / 2) & 3] >> (32 * u32::from(i & 1)) & 0xffff_ffff
        }
    }

    fn put(register: &mut [u64; 4], size: u8, i: u8, value: u64) {
        if size == 8 {
            register[usize::from(i) & 3] = value;
        } else {
            let shift = 32 * u32::from(i & 1);
            let word = &mut register[usize::from(i / 2) & 3];
            *word = *word & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift;
        }
    }

    /// The sign-extended index of element `i` if its mask bit is set.
    pub fn index(&self, context: &SimdContext, i: u8) -> Option<i64> {
        let mask = Self::element(&context.ymm[usize::from(self.mask)], self.element_size, i);
        if mask >> (8 * u32::from(self.element_size) - 1) & 1 == 0 {
            return None;
        }
        let raw = Self::element(&context.ymm[usize::from(self.indices)], self.index_size, i);
        Some(if self.index_size == 4 { i64::from(raw as u32 as i32) } else { raw as i64 })
    }

    /// Element `i` was loaded: stores it and clears its mask.
    pub fn set(&self, context: &mut SimdContext, i: u8, value: u64) {
        Self::put(&mut context.ymm[usize::from(self.destination)], self.element_size, i, value);
        Self::put(&mut context.ymm[usize::from(self.mask)], self.element_size, i, 0);
    }

    /// All elements are done: clears the mask and what lies above the elements.
    pub fn finish(&self, context: &mut SimdContext) {
        context.ymm[usize::from(self.mask)] = [0; 4];
        let destination = &mut context.ymm[usize::from(self.destination)];
        let used = usize::from(self.count) * usize::from(self.element_size) / 8;
        destination[used..].fill(0);
        debug_assert!(self.wide || used <= 2);
    }
}
