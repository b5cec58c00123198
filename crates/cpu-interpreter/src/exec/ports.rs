//! IN and OUT, and who may (SDM vol. 1 ch. 19).

use super::{Done, Flow};
use crate::core::Core;
use crate::flags::mask;
use cpu::Fault;
use cpu::paging::*;
use iced_x86::{Instruction, Mnemonic, OpKind};

impl Core {
    /// IOPL and the TSS's I/O bitmap (SDM vol. 1 §18.5).
    pub fn check_port(&mut self, port: u16, size: usize) -> Result<(), Fault> {
        self.check_port_by(port, size, |core, linear| core.read_system(linear, 2))
    }

    /// The same; `read` reads two bytes of the TSS.
    pub fn check_port_by(
        &mut self,
        port: u16,
        size: usize,
        mut read: impl FnMut(&mut Core, u64) -> Result<u64, Fault>,
    ) -> Result<(), Fault> {
        if self.st.cr0 & CR0_PE == 0 || !self.v86() && self.cpl <= self.iopl() {
            return Ok(());
        }
        let tr = self.st.tr;
        if tr.kind() & 8 == 0 || tr.limit < 103 {
            return Err(Fault::GP0);
        }
        let at = read(self, tr.base.wrapping_add(102))? + u64::from(port / 8);
        if at + 1 > u64::from(tr.limit) {
            return Err(Fault::GP0);
        }
        let bits = read(self, tr.base.wrapping_add(at))?;
        if bits >> (port & 7) & ((1 << size) - 1) != 0 {
            return Err(Fault::GP0);
        }
        Ok(())
    }

    pub fn port_read(&mut self, port: u16, size: usize) -> u64 {
        self.io_breakpoint(port, size);
        let value = self.ports().load(u64::from(port), size as u8) & mask(size);
        self.after_io();
        value
    }

    pub fn port_write(&mut self, port: u16, size: usize, value: u64) {
        self.io_breakpoint(port, size);
        self.ports().store(u64::from(port), size as u8, value & mask(size));
        self.after_io();
    }

    fn ports(&mut self) -> &memory::FlatView {
        if self.bus.ports.generation() != self.port_view.generation {
            self.port_view = self.bus.ports.snapshot();
        }
        &self.port_view
    }

    fn io_breakpoint(&mut self, port: u16, size: usize) {
        if self.st.cr4 & CR4_DE == 0 {
            return;
        }
        let dr7 = self.st.dr[7];
        for n in 0..4 {
            let len = [1, 2, 8, 4][(dr7 >> (18 + 4 * n) & 3) as usize];
            let start = self.st.dr[n] & !(len - 1) & 0xffff;
            let port = u64::from(port);
            if dr7 >> (2 * n) & 3 != 0
                && dr7 >> (16 + 4 * n) & 3 == 2
                && port < start + len
                && start < port + size as u64
            {
                self.pending_db |= 1 << n;
            }
        }
    }

    pub(super) fn port_operand(&mut self, i: &Instruction) -> Done {
        let input = i.mnemonic() == Mnemonic::In;
        let (data, port) = if input { (0, 1) } else { (1, 0) };
        let size = i.op_register(data).size();
        let port = match i.op_kind(port) {
            OpKind::Register => self.r[2] as u16,
            _ => i.immediate(port) as u16 & 0xff,
        };
        self.check_port(port, size)?;
        if input {
            let value = self.port_read(port, size);
            self.set_reg(0, size, value);
        } else {
            self.port_write(port, size, self.reg(0, size));
        }
        Ok(Flow::End)
    }

    // ---- descriptor tables ----
}
