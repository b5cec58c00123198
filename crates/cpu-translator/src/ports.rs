//! IN and OUT of one value. They need little of the guest's state, so that it need not be
//! brought to the interpreter's and back.

use crate::vcpu::{Fill, Next, TranslatorVcpu};
use cpu::Fault;
use cpu_interpreter::View;
use iced_x86::{Instruction, Mnemonic, OpKind};
use std::sync::atomic::Ordering;

/// What IN or OUT does.
#[derive(Clone, Copy)]
pub struct Port {
    input: bool,
    /// Bytes: 1, 2 or 4.
    size: usize,
    /// The port; `None`: DX says.
    fixed: Option<u16>,
}

impl Port {
    pub fn of(i: &Instruction) -> Option<Port> {
        let (data, port) = match i.mnemonic() {
            Mnemonic::In => (0, 1),
            Mnemonic::Out => (1, 0),
            _ => return None,
        };
        let fixed = (i.op_kind(port) != OpKind::Register).then(|| i.immediate(port) as u16 & 0xff);
        Some(Port { input: data == 0, size: i.op_register(data).size(), fixed })
    }
}

impl TranslatorVcpu {
    /// Whether the port may be used. `None`: the interpreter knows.
    fn check_port(&mut self, port: u16, size: usize) -> Option<()> {
        if !self.interpreter.core().long_mode() {
            return self.interpreter.core_mut().check_port(port, size).ok();
        }
        for _ in 0..3 {
            let (tables, mut unknown) = (&self.tables, None);
            let checked = self.interpreter.core_mut().check_port_by(port, size, |_, linear| {
                tables.peek(View::Supervisor, linear).map(u64::from).ok_or_else(|| {
                    unknown = Some(linear);
                    Fault::GP0
                })
            });
            match (checked, unknown) {
                (Ok(()), _) => return Some(()),
                (Err(_), Some(linear)) if (linear & 0xfff) < 0xfff => {
                    let view = self.interpreter.core().view;
                    self.interpreter.core_mut().set_view(View::Supervisor);
                    let filled = self.fill(linear, false, false);
                    self.interpreter.core_mut().set_view(view);
                    matches!(filled, Fill::Done).then_some(())?;
                }
                _ => return None,
            }
        }
        None
    }

    /// Executes the IN or OUT of a way out. `None`: it is another instruction, or one for the
    /// interpreter after all; nothing has happened.
    pub(crate) fn port(&mut self, place: usize, alive: bool) -> Option<Next> {
        let known = self.exits.get(place);
        let (site, port) = (known.site, known.port?);
        if !alive || site.next == 0 || self.counting.on {
            return None;
        }
        let ended = self.shared.ended.load(Ordering::SeqCst);
        let number = port.fixed.unwrap_or(self.state.get().gpr[2] as u16);
        self.check_port(number, port.size)?;
        let (state, core) = (self.state.get(), self.interpreter.core_mut());
        if port.input {
            let value = core.port_read(number, port.size);
            let kept = [!0xff, !0xffff, 0, 0][port.size.trailing_zeros() as usize];
            state.gpr[0] = state.gpr[0] & kept | value;
        } else {
            core.port_write(number, port.size, state.gpr[0]);
        }
        core.retired = core.retired.wrapping_add(1);
        let quiet = core.flushed.is_empty() && !core.irq_hint;
        let same = self.shared.ended.load(Ordering::SeqCst) == ended && !self.is_revoked();
        if quiet && same && !self.interpreter.must_look_up() {
            return Some(Next::Host(self.host(site.next)));
        }
        let next = site.rip.wrapping_add(u64::from(site.len));
        let wide = self.interpreter.core().code_bits() == 64;
        self.store_state(if wide { next } else { next & 0xffff_ffff });
        Some(Next::Loop)
    }
}
