//! [`cpu::Vcpu::run_exactly`]: windows of translated code that counts its instructions.

use crate::cache::Site;
use crate::vcpu::TranslatorVcpu;
use base::Result;
use cpu::{Exit, Request, Window};
use cpu_interpreter::Pause;

/// Counting, while a window runs. Counted code does not poll: requests wait for the window's end.
#[derive(Debug, Default)]
pub struct Counting {
    pub on: bool,
    /// Instructions of the entered block that are taken from the budget and not yet executed.
    pub owed: u16,
}

impl TranslatorVcpu {
    /// Instructions that were taken from the budget are not executed.
    pub(crate) fn give_back(&mut self, instructions: u16) {
        self.state.get().budget += i64::from(instructions);
        self.counting.owed = 0;
    }

    /// Leaves the block of `site`, at its instruction.
    pub(crate) fn leave_at(&mut self, site: &Site) {
        self.give_back(site.left);
    }

    pub(crate) fn run_window(&mut self, instructions: u64) -> Result<Window> {
        if let Err(exit) = self.settle_thread() {
            return Ok(Window { retired: 0, exit: Some(exit) });
        }
        if let Some(exit) = self.interpreter.look_up_requests() {
            return Ok(Window { retired: 0, exit: Some(exit) });
        }
        self.counting.on = true;
        let mut left = instructions.min(i64::MAX as u64);
        let mut later = Request::empty();
        let exit = self.window(&mut left, &mut later);
        self.counting.on = false;
        later |= self.interpreter.postpone();
        if !later.is_empty() {
            self.interpreter.core().bus.link.post(later);
        }
        self.interpreter.core_mut().simd.sync();
        Ok(Window { retired: instructions - left, exit })
    }

    fn window(&mut self, left: &mut u64, later: &mut Request) -> Option<Exit> {
        let mut warm = false;
        while *left != 0 {
            *later |= self.interpreter.postpone();
            if let Some(exit) = self.interpreter.look_up_events() {
                return Some(exit);
            }
            match self.translated(left, warm) {
                Err(exit) => return Some(exit),
                Ok(Some(true)) => {
                    warm = false;
                    continue;
                }
                // The block at hand is longer than what is left.
                Ok(Some(false)) => return self.tail(left),
                Ok(None) if warm => self.interpreter.leave_cold(),
                Ok(None) => {}
            }
            let before = self.interpreter.core().retired;
            let pause = self.interpreter.interpret_within(*left);
            *left -= self.interpreter.core().retired - before;
            match pause {
                Ok(Pause::Short) => return self.tail(left),
                Ok(pause) => warm = pause == Pause::Warm,
                Err(exit) => return Some(exit),
            }
        }
        None
    }

    /// Runs translated code if there is any here: whether it came on.
    fn translated(&mut self, left: &mut u64, warm: bool) -> Result<Option<bool>, Exit> {
        let Some(key) = self.key() else { return Ok(None) };
        let rip = self.interpreter.core().rip;
        let Some(host) = self.locate(rip, key, warm) else { return Ok(None) };
        self.state.get().budget = *left as i64;
        self.counting.owed = 0;
        let ways_out = self.counts.budgets;
        let done = self.execute(host, key);
        let rest = self.state.get().budget.max(0) as u64;
        let came_on = rest != *left || self.counts.budgets == ways_out;
        *left = rest;
        done.map(|()| Some(came_on))
    }

    /// The last instructions, one by one.
    fn tail(&mut self, left: &mut u64) -> Option<Exit> {
        let before = self.interpreter.core().retired;
        let exit = self.interpreter.finish_window(*left);
        *left -= self.interpreter.core().retired - before;
        exit
    }
}
