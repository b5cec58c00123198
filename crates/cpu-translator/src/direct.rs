//! System instructions that need little of the guest's state, so that it need not be brought to
//! the interpreter's and back.

use crate::system;
use crate::vcpu::{Fill, Next, TranslatorVcpu};
use cpu_interpreter::{View, gpr};
use iced_x86::{Code, Instruction, OpKind, Register};

/// What such an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// INVLPG.
    Forget(Place),
    /// IRETQ.
    Return,
}

/// A 64-bit address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    base: Option<u8>,
    index: Option<u8>,
    scale: u32,
    displacement: u64,
    /// FS (0) or GS (1).
    segment: Option<u8>,
}

impl Direct {
    pub fn of(i: &Instruction) -> Option<Direct> {
        match i.code() {
            Code::Invlpg_m => Place::of(i).map(Direct::Forget),
            Code::Iretq => Some(Direct::Return),
            _ => None,
        }
    }
}

impl Place {
    fn of(i: &Instruction) -> Option<Place> {
        let register = |r: Register| match r {
            Register::None | Register::RIP => Some(None),
            r if r.is_gpr64() => Some(Some(gpr(r).0)),
            _ => None,
        };
        let (base, index) = (i.memory_base(), i.memory_index());
        if i.op0_kind() != OpKind::Memory || base == Register::None && i.memory_displ_size() != 8 {
            return None;
        }
        let segment = match i.memory_segment() {
            Register::FS => Some(0),
            Register::GS => Some(1),
            _ => None,
        };
        Some(Place {
            base: register(base)?,
            index: register(index)?,
            scale: i.memory_index_scale(),
            displacement: i.memory_displacement64(),
            segment,
        })
    }
}

impl TranslatorVcpu {
    fn address_of(&mut self, place: &Place) -> u64 {
        let state = self.state.get();
        let of = |n: Option<u8>| n.map_or(0, |n| state.gpr[usize::from(n & 15)]);
        let base = place.segment.map_or(0, |n| state.seg_base[usize::from(n & 1)]);
        let index = of(place.index).wrapping_mul(u64::from(place.scale));
        base.wrapping_add(of(place.base)).wrapping_add(index).wrapping_add(place.displacement)
    }

    /// Executes the instruction of a way out. `None`: it is another, or one for the interpreter
    /// after all; nothing has happened.
    pub(crate) fn direct(&mut self, place: usize, alive: bool, key: u32) -> Option<Next> {
        let known = self.exits.get(place);
        let (site, direct) = (known.site, known.direct?);
        if !alive || self.counting.on || !self.interpreter.core().flushed.is_empty() {
            return None;
        }
        if self.interpreter.core().cpl != 0 || self.interpreter.core().code_bits() != 64 {
            return None;
        }
        match direct {
            Direct::Forget(operand) => {
                let linear = self.address_of(&operand);
                if !self.tables.flush_plain_page(linear) {
                    return None;
                }
                self.interpreter.core_mut().forget_page(linear);
                self.retired();
                Some(self.on_at(site.rip.wrapping_add(u64::from(site.len)), key))
            }
            Direct::Return => self.return_plainly(),
        }
    }

    fn retired(&mut self) {
        let core = self.interpreter.core_mut();
        core.retired = core.retired.wrapping_add(1);
    }

    /// Eight bytes that the processor itself reads at `linear`.
    fn peek_system(&mut self, linear: u64) -> Option<u64> {
        if let Some([word]) = self.tables.peek_words(View::Supervisor, linear) {
            return Some(word);
        }
        let view = self.interpreter.core().view;
        self.interpreter.core_mut().set_view(View::Supervisor);
        let filled = self.fill(linear, false, false);
        self.interpreter.core_mut().set_view(view);
        let [word] = self.tables.peek_words(View::Supervisor, linear).filter(|_| filled == Fill::Done)?;
        Some(word)
    }

    fn return_plainly(&mut self) -> Option<Next> {
        let view = self.interpreter.core().view;
        let stack = self.state.get().gpr[4];
        let frame: [u64; 5] = self.tables.peek_words(view, stack)?;
        let code = self.interpreter.core().global_descriptor(frame[1])?;
        let code = self.peek_system(code)?;
        let stack = match self.interpreter.core().global_descriptor(frame[4]) {
            Some(at) => Some(self.peek_system(at)?),
            None => None,
        };
        let (state, core) = (self.state.get(), self.interpreter.core_mut());
        system::store(state, core);
        if !core.return_plainly(&frame, code, stack) {
            return None;
        }
        state.gpr[4] = core.r[4];
        state.set_flags(core.rflags());
        state.seg_base = [core.sc[4].base, core.sc[5].base];
        system::load(state, core);
        self.retired();
        let rip = frame[0];
        let Some(key) = self.key() else {
            self.store_state(rip);
            return Some(Next::Loop);
        };
        self.note_key(key);
        Some(self.on_at(rip, key))
    }

    /// On at `rip` with the registers of the state page.
    fn on_at(&mut self, rip: u64, key: u32) -> Next {
        if !self.interpreter.must_look_up()
            && let Some(host) = self.entry(rip, key)
        {
            self.interpreter.core_mut().rip = rip;
            return Next::Other(host, key);
        }
        self.store_state(rip);
        Next::Loop
    }
}
