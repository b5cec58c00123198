//! Running one vCPU for single instructions while the machine stands.

use base::Result;
use cpu::engine::DebugPlan;
use cpu::{Exit, Vcpu};
use std::ops::Range;

const IF: u64 = 1 << 9;
/// Looks of a vCPU that is asked to stop before it executed anything.
const ATTEMPTS: u32 = 1000;
/// Instructions a range step makes before the debugger is asked again.
const RANGE_LIMIT: u32 = 5000;

/// Executes one instruction, then goes on while RIP stays in `range` and meets no
/// breakpoint of `plan`. Interrupts are held off, as gdb users expect of a step.
pub fn step(vcpu: &mut dyn Vcpu, plan: &DebugPlan, range: Option<Range<u64>>) -> Result<()> {
    let single = DebugPlan { single_step: true, breakpoints: Vec::new(), ..plan.clone() };
    vcpu.set_debug(&single)?;
    let mut result = one(vcpu);
    if let Some(range) = range {
        for _ in 0..RANGE_LIMIT {
            let rip = vcpu.save().rip;
            if result.is_err() || !range.contains(&rip) || plan.breakpoints.contains(&rip) {
                break;
            }
            result = one(vcpu);
        }
    }
    vcpu.set_debug(plan)?;
    result
}

fn one(vcpu: &mut dyn Vcpu) -> Result<()> {
    let mut state = vcpu.save();
    if state.rflags & IF != 0 && !state.interrupt_shadow {
        // The shadow of a STI lasts just this instruction.
        state.interrupt_shadow = true;
        vcpu.load(&state)?;
    }
    for _ in 0..ATTEMPTS {
        match vcpu.run() {
            Exit::Asked => {}
            Exit::Debug | Exit::Halted | Exit::TripleFault => break,
            Exit::Broken(why) => return Err(base::Failure::new(why)),
        }
    }
    Ok(())
}
