//! Buffers at addresses that direct I/O accepts, kept for use again.

const ALIGN: usize = 4096;
/// Bytes kept at most, and in the longest buffer that is kept.
const KEEP: usize = 8 << 20;
const LONGEST: usize = 1 << 20;

/// Bytes at an address that is a multiple of 4096.
pub(crate) struct Buffer {
    store: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    fn new(room: usize) -> Self {
        let store = vec![0; room + ALIGN];
        let start = store.as_ptr().align_offset(ALIGN).min(ALIGN);
        Buffer { store, start, len: room }
    }

    fn room(&self) -> usize {
        self.store.len() - ALIGN
    }

    pub fn data(&self) -> &[u8] {
        &self.store[self.start..self.start + self.len]
    }

    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.store[self.start..self.start + self.len]
    }
}

#[derive(Default)]
pub(super) struct Pool {
    spare: Vec<Buffer>,
    bytes: usize,
}

impl Pool {
    pub fn take(&mut self, len: usize) -> Buffer {
        let room = len.next_multiple_of(ALIGN).next_power_of_two();
        let mut buffer = match self.spare.iter().rposition(|spare| spare.room() == room) {
            Some(at) => {
                self.bytes -= room;
                self.spare.swap_remove(at)
            }
            None if len > LONGEST => Buffer::new(len),
            None => Buffer::new(room),
        };
        buffer.len = len;
        buffer
    }

    pub fn give(&mut self, buffer: Buffer) {
        let room = buffer.room();
        if room > 0 && room <= LONGEST && self.bytes + room <= KEEP {
            self.bytes += room;
            self.spare.push(buffer);
        }
    }
}
