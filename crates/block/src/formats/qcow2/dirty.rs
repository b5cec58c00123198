//! Which sectors of a table in memory differ from the file.

/// 512-byte sectors of a table.
#[derive(Clone, Debug, Default)]
pub struct Sectors {
    bits: Vec<u64>,
    any: bool,
    len: usize,
}

impl Sectors {
    /// For a table of `len` bytes.
    pub fn new(len: usize) -> Self {
        Sectors { bits: vec![0; len.div_ceil(512).div_ceil(64)], any: false, len }
    }

    pub fn mark(&mut self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        self.any = true;
        for sector in offset / 512..=(offset + len - 1) / 512 {
            if let Some(word) = self.bits.get_mut(sector / 64) {
                *word |= 1 << (sector % 64);
            }
        }
    }

    pub fn is_clean(&self) -> bool {
        !self.any
    }

    pub fn mark_all(&mut self) {
        self.mark(0, self.len);
    }

    /// Byte ranges of dirty sectors, which become clean.
    pub fn take(&mut self) -> Vec<(usize, usize)> {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        if !self.any {
            return ranges;
        }
        for sector in 0..self.len.div_ceil(512) {
            if self.bits[sector / 64] >> (sector % 64) & 1 == 0 {
                continue;
            }
            let (from, to) = (sector * 512, (sector * 512 + 512).min(self.len));
            match ranges.last_mut() {
                Some(last) if last.1 == from => last.1 = to,
                _ => ranges.push((from, to)),
            }
        }
        self.bits.fill(0);
        self.any = false;
        ranges
    }
}
