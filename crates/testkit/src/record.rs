//! What the guest program `writer` writes to a disk: numbered requests at places that guest and
//! host both can compute, so that an image tells by itself which requests it holds.
//!
//! A disk is divided evenly among threads. Request `n` (from 1) of a thread writes 1 to
//! [`LARGEST`] blocks of its part, each filled with bytes that depend on seed, block and `n`.
//! (The program includes this file: it needs nothing but the standard library.)

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Blocks of the largest request.
pub const LARGEST: u64 = 8;

const MAGIC: u64 = u64::from_le_bytes(*b"RYWRITER");

/// What is written to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub seed: u64,
    pub threads: usize,
    /// Blocks of the disk that are written to.
    pub blocks: u64,
    /// Whether one request in eight writes zeros.
    pub zeros: bool,
}

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub first: u64,
    pub count: u64,
    pub zero: bool,
}

/// A number that looks random (the finalizer of SplitMix64).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Plan {
    /// Blocks of a thread's part.
    pub fn part(&self) -> u64 {
        self.blocks / self.threads as u64
    }

    pub fn request(&self, thread: usize, number: u64) -> Request {
        let dice = mix(mix(self.seed ^ ((thread as u64) << 48)) ^ number);
        let count = 1 + dice % LARGEST;
        let place = (dice >> 8) % (self.part() - count + 1);
        let zero = self.zeros && dice >> 61 == 0;
        Request { first: thread as u64 * self.part() + place, count, zero }
    }

    /// Fills a block as request `number` does.
    pub fn fill(&self, block: &mut [u8], index: u64, number: u64) {
        let mut state = mix(self.seed ^ mix(index) ^ mix(!number));
        let head = [MAGIC, self.seed, index, number];
        for (at, word) in block.chunks_exact_mut(8).enumerate() {
            let value = head.get(at).copied().unwrap_or_else(|| {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1442695040888963407);
                state ^ (state >> 29)
            });
            word.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Which request filled a block; 0 if it is all zeros. An error tells what is wrong with it.
    pub fn parse(&self, block: &[u8], index: u64) -> Result<u64, String> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(0);
        }
        let word = |at: usize| u64::from_le_bytes(block[at * 8..at * 8 + 8].try_into().unwrap_or_default());
        let number = word(3);
        let mut wanted = vec![0; BLOCK];
        self.fill(&mut wanted, index, number);
        match block.iter().zip(&wanted).position(|(have, want)| have != want) {
            None => Ok(number),
            Some(at) => Err(format!(
                "block {index} differs from byte {at} on; its head: magic {}, seed {}, block {}, request {number}",
                word(0) == MAGIC,
                word(1),
                word(2),
            )),
        }
    }
}

/// What a disk holds after so many requests of each thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub plan: Plan,
    /// Requests done, by thread.
    pub done: Vec<u64>,
    /// The request that each block is from; 0 where it is zeros.
    pub last: Vec<u64>,
}

impl Record {
    /// An empty disk.
    pub fn new(plan: Plan) -> Record {
        Record { plan, done: vec![0; plan.threads], last: vec![0; plan.blocks as usize] }
    }

    /// One more request of a thread.
    pub fn step(&mut self, thread: usize) {
        self.done[thread] += 1;
        let number = self.done[thread];
        let request = self.plan.request(thread, number);
        let value = if request.zero { 0 } else { number };
        self.last[request.first as usize..(request.first + request.count) as usize].fill(value);
    }

    /// A short name of the disk's contents.
    pub fn digest(&self) -> u64 {
        self.last.iter().fold(self.plan.seed, |sum, number| mix(sum ^ number))
    }
}
