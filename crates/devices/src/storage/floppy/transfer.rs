//! Commands that move data: read, write, format, verify and scan, by DMA or byte by byte.
//! A job holds one sector at a time.

use super::controller::{Fdc, Phase, ST1_DATA_ERROR, ST1_END, ST1_MARK, ST1_NO_DATA, ST1_PROTECTED, State};
use super::drive::Drive;
use super::geometry::Format;
use block::Request;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const SECTOR: usize = 512;
/// Bytes of a sector's identification that FORMAT TRACK takes.
const ID: usize = 4;
/// How often a DMA channel that is not set up is looked at (ns).
const DMA_RETRY: u64 = 1_000_000;
const ST0_ABNORMAL: u8 = 0x40;
const ST2_DATA_ERROR: u8 = 0x20;
const ST2_HIT: u8 = 0x08;
const ST2_NO_HIT: u8 = 0x04;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Equal,
    LowOrEqual,
    HighOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    /// From the index hole on, whatever the sector number.
    ReadTrack,
    Verify,
    Write,
    Scan(Compare),
    Format {
        fill: u8,
    },
}

impl Kind {
    /// The commands with eight parameter bytes.
    pub fn of(command: u8) -> Option<Kind> {
        Some(match command & 0x1f {
            0x06 | 0x0c => Kind::Read,
            0x02 if command & 0x80 == 0 => Kind::ReadTrack,
            0x16 => Kind::Verify,
            0x05 | 0x09 if command & 0x20 == 0 => Kind::Write,
            0x11 => Kind::Scan(Compare::Equal),
            0x19 => Kind::Scan(Compare::LowOrEqual),
            0x1d => Kind::Scan(Compare::HighOrEqual),
            _ => return None,
        })
    }

    pub fn is_from_disk(self) -> bool {
        matches!(self, Kind::Read | Kind::ReadTrack | Kind::Verify)
    }

    fn writes(self) -> bool {
        matches!(self, Kind::Write | Kind::Format { .. })
    }
}

pub(super) struct Job {
    pub kind: Kind,
    pub pio: bool,
    drive: Arc<Drive>,
    format: Format,
    unit: usize,
    cylinder: u8,
    head: u8,
    sector: u8,
    last_sector: u8,
    /// Goes on to the second head.
    multi: bool,
    /// Sectors that are left of a count (VERIFY with EC, FORMAT TRACK).
    left: Option<u8>,
    /// What travels to or from the host, and how much of it has.
    buffer: Vec<u8>,
    at: usize,
    /// The disk's side of a scan.
    disk: Vec<u8>,
    in_flight: bool,
    terminal_count: bool,
}

impl Job {
    /// Whether the host is to read or write a byte.
    pub fn wants_host(&self) -> bool {
        !self.in_flight
    }

    fn unit_len(&self) -> usize {
        if matches!(self.kind, Kind::Format { .. }) { ID } else { SECTOR }
    }

    /// Moves to the next sector; false at the end.
    fn step(&mut self) -> bool {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                return false;
            }
        }
        if matches!(self.kind, Kind::Format { .. }) {
            return true;
        }
        if self.sector < self.last_sector {
            self.sector += 1;
            return true;
        }
        self.sector = 1;
        if self.multi && self.head == 0 {
            self.head = 1;
            return true;
        }
        if self.multi {
            self.head = 0;
        }
        self.cylinder = self.cylinder.wrapping_add(1);
        false
    }

    fn place(&self) -> [u8; 3] {
        [self.cylinder, self.head, self.sector]
    }
}

impl Fdc {
    /// Begins a command with eight parameters: unit and head, C, H, R, N, EOT, GPL, DTL.
    pub(super) fn start(&self, state: &mut State, kind: Kind, command: &[u8]) {
        let &[op, select, cylinder, head, sector, size, last_sector, _, count] = command else { return };
        let sector = if kind == Kind::ReadTrack { 1 } else { sector };
        let (unit, place) = (usize::from(select & 3), [cylinder, head, sector]);
        let Some((drive, format)) = self.medium(unit) else {
            return self.refuse(state, ST1_MARK, unit, place);
        };
        if format.rate != state.rate {
            return self.refuse(state, ST1_MARK, unit, place);
        }
        if size != 2 || format.offset(cylinder, head, sector).is_none() {
            return self.refuse(state, ST1_NO_DATA, unit, place);
        }
        if kind.writes() && drive.backend.is_read_only() {
            return self.refuse(state, ST1_PROTECTED, unit, place);
        }
        drive.step_to(cylinder);
        state.head = head & 1;
        let counted = kind == Kind::Verify && select & 0x80 != 0;
        self.begin(
            state,
            Job {
                kind,
                pio: state.non_dma(),
                drive,
                format,
                unit,
                cylinder,
                head,
                sector,
                last_sector,
                multi: op & 0x80 != 0,
                left: counted.then_some(count.max(1)),
                buffer: Vec::new(),
                at: 0,
                disk: Vec::new(),
                in_flight: false,
                terminal_count: false,
            },
        );
    }

    /// FORMAT TRACK: unit and head, N, sectors a track, GPL, filler.
    pub(super) fn start_format(&self, state: &mut State, command: &[u8]) {
        let &[_, select, size, count, _, fill] = command else { return };
        let unit = usize::from(select & 3);
        let Some((drive, format)) = self.medium(unit) else {
            return self.refuse(state, ST1_MARK, unit, [0; 3]);
        };
        let (cylinder, head) = (drive.cylinder.load(Ordering::Acquire), state.head);
        let place = [cylinder, head, 1];
        if format.rate != state.rate || size != 2 || count == 0 {
            return self.refuse(state, ST1_MARK, unit, place);
        }
        if drive.backend.is_read_only() {
            return self.refuse(state, ST1_PROTECTED, unit, place);
        }
        self.begin(
            state,
            Job {
                kind: Kind::Format { fill },
                pio: state.non_dma(),
                drive,
                format,
                unit,
                cylinder,
                head,
                sector: 1,
                last_sector: count,
                multi: false,
                left: Some(count),
                buffer: Vec::new(),
                at: 0,
                disk: Vec::new(),
                in_flight: false,
                terminal_count: false,
            },
        );
    }

    fn medium(&self, unit: usize) -> Option<(Arc<Drive>, Format)> {
        let drive = self.bus.drive(unit)?;
        let format = drive.format()?;
        Some((drive, format))
    }

    fn begin(&self, state: &mut State, job: Job) {
        state.phase = Phase::Execution;
        state.job = Some(job);
        self.next_sector(state);
    }

    /// Begins the sector the job stands at.
    fn next_sector(&self, state: &mut State) {
        let Some(job) = &mut state.job else { return };
        (job.at, job.buffer) = (0, Vec::new());
        if job.kind.writes() {
            return self.exchange(state);
        }
        match job.format.offset(job.cylinder, job.head, job.sector) {
            Some(offset) => self.submit(state, Request::Read { offset, len: SECTOR }),
            None => self.end(state, ST0_ABNORMAL, ST1_NO_DATA, 0),
        }
    }

    fn submit(&self, state: &mut State, request: Request) {
        let Some(job) = &mut state.job else { return };
        job.in_flight = true;
        let (me, life, in_flight) = (self.me(), state.life, self.pending.enter());
        let done = move |result: std::io::Result<block::Lent>| {
            let _in_flight = in_flight;
            let Some(fdc) = me.upgrade() else { return };
            let state = &mut *fdc.state.lock();
            if state.life != life {
                return;
            }
            if let Some(job) = &mut state.job {
                job.in_flight = false;
                fdc.disk_done(state, result);
            }
        };
        job.drive.backend.submit(request, Box::new(done));
    }

    fn disk_done(&self, state: &mut State, result: std::io::Result<block::Lent>) {
        let Some(job) = &mut state.job else { return };
        match (result, job.kind) {
            (Err(_), _) => self.end(state, ST0_ABNORMAL, ST1_DATA_ERROR, ST2_DATA_ERROR),
            (Ok(_), Kind::Verify | Kind::Write | Kind::Format { .. }) => self.sector_done(state),
            (Ok(data), Kind::Read | Kind::ReadTrack) => {
                job.buffer = data.into();
                self.exchange(state);
            }
            (Ok(data), Kind::Scan(_)) => {
                job.disk = data.into();
                self.exchange(state);
            }
        }
    }

    /// Goes on after a wait for the DMA channel.
    pub(super) fn go_on(&self) {
        let state = &mut *self.state.lock();
        if state.job.as_ref().is_some_and(|job| !job.pio && !job.in_flight) {
            self.exchange(state);
        }
    }

    /// Moves bytes between the buffer and the host.
    fn exchange(&self, state: &mut State) {
        let Some(job) = &mut state.job else { return };
        if job.pio {
            return self.set_irq(state, true);
        }
        let (moved, terminal_count) = if job.kind.is_from_disk() {
            let (moved, end) = self.dma.write_memory(self.channel, &job.buffer[job.at..]);
            job.at += moved;
            (moved, end)
        } else {
            let mut piece = vec![0; job.unit_len() - job.buffer.len()];
            let (moved, end) = self.dma.read_memory(self.channel, &mut piece);
            job.buffer.extend_from_slice(&piece[..moved]);
            (moved, end)
        };
        job.terminal_count = terminal_count;
        if moved == 0 && !terminal_count {
            return self.again.arm_in(DMA_RETRY);
        }
        self.exchanged(state);
    }

    fn exchanged(&self, state: &mut State) {
        let Some(job) = &mut state.job else { return };
        if job.kind.is_from_disk() {
            return self.sector_done(state);
        }
        job.buffer.resize(job.unit_len(), 0);
        match job.kind {
            Kind::Format { fill } => {
                let &[cylinder, head, sector, size] = &job.buffer[..] else { return };
                let offset = job.format.offset(cylinder, head, sector).filter(|_| size == 2);
                let here = cylinder == job.cylinder && head == job.head;
                match offset.filter(|_| here) {
                    Some(offset) => {
                        let request = Request::Write { offset, data: vec![fill; SECTOR].into(), fua: false };
                        self.submit(state, request);
                    }
                    None => self.end(state, ST0_ABNORMAL, ST1_NO_DATA, 0),
                }
            }
            Kind::Scan(compare) => {
                let order = compare_sector(&job.disk, &job.buffer);
                let equal = order.is_eq();
                let hit = match compare {
                    Compare::Equal => equal,
                    Compare::LowOrEqual => order.is_le(),
                    Compare::HighOrEqual => order.is_ge(),
                };
                if hit {
                    return self.end(state, 0, 0, if equal { ST2_HIT } else { 0 });
                }
                self.sector_done(state);
            }
            _ => match job.format.offset(job.cylinder, job.head, job.sector) {
                Some(offset) => {
                    let data = std::mem::take(&mut job.buffer).into();
                    self.submit(state, Request::Write { offset, data, fua: false });
                }
                None => self.end(state, ST0_ABNORMAL, ST1_NO_DATA, 0),
            },
        }
    }

    fn sector_done(&self, state: &mut State) {
        let Some(job) = &mut state.job else { return };
        let more = job.step();
        state.head = job.head & 1;
        if more && !job.terminal_count {
            return self.next_sector(state);
        }
        let st2 = if matches!(job.kind, Kind::Scan(_)) { ST2_NO_HIT } else { 0 };
        // Only DMA can tell that the host has what it wanted.
        let counts = job.pio || job.terminal_count || job.left.is_some() || job.kind == Kind::Verify;
        if counts {
            self.end(state, 0, 0, st2);
        } else {
            self.end(state, ST0_ABNORMAL, ST1_END, st2);
        }
    }

    fn end(&self, state: &mut State, st0: u8, st1: u8, st2: u8) {
        let Some(job) = &state.job else { return };
        let (unit, place) = (job.unit, job.place());
        self.conclude(state, [st0, st1, st2], unit, place);
    }

    /// The host reads a byte of a transfer without DMA.
    pub(super) fn give_byte(&self, state: &mut State) -> u8 {
        let Some(job) = &mut state.job else { return 0 };
        if !job.pio || job.in_flight || !job.kind.is_from_disk() {
            return 0;
        }
        let Some(&value) = job.buffer.get(job.at) else { return 0 };
        job.at += 1;
        let whole = job.at == job.buffer.len();
        self.set_irq(state, false);
        if whole {
            self.sector_done(state);
        }
        value
    }

    /// The host writes a byte of a transfer without DMA.
    pub(super) fn take_byte(&self, state: &mut State, value: u8) {
        let Some(job) = &mut state.job else { return };
        if !job.pio || job.in_flight || job.kind.is_from_disk() {
            return;
        }
        job.buffer.push(value);
        let whole = job.buffer.len() >= job.unit_len();
        self.set_irq(state, false);
        if whole {
            self.exchanged(state);
        }
    }
}

/// Compares a sector with the host's data; a byte of FFh on either side fits all.
fn compare_sector(disk: &[u8], host: &[u8]) -> std::cmp::Ordering {
    let differs = |(a, b): &(&u8, &u8)| a != b && **a != 0xff && **b != 0xff;
    disk.iter().zip(host).find(differs).map_or(std::cmp::Ordering::Equal, |(a, b)| a.cmp(b))
}
