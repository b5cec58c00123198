//! SplitMix64: small, seedable, good enough to choose test cases.

#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// 0..bound (bound > 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.word() % bound
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A value of the kinds that find bugs: small, all ones, sign bits, powers of two, random.
    pub fn value(&mut self) -> u64 {
        match self.below(10) {
            0 => 0,
            1 => u64::MAX,
            2 => self.below(70),
            3 => self.below(70).wrapping_neg(),
            4 => 1 << self.below(64),
            5 => (1u64 << self.below(64)).wrapping_sub(1),
            6 => self.pick(&[
                0x7f,
                0x80,
                0x7fff,
                0x8000,
                0x7fff_ffff,
                0x8000_0000,
                0x8000_0000_0000_0000,
                0x7fff_ffff_ffff_ffff,
                0xffff_ffff,
            ]),
            7 => self.word() & 0xffff_ffff,
            _ => self.word(),
        }
    }

    /// A double or two floats with interesting exponents.
    pub fn float(&mut self) -> u64 {
        match self.below(5) {
            0 => self.double(),
            1 => u64::from(self.single()) << 32 | u64::from(self.single()),
            2 => self.word(),
            3 => (self.below(2000) as f64 - 1000.0).to_bits(),
            _ => self.double(),
        }
    }

    fn double(&mut self) -> u64 {
        let exponent = match self.below(6) {
            0 => 0,
            1 => 0x7ff,
            2 => self.below(0x800),
            3 => 1 + self.below(30),
            _ => 0x3f0 + self.below(32),
        };
        let mantissa = match self.below(4) {
            0 => 0,
            1 => 1 << self.below(52),
            _ => self.word() >> 12,
        };
        self.below(2) << 63 | exponent << 52 | mantissa
    }

    fn single(&mut self) -> u32 {
        let exponent = match self.below(6) {
            0 => 0,
            1 => 0xff,
            2 => self.below(0x100) as u32,
            _ => 0x78 + self.below(16) as u32,
        };
        let mantissa = match self.below(4) {
            0 => 0,
            1 => 1 << self.below(23),
            _ => self.word() as u32 >> 9,
        };
        (self.below(2) as u32) << 31 | exponent << 23 | mantissa
    }

    /// An 80-bit value: normal, zero, denormal, infinity, NaN, and the unsupported encodings.
    pub fn extended(&mut self) -> [u8; 16] {
        let exponent = match self.below(8) {
            0 => 0,
            1 => 0x7fff,
            2 => self.below(0x8000),
            3 => 1 + self.below(70),
            _ => 0x3fc0 + self.below(128),
        };
        let mantissa = match self.below(8) {
            0 => 0,
            1 => self.word(),
            2 => 1 << 63,
            3 => 3 << 62,
            _ => self.word() | 1 << 63,
        };
        let mut value = [0; 16];
        value[..8].copy_from_slice(&mantissa.to_le_bytes());
        let top = (exponent | self.below(2) << 15) as u16;
        value[8..10].copy_from_slice(&top.to_le_bytes());
        value
    }
}
