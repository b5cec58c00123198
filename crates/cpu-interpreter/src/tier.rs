//! What an engine above the interpreter needs of it: warm blocks, single known instructions,
//! and the steps of the run loop.

use crate::block::COLD;
use crate::core::Core;
use crate::exec::Flow;
use crate::op::{Op, Stop};
use crate::vcpu::{BUDGET, InterpreterVcpu};
use crate::{decode, flags};
use cpu::{Exit, Fault};
use cpu_host::Plan;
use iced_x86::Instruction;

/// An instruction that is ready to be interpreted at its place.
pub struct Single {
    instruction: Instruction,
    op: Op,
    plan: Option<Plan>,
    undefined: bool,
}

impl Single {
    /// `bytes` are those of the instruction. The mode is the present one.
    pub fn new(core: &Core, instruction: &Instruction, bytes: &[u8]) -> Single {
        let mut op = decode::operands(core, instruction, 0);
        let undefined = instruction.is_invalid() || !core.features.allows(instruction);
        let plan = if undefined { None } else { core.thunks.plan(instruction) };
        if plan.is_some_and(|plan| plan.sets_x87_pointers) {
            op.aux = cpu_host::x87_opcode(bytes);
        }
        Single { instruction: *instruction, op, plan, undefined }
    }

    pub fn instruction(&self) -> &Instruction {
        &self.instruction
    }
}

/// How a single instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// `rip` follows it; mode and mapping are the same.
    Next,
    /// `rip` follows it; mode or mapping may have changed.
    End,
    /// A branch, an exception, or an instruction that is not over yet.
    Elsewhere,
}

/// Why [`InterpreterVcpu::interpret_within`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// The block at `rip` has become warm.
    Warm,
    /// The block at `rip` may be longer than what is left.
    Short,
    Other,
}

impl InterpreterVcpu {
    #[inline]
    pub fn core(&self) -> &Core {
        &self.core
    }

    #[inline]
    pub fn core_mut(&mut self) -> &mut Core {
        &mut self.core
    }

    /// To be called before the first instruction on a thread.
    pub fn begin(&mut self) {
        self.core.memory_map_changed();
    }

    /// Requests, traps and interrupts, before the next instruction.
    pub fn look_up(&mut self) -> Option<Exit> {
        self.attend()
    }

    /// The first half of [`Self::look_up`].
    pub fn look_up_requests(&mut self) -> Option<Exit> {
        self.attend_requests()
    }

    /// The second half of [`Self::look_up`].
    pub fn look_up_events(&mut self) -> Option<Exit> {
        self.attend_events()
    }

    /// Interprets from `rip` until something else is needed; `Ok(true)`: the block at `rip`
    /// has become warm.
    pub fn interpret(&mut self) -> Result<bool, Exit> {
        Ok(self.interpret_within(u64::MAX)? == Pause::Warm)
    }

    /// The same, at most `left` instructions.
    pub fn interpret_within(&mut self, left: u64) -> Result<Pause, Exit> {
        let limit = i64::try_from(left).map_or(BUDGET, |left| left.min(BUDGET));
        let stop = self.round(self.stepping(), limit)?;
        let asked = !self.core.bus.link.requests().is_empty();
        Ok(match stop {
            Stop::Warm => Pause::Warm,
            Stop::Poll if limit < BUDGET && !asked => Pause::Short,
            _ => Pause::Other,
        })
    }

    /// The last `left` instructions of a window, one block or instruction after the other.
    pub fn finish_window(&mut self, left: u64) -> Option<Exit> {
        let heat_limit = std::mem::take(&mut self.core.heat_limit);
        let exit = self.go_to(self.core.retired.wrapping_add(left));
        self.core.heat_limit = heat_limit;
        exit
    }

    /// The warm block that was just reported will not be reported again.
    pub fn leave_cold(&mut self) {
        if let Some(head) = self.cache.heads.get(self.core.goto_block as usize) {
            head.heat.set(COLD);
        }
    }

    /// Whether the next instruction must be executed alone: traps, shadows, breakpoints.
    pub fn is_stepping(&self) -> bool {
        self.stepping()
    }

    /// The same where RFLAGS.RF may be dropped early: without breakpoints it shows only in the
    /// flags that an interrupt before the next instruction pushes.
    pub fn is_stepping_but_for_resume(&self) -> bool {
        self.steps_without_resume()
    }

    /// Whether [`Self::look_up`] would find something to do, or the next instruction must be
    /// executed alone.
    #[inline]
    pub fn must_look_up(&self) -> bool {
        let core = &self.core;
        core.irq_hint && core.st.rflags & flags::IF != 0
            || core.bus.link.requests().bits() != 0
            || core.pending_db != 0
            || core.st.pending.is_some()
            || core.st.interrupt_shadow
            || core.st.activity != cpu::state::Activity::Running
            || self.has_nmi()
    }

    /// Executes `single`, which is the instruction at `rip`, and delivers its exception.
    pub fn run_single(&mut self, single: &Single) -> Result<Ran, Exit> {
        let core = &mut self.core;
        core.st.interrupt_shadow = false;
        let resume = core.st.rflags & flags::RF;
        core.st.rflags &= !resume;
        core.budget = 1;
        core.settle_flags();
        core.retired = core.retired.wrapping_add(1);
        let done = match &single.plan {
            _ if single.undefined => Err(Fault::UD),
            Some(plan) => core.run_plan(&single.instruction, &single.op, plan),
            None => core.exec(&single.instruction, &single.op),
        };
        core.smc = false;
        let mut ran = Ran::Elsewhere;
        let stop = match done {
            Ok(flow @ (Flow::Next | Flow::End)) => {
                core.advance_rip(&single.op);
                ran = if flow == Flow::Next { Ran::Next } else { Ran::End };
                Stop::Resolve
            }
            Ok(Flow::Branch) => Stop::Resolve,
            Ok(Flow::Again) => {
                core.retired = core.retired.wrapping_sub(1);
                Stop::Resolve
            }
            Ok(Flow::Halt) => {
                core.advance_rip(&single.op);
                Stop::Halt
            }
            Err(fault) => {
                core.retired = core.retired.wrapping_sub(1);
                core.fault = fault;
                core.rip = single.op.pc;
                Stop::Fault
            }
        };
        if stop == Stop::Fault {
            core.st.rflags |= resume;
        }
        match self.settle(stop, false) {
            Some(exit) => Err(exit),
            None => Ok(ran),
        }
    }
}
