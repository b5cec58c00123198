//! IRETQ as 64-bit kernels mostly execute it, for an engine that has read the frame and the
//! descriptors through tables of its own.

use super::Descriptor;
use crate::core::{Core, mode};
use crate::flags;
use cpu::state::{Segment, seg};

impl Core {
    /// Where the descriptor of `selector` lies in the GDT. `None`: not there.
    pub fn global_descriptor(&self, selector: u64) -> Option<u64> {
        let selector = selector as u16;
        if selector & 4 != 0 || selector & 0xfffc == 0 {
            return None;
        }
        self.descriptor_address(selector, 8).ok()
    }

    /// IRETQ at CPL 0 of 64-bit mode to 64-bit mode. `frame` is on the stack; `code` and `stack`
    /// are the descriptors of its selectors (no matter which for a null selector). `false`: it is
    /// not plain (or faults), and nothing has happened.
    ///
    /// The general registers are not used but for RSP, which becomes that of the frame.
    pub fn return_plainly(&mut self, frame: &[u64; 5], code: u64, stack: Option<u64>) -> bool {
        let [rip, cs, image, rsp, ss] = *frame;
        let (cs, ss) = (cs as u16, ss as u16);
        let here = self.mode & mode::CODE == mode::CODE64 && self.cpl == 0;
        let calm = self.st.rflags & flags::NT == 0 && image & flags::TF == 0;
        if !here || !calm || !Core::canonical(rip) {
            return false;
        }
        let code = Descriptor(code);
        let level = (cs & 3) as u8;
        let plain = code.is_code() && code.long() && !code.big() && !code.conforming();
        if !plain || !code.is_ready(level) {
            return false;
        }
        let Some(stack) = Core::plain_stack(ss, level, stack.map(Descriptor)) else { return false };
        let change = self.iret_changes(8);
        let new = self.rflags() & !change | image & change;
        self.st.seg[seg::SS] = stack;
        self.set_code_segment(cs, code, level);
        self.rip = rip;
        self.r[4] = rsp;
        self.set_rflags(new);
        if level != 0 {
            self.drop_inner_segments();
        }
        self.st.nmi_blocked = false;
        self.mode_changed();
        true
    }

    fn plain_stack(selector: u16, level: u8, descriptor: Option<Descriptor>) -> Option<Segment> {
        if (selector & 3) as u8 != level {
            return None;
        }
        if selector & 0xfffc == 0 {
            return (level != 3).then(|| Core::null_stack(selector, level));
        }
        let d = descriptor?;
        let writable = !d.is_system() && !d.is_code() && d.kind() & 2 != 0;
        (writable && d.is_ready(level)).then(|| d.segment(selector))
    }
}

impl Descriptor {
    /// Present, accessed, and of this privilege.
    fn is_ready(self, level: u8) -> bool {
        self.present() && self.dpl() == level && self.0 >> 40 & 1 != 0
    }
}
