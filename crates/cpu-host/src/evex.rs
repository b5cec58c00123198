//! How an opmask restricts a memory operand (SDM vol. 2 §2.8 "Exception classifications of
//! EVEX-encoded instructions").

use crate::plan::Memory;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// How the bits of an opmask belong to a memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// A bit for each element, in turn; of a broadcast, several bits for one.
    Each,
    /// As many elements as there are bits set.
    Compact,
}

impl Spread {
    /// The bytes of an operand of `size` bytes that are accessed, as a mask.
    pub fn bytes(self, bits: u64, size: u32, element: u32) -> u64 {
        let first = |bytes: u32| u64::MAX.checked_shr(64 - bytes.min(64)).unwrap_or(0);
        match self {
            Spread::Compact => first(bits.count_ones() * element),
            Spread::Each => (0..64)
                .filter(|k| bits >> k & 1 != 0)
                .fold(0, |mask, k| mask | first(element) << (k * element % size)),
        }
    }
}

/// Whether an opmask restricts the memory operand. Instructions that move elements about read
/// their whole operand (classes E4NF, E5NF, E6NF).
pub fn restricts(instruction: &Instruction) -> bool {
    instruction.op_mask() != Register::None && !reads_all(instruction)
}

/// Stores that must be able to write all of their operand, whatever their mask (class E6NF).
pub fn needs_all(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        instruction.mnemonic(),
        M::Vextractf32x4 | M::Vextractf64x2 | M::Vextractf32x8 | M::Vextractf64x4
    ) || matches!(instruction.mnemonic(), M::Vextracti32x4 | M::Vextracti64x2 | M::Vextracti32x8)
        || instruction.mnemonic() == M::Vextracti64x4
}

fn reads_all(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Vmovddup | M::Vmovshdup | M::Vmovsldup => true,
        M::Vpshufb | M::Vpshufd | M::Vpshufhw | M::Vpshuflw | M::Vshufps | M::Vshufpd => true,
        M::Vshuff32x4 | M::Vshuff64x2 | M::Vshufi32x4 | M::Vshufi64x2 => true,
        M::Vpacksswb | M::Vpackssdw | M::Vpackuswb | M::Vpackusdw => true,
        M::Vpunpcklbw | M::Vpunpcklwd | M::Vpunpckldq | M::Vpunpcklqdq => true,
        M::Vpunpckhbw | M::Vpunpckhwd | M::Vpunpckhdq | M::Vpunpckhqdq => true,
        M::Vunpcklps | M::Vunpcklpd | M::Vunpckhps | M::Vunpckhpd => true,
        M::Vpmaddwd | M::Vpmaddubsw | M::Vpmultishiftqb => true,
        M::Vgf2p8affineqb | M::Vgf2p8affineinvqb => true,
        M::Valignd | M::Valignq | M::Vpalignr | M::Vdbpsadbw => true,
        M::Vpconflictd | M::Vpconflictq | M::Vcvtne2ps2bf16 => true,
        M::Vpermb | M::Vpermw | M::Vpermd | M::Vpermq | M::Vpermps | M::Vpermpd => true,
        M::Vpermilps | M::Vpermilpd => true,
        M::Vpermi2b | M::Vpermi2w | M::Vpermi2d | M::Vpermi2q | M::Vpermi2ps | M::Vpermi2pd => true,
        M::Vpermt2b | M::Vpermt2w | M::Vpermt2d | M::Vpermt2q | M::Vpermt2ps | M::Vpermt2pd => true,
        M::Vinsertf32x4 | M::Vinsertf64x2 | M::Vinsertf32x8 | M::Vinsertf64x4 => true,
        M::Vinserti32x4 | M::Vinserti64x2 | M::Vinserti32x8 | M::Vinserti64x4 => true,
        // The count of a shift.
        M::Vpsllw | M::Vpslld | M::Vpsllq | M::Vpsrlw | M::Vpsrld | M::Vpsrlq => counts(instruction),
        M::Vpsraw | M::Vpsrad | M::Vpsraq => counts(instruction),
        _ => false,
    }
}

fn counts(instruction: &Instruction) -> bool {
    instruction.op2_kind() == OpKind::Memory
}

/// Bytes of the memory operand that one bit of the opmask stands for.
pub fn element(instruction: &Instruction) -> u8 {
    use Mnemonic as M;
    match instruction.mnemonic() {
        // Sums of products.
        M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => 1,
        M::Vpmuludq | M::Vpmuldq => 8,
        M::Vpdpbusd | M::Vpdpbusds | M::Vpdpwssd | M::Vpdpwssds | M::Vdpbf16ps => 4,
        _ => u8::try_from(instruction.memory_size().element_size()).unwrap_or(1).max(1),
    }
}

/// How many bits of the opmask count for an instruction that spares elements, and how they
/// belong to its memory operand.
pub fn spread(instruction: &Instruction, memory: Memory) -> (u8, Spread) {
    let elements = memory.size / memory.element;
    if is_compact(instruction) {
        return (elements, Spread::Compact);
    }
    if instruction.is_broadcast() {
        // MemorySize::Broadcast512_Float32
        let name = format!("{:?}", instruction.memory_size());
        let bits = name.trim_start_matches("Broadcast").split('_').next().and_then(|n| n.parse::<u32>().ok());
        let elements = bits.map_or(64, |bits| bits / 8 / u32::from(memory.element));
        return (elements as u8, Spread::Each);
    }
    if is_repeated(instruction.mnemonic()) {
        let elements = instruction.op0_register().size() / usize::from(memory.element);
        return (elements as u8, Spread::Each);
    }
    (elements, Spread::Each)
}

/// Compressing stores and expanding loads: their operand is as long as their mask has bits.
pub fn is_compact(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let mnemonic = instruction.mnemonic();
    matches!(mnemonic, M::Vcompressps | M::Vcompresspd | M::Vexpandps | M::Vexpandpd)
        || matches!(mnemonic, M::Vpcompressb | M::Vpcompressw | M::Vpcompressd | M::Vpcompressq)
        || matches!(mnemonic, M::Vpexpandb | M::Vpexpandw | M::Vpexpandd | M::Vpexpandq)
}

/// Loads of something smaller than their target, again and again.
fn is_repeated(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Vbroadcastss | M::Vbroadcastsd | M::Vbroadcastf32x2 | M::Vbroadcastf32x4)
        || matches!(mnemonic, M::Vbroadcastf32x8 | M::Vbroadcastf64x2 | M::Vbroadcastf64x4)
        || matches!(mnemonic, M::Vbroadcasti32x2 | M::Vbroadcasti32x4 | M::Vbroadcasti32x8)
        || matches!(mnemonic, M::Vbroadcasti64x2 | M::Vbroadcasti64x4)
        || matches!(mnemonic, M::Vpbroadcastb | M::Vpbroadcastw | M::Vpbroadcastd | M::Vpbroadcastq)
}
