//! The bus master of a channel.

use super::{BM_INTERRUPT, Channel, State, Work};
use crate::sg::{self, Span};
use crate::storage::ata::{ABORTED, BUSY, Drive, READY, SECTOR, SEEK, UNCORRECTABLE, trim_ranges};
use crate::storage::cdrom::READ_ERROR;
use crate::storage::mover::{Mover, Stopped};
use block::Request;
use std::sync::Arc;

const BM_START: u8 = 1;
const BM_TO_MEMORY: u8 = 8;
const BM_ACTIVE: u8 = 1;
const BM_ERROR: u8 = 2;
/// Most entries of a region descriptor table: it may not cross 64 KiB.
const MAX_REGIONS: u64 = 8192;

/// A transfer by the bus master.
pub(super) enum Job {
    Disk { offset: u64, len: u64, write: bool, fua: bool, packet: bool },
    Answer { data: Vec<u8>, packet: bool },
    Trim { len: u64 },
}

impl Channel {
    pub fn bm_read(&self, register: u64) -> u8 {
        let state = self.state.lock();
        match register {
            0 => state.bm_command,
            2 => state.bm_status,
            4..8 => (state.bm_table >> ((register - 4) * 8)) as u8,
            _ => 0,
        }
    }

    pub fn bm_write(&self, register: u64, value: u8) {
        let mut state = self.state.lock();
        match register {
            0 => self.bm_start(&mut state, value),
            2 => {
                let cleared = state.bm_status & !(value & (BM_ERROR | BM_INTERRUPT));
                state.bm_status = cleared & 0x9f | value & 0x60;
            }
            4..8 => {
                let shift = (register - 4) * 8;
                let table = state.bm_table & !(0xff << shift) | u32::from(value) << shift;
                state.bm_table = table & !3;
            }
            _ => {}
        }
        self.drive_irq(&state);
    }

    fn bm_start(&self, state: &mut State, value: u8) {
        let was = state.bm_command & BM_START != 0;
        state.bm_command = value & (BM_START | BM_TO_MEMORY);
        if value & BM_START == 0 {
            state.bm_status &= !BM_ACTIVE;
            if was && matches!(state.work, Work::Moving) {
                // Stopped in the middle: the command cannot go on.
                state.life += 1;
                state.fail(ABORTED);
            }
            return;
        }
        if !was {
            state.bm_status |= BM_ACTIVE;
            if let Work::Dma(_) = state.work
                && let Work::Dma(job) = std::mem::take(&mut state.work)
                && let Some(drive) = self.bus.drive(state.selected)
            {
                self.run(state, &drive, job);
            }
        }
    }

    pub(super) fn dma_job(&self, state: &mut State, drive: &Arc<Drive>, job: Job) {
        state.set_status(BUSY | READY | SEEK);
        if state.bm_command & BM_START != 0 {
            self.run(state, drive, job);
        } else {
            state.work = Work::Dma(job);
        }
    }

    /// The memory regions of the descriptor table, up to `len` bytes, and whether there are more.
    fn regions(&self, table: u32, len: u64) -> Option<(Vec<Span>, bool)> {
        let (mut spans, mut total) = (Vec::new(), 0);
        for entry in 0..MAX_REGIONS {
            let word = self.dma.load(u64::from(table) + entry * 8, 8).ok()?;
            let bytes = match (word >> 32) as u32 & 0xfffe {
                0 => 0x10000,
                bytes => bytes,
            };
            spans.push(Span { address: word & 0xffff_fffe, len: bytes });
            total += u64::from(bytes);
            let last = word >> 63 != 0;
            if total >= len || last {
                return Some((spans, total > len || !last));
            }
        }
        Some((spans, false))
    }

    fn run(&self, state: &mut State, drive: &Arc<Drive>, job: Job) {
        state.work = Work::Moving;
        let len = match &job {
            Job::Disk { len, .. } | Job::Trim { len } => *len,
            Job::Answer { data, .. } => data.len() as u64,
        };
        let regions = self.regions(state.bm_table, len);
        let Some((spans, more)) = regions.filter(|(spans, _)| sg::total(spans) >= len) else {
            return self.dma_failed(state);
        };
        match job {
            Job::Answer { data, packet } => match sg::write(&spans, &self.dma, 0, &data) {
                Some(()) => self.dma_done(state, packet, more),
                None => self.dma_failed(state),
            },
            Job::Trim { len } => self.trim(state, drive, &spans, len),
            Job::Disk { offset, len, write, fua, packet } => {
                let (life, me) = (state.life, self.me.clone());
                let (wanted, keeper) = (self.me.clone(), drive.clone());
                let mover = Mover {
                    backend: drive.backend.clone(),
                    dma: self.dma.clone(),
                    spans,
                    offset,
                    len,
                    write,
                    fua,
                    wanted: Box::new(move || {
                        wanted.upgrade().is_some_and(|channel| channel.state.lock().life == life)
                    }),
                    finish: Box::new(move |result| {
                        let Some(channel) = me.upgrade() else { return };
                        let mut state = channel.state.lock();
                        if state.life == life {
                            channel.moved(&mut state, &keeper, packet, result.map(|()| more));
                            channel.drive_irq(&state);
                        }
                    }),
                };
                mover.run();
            }
        }
    }

    fn moved(&self, state: &mut State, drive: &Drive, packet: bool, result: Result<bool, Stopped>) {
        match result {
            Ok(more) => self.dma_done(state, packet, more),
            Err(Stopped::Memory) => self.dma_failed(state),
            Err(Stopped::Disk) => {
                state.bm_status &= !BM_ACTIVE;
                if packet {
                    drive.cdrom.iter().for_each(|cdrom| cdrom.set_sense(READ_ERROR));
                    state.fail_packet(READ_ERROR);
                } else {
                    state.fail(UNCORRECTABLE);
                }
            }
        }
    }

    fn dma_done(&self, state: &mut State, packet: bool, more: bool) {
        if !more {
            state.bm_status &= !BM_ACTIVE;
        }
        if packet {
            state.finish_packet();
        } else {
            state.finish();
        }
    }

    fn dma_failed(&self, state: &mut State) {
        state.bm_status = state.bm_status & !BM_ACTIVE | BM_ERROR;
        state.fail(ABORTED);
    }

    fn trim(&self, state: &mut State, drive: &Arc<Drive>, spans: &[Span], len: u64) {
        // At most 65535 blocks of ranges; one at a time is what systems send.
        let mut data = vec![0; len.min(SECTOR * 64) as usize];
        if sg::read(spans, &self.dma, 0, &mut data).is_none() || len > SECTOR * 64 {
            return self.dma_failed(state);
        }
        let size = drive.backend.size();
        let ranges = trim_ranges(&data);
        if ranges.iter().any(|&(at, len)| at.checked_add(len).is_none_or(|end| end > size)) {
            state.bm_status &= !BM_ACTIVE;
            return state.fail(ABORTED);
        }
        self.trim_next(state, drive, ranges);
    }

    fn trim_next(&self, state: &mut State, drive: &Arc<Drive>, mut ranges: Vec<(u64, u64)>) {
        let Some((offset, len)) = ranges.pop() else { return self.dma_done(state, false, false) };
        let request = Request::Discard { offset, len };
        self.submit(state.life, drive, request, move |channel, state, drive, result| match result {
            Ok(_) => channel.trim_next(state, drive, ranges),
            Err(_) => channel.dma_failed(state),
        });
    }
}
