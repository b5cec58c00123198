use base::Mutex;
use device::Services;
use memory::{AddressSpace, Handler, MappingId, RamBlock, Target};
use std::sync::Arc;

/// Above ROMs and devices (1) that the board maps.
const SHADOW_PRIORITY: i32 = 10;
const SEGMENTS: usize = 13;
const READ: u8 = 1;
const WRITE: u8 = 2;
const SMRAM_OPEN: u8 = 1 << 6;
const SMRAM_LOCK: u8 = 1 << 4;

/// What lies under A0000-FFFFF where neither RAM nor a device answers.
struct OpenBus;

impl Handler for OpenBus {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        u64::MAX
    }
    fn write(&self, _offset: u64, _size: u8, _value: u64) {}
}

/// Programmable attribute map: which parts of C0000-FFFFF lead to RAM, and A0000-BFFFF by
/// SMRAM (Intel 82441FX §3.2.14, Q35 MCH §5.1.19).
///
/// It hides the RAM that the board has mapped there before; ROMs and devices that the board
/// maps (at any time) answer where no RAM is switched in.
pub struct Pam {
    memory: Arc<AddressSpace>,
    ram: Option<(RamBlock, u64)>,
    state: Mutex<State>,
}

struct State {
    segments: [(u8, MappingId); SEGMENTS],
    smram: MappingId,
}

/// Start and length of segment `index`, in the order of the register nibbles.
fn segment(index: usize) -> (u64, u64) {
    match index {
        0 => (0xf0000, 0x10000),
        _ => (0xc0000 + (index as u64 - 1) * 0x4000, 0x4000),
    }
}

impl Pam {
    pub fn new(services: &Services) -> Self {
        let memory = services.memory.clone();
        let ram = memory.view().ram_page(0xa0000);
        let open: Arc<dyn Handler> = Arc::new(OpenBus);
        let state = memory.edit(|edit| {
            let bus = Target::Io { handler: open, offset: 0 };
            edit.map("pci-hole", 0xa0000, 0x60000, 0, bus.clone());
            let mut hidden = |start, len| {
                let id = edit.map("pam", start, len, SHADOW_PRIORITY, bus.clone());
                edit.set_enabled(id, false);
                id
            };
            let segments = std::array::from_fn(|index| {
                let (start, len) = segment(index);
                (0, hidden(start, len))
            });
            State { segments, smram: hidden(0xa0000, 0x20000) }
        });
        Pam { memory, ram, state: Mutex::new(state) }
    }

    /// Takes the seven PAM registers (the first one's high nibble is F0000-FFFFF) and SMRAM.
    pub fn update(&self, registers: [u8; 7], smram: u8) {
        let Some((block, base)) = self.ram else { return };
        let mut state = self.state.lock();
        let wanted: [u8; SEGMENTS] = std::array::from_fn(|index| match index {
            0 => registers[0] >> 4 & 3,
            _ => registers[1 + (index - 1) / 2] >> ((index - 1) % 2 * 4) & 3,
        });
        let smram_open = smram & SMRAM_OPEN != 0;
        self.memory.edit(|edit| {
            for (index, &attributes) in wanted.iter().enumerate() {
                let (present, id) = &mut state.segments[index];
                if *present == attributes {
                    continue;
                }
                *present = attributes;
                // Write-only shadow is not modelled by peers either: reads decide.
                edit.set_enabled(*id, attributes & READ != 0);
                let offset = base + segment(index).0 - 0xa0000;
                edit.retarget(
                    *id,
                    if attributes & WRITE != 0 {
                        Target::Ram { block, offset }
                    } else {
                        Target::Rom { block, offset }
                    },
                );
            }
            edit.retarget(state.smram, Target::Ram { block, offset: base });
            edit.set_enabled(state.smram, smram_open);
        });
    }

    /// The value an SMRAM register takes on a write (locked: only reset changes it).
    pub fn smram_after(old: u8, new: u8) -> u8 {
        if old & SMRAM_LOCK != 0 {
            return old;
        }
        let value = (new & 0x78) | 2;
        if value & SMRAM_LOCK != 0 { value & !SMRAM_OPEN } else { value }
    }
}
