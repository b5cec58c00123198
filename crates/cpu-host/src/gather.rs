//! VGATHER*, VPGATHER*, VSCATTER*, VPSCATTER*: memory is accessed element by element, with
//! faults between (SDM vol. 2, VPGATHERDD, VPSCATTERDD): the caller walks the elements.

use crate::SimdContext;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// A gather's or scatter's operands.
///
/// For each element 0..[`Gather::count`]: if [`Gather::index`] is `Some(i)`, load
/// [`Gather::element_size`] bytes at `segment + base + i * scale + displacement` and
/// [`Gather::set`] it, or store those of [`Gather::get`] there and say [`Gather::done`]; on a
/// fault stop there (finished elements stay, their masks are clear). In the end
/// [`Gather::finish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gather {
    /// Destination of a gather, source of a scatter.
    data: u8,
    indices: u8,
    mask: Mask,
    /// Elements go to memory.
    pub scatter: bool,
    /// Bytes of an element: 4 or 8.
    pub element_size: u8,
    /// Bytes of an index: 4 or 8.
    pub index_size: u8,
    pub count: u8,
    /// The vector length in bytes: that of the wider register.
    width: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mask {
    /// The top bits of a vector register's elements.
    Vector(u8),
    /// The bits of an opmask register.
    Opmask(u8),
}

impl Gather {
    /// `None` if this is no gather or scatter or if two of its registers are the same (#UD).
    pub(crate) fn new(instruction: &Instruction) -> Option<Gather> {
        use Mnemonic as M;
        let (index_size, element_size) = match instruction.mnemonic() {
            M::Vpgatherdd | M::Vgatherdps | M::Vpscatterdd | M::Vscatterdps => (4, 4),
            M::Vpgatherdq | M::Vgatherdpd | M::Vpscatterdq | M::Vscatterdpd => (4, 8),
            M::Vpgatherqd | M::Vgatherqps | M::Vpscatterqd | M::Vscatterqps => (8, 4),
            M::Vpgatherqq | M::Vgatherqpd | M::Vpscatterqq | M::Vscatterqpd => (8, 8),
            _ => return None,
        };
        let scatter = instruction.op0_kind() == OpKind::Memory;
        let data = if scatter { instruction.op1_register() } else { instruction.op0_register() };
        let indices = instruction.memory_index();
        let mask = match instruction.op_mask() {
            Register::None => Mask::Vector(instruction.op2_register().number() as u8),
            register => Mask::Opmask(register.number() as u8),
        };
        let elements = |register: Register, size: u8| (register.size() / usize::from(size)) as u8;
        let gather = Gather {
            data: data.number() as u8,
            indices: indices.number() as u8,
            mask,
            scatter,
            element_size,
            index_size,
            count: elements(data, element_size).min(elements(indices, index_size)),
            width: data.size().max(indices.size()) as u8,
        };
        let distinct = match mask {
            Mask::Vector(mask) => {
                gather.data != gather.indices && gather.data != mask && gather.indices != mask
            }
            Mask::Opmask(mask) => mask != 0 && (scatter || gather.data != gather.indices),
        };
        distinct.then_some(gather)
    }

    /// Its mask is an opmask: the instruction belongs to AVX-512.
    pub fn is_evex(&self) -> bool {
        matches!(self.mask, Mask::Opmask(_))
    }

    fn element(register: &[u64; 8], size: u8, i: u8) -> u64 {
        if size == 8 {
            register[usize::from(i) & 7]
        } else {
            register[usize::from(i / 2) & 7] >> (32 * u32::from(i & 1)) & 0xffff_ffff
        }
    }

    fn put(register: &mut [u64; 8], size: u8, i: u8, value: u64) {
        if size == 8 {
            register[usize::from(i) & 7] = value;
        } else {
            let shift = 32 * u32::from(i & 1);
            let word = &mut register[usize::from(i / 2) & 7];
            *word = *word & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift;
        }
    }

    /// The sign-extended index of element `i` if its mask bit is set.
    pub fn index(&self, context: &SimdContext, i: u8) -> Option<i64> {
        let wanted = match self.mask {
            Mask::Vector(mask) => {
                let element = Self::element(&context.zmm[usize::from(mask)], self.element_size, i);
                element >> (8 * u32::from(self.element_size) - 1)
            }
            Mask::Opmask(mask) => context.opmask[usize::from(mask)] >> i,
        };
        if wanted & 1 == 0 {
            return None;
        }
        let raw = Self::element(&context.zmm[usize::from(self.indices)], self.index_size, i);
        Some(if self.index_size == 4 { i64::from(raw as u32 as i32) } else { raw as i64 })
    }

    /// Element `i`, to be stored.
    pub fn get(&self, context: &SimdContext, i: u8) -> u64 {
        Self::element(&context.zmm[usize::from(self.data)], self.element_size, i)
    }

    /// Element `i` was loaded. (EVEX gathers zero what lies above their vector length with the first
    /// element, which shows if a later one faults.)
    pub fn set(&self, context: &mut SimdContext, i: u8, value: u64) {
        let register = &mut context.zmm[usize::from(self.data)];
        Self::put(register, self.element_size, i, value);
        if self.is_evex() {
            register[usize::from(self.width) / 8..].fill(0);
        }
        self.done(context, i);
    }

    /// Element `i` was loaded or stored: clears its mask.
    pub fn done(&self, context: &mut SimdContext, i: u8) {
        match self.mask {
            Mask::Vector(mask) => Self::put(&mut context.zmm[usize::from(mask)], self.element_size, i, 0),
            Mask::Opmask(mask) => context.opmask[usize::from(mask)] &= !(1 << i),
        }
    }

    /// All elements are done: clears the mask and what lies above the elements.
    pub fn finish(&self, context: &mut SimdContext) {
        match self.mask {
            Mask::Vector(mask) => context.zmm[usize::from(mask)] = [0; 8],
            Mask::Opmask(mask) => context.opmask[usize::from(mask)] = 0,
        }
        if !self.scatter {
            let used = usize::from(self.count) * usize::from(self.element_size) / 8;
            context.zmm[usize::from(self.data)][used..].fill(0);
        }
    }
}
