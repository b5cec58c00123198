use crate::Backend;
use crate::hub::Hub;
use crate::registry::Made;
use base::{Mutex, Result, bail};
use std::collections::VecDeque;
use std::sync::Arc;

/// Keeps the last bytes written, for `ringbuf-read`. Never input to the guest.
pub(crate) struct Ringbuf {
    size: usize,
    bytes: Mutex<VecDeque<u8>>,
}

/// Larger ones are surely a mistake.
const MAX_SIZE: u64 = 1 << 30;

pub(crate) fn open(hub: &Arc<Hub>, size: u64) -> Result<Made> {
    if !size.is_power_of_two() {
        bail!("size of ringbuf chardev must be power of two");
    }
    if size > MAX_SIZE {
        bail!("size of ringbuf chardev must not exceed 1 GiB");
    }
    hub.opened();
    Ok(Made::new(Ringbuf { size: size as usize, bytes: Mutex::default() }))
}

impl Ringbuf {
    pub fn append(&self, bytes: &[u8]) {
        let mut kept = self.bytes.lock();
        let new = &bytes[bytes.len().saturating_sub(self.size)..];
        let excess = (kept.len() + new.len()).saturating_sub(self.size);
        kept.drain(..excess);
        kept.extend(new);
    }

    pub fn take(&self, size: usize, text: bool) -> Vec<u8> {
        let mut kept = self.bytes.lock();
        if text {
            let orphans = kept.iter().take(3).take_while(|&&b| is_continuation(b)).count();
            // Only a full buffer can have lost the beginning of a character.
            if kept.len() == self.size {
                kept.drain(..orphans);
            }
        }
        let mut end = size.min(kept.len());
        if text && end < kept.len() {
            let back = (0..4.min(end)).find(|&n| !is_continuation(kept[end - n]));
            if let Some(back) = back.filter(|&back| back < end) {
                end -= back;
            }
        }
        kept.drain(..end).collect()
    }
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

impl Backend for Ringbuf {
    fn write(&self, bytes: &[u8]) -> usize {
        self.append(bytes);
        bytes.len()
    }

    fn filename(&self) -> String {
        "ringbuf".into()
    }

    fn ringbuf(&self) -> Option<&Ringbuf> {
        Some(self)
    }
}
