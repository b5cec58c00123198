//! SIMD and x87 instructions with a plan: the short ways for operands that hit the TLB.

use super::{ANY, FLAT32, FLAT64, address, form};
use crate::block::Cache;
use crate::core::Core;
use crate::exec::Flow;
use crate::op::{Handler, Op, Stop};
use crate::tlb::data_index;
use cpu_host::{Plan, Touches};
use iced_x86::Instruction;
use std::sync::atomic::Ordering;

/// Through [`Core::run_plan`], which knows everything.
pub(super) fn any<'a>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    if slow_step(core, cache, op) {
        next!(core, cache, op, rest)
    }
    super::generic_left(core, op)
}

#[inline(never)]
fn slow_step(core: &mut Core, cache: &Cache, op: &Op) -> bool {
    let Some(i) = cache.insns.get(op.extra as usize) else { return false };
    let Some(plan) = cache.plans.get(op.imm as usize) else { return false };
    match core.run_plan(i, op, plan) {
        Ok(_) if !core.smc => return true,
        Ok(flow) => core.flow = flow,
        Err(fault) => {
            core.fault = fault;
            core.rip = op.pc;
            core.faulted = true;
            core.flow = Flow::Next;
        }
    }
    false
}

/// Runs the plan on registers and the scratch operand; `false`: it faulted. Not inlined: its
/// locals' addresses would keep handlers from ending in a jump.
#[inline(never)]
fn execute(core: &mut Core, plan: &Plan) -> bool {
    let Some(gpr) = core.r.first_chunk_mut::<16>() else { return false };
    let mut none = 0;
    match plan.run(&mut core.simd, gpr, &mut none, &mut core.operand) {
        Ok(_) => true,
        Err(fault) => {
            core.fault = core.simd_fault(fault);
            false
        }
    }
}

#[inline(always)]
fn checked<'a>(core: &mut Core, cache: &'a Cache, op: &Op) -> Option<&'a Plan> {
    let plan = cache.plans.get(op.imm as usize)?;
    // A pending x87 exception comes before faults of the operand.
    let pending = || plan.check_pending(&core.simd).map_err(|fault| core.simd_fault(fault));
    match core.check_class(plan.class).and_then(|()| pending()) {
        Ok(()) => Some(plan),
        Err(fault) => {
            core.fault = fault;
            None
        }
    }
}

/// Registers only.
fn registers<'a>(core: &mut Core, cache: &'a Cache, op: &'a Op, rest: &'a [Op]) -> Stop {
    let plan = some!(checked(core, cache, op), core, op);
    if !execute(core, plan) {
        return core.refused(op);
    }
    next!(core, cache, op, rest)
}

/// A memory operand of S bytes that is read.
fn load<'a, const A: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let plan = some!(checked(core, cache, op), core, op);
    let linear = some!(address::<A>(core, op, S, false), core, op);
    let entry = &core.tlb.read[data_index(linear)];
    let offset = linear.wrapping_sub(entry.tag);
    if offset > 4096 - S as u64 || linear & u64::from(op.dst) != 0 {
        return any(core, cache, op, rest);
    }
    entry.page.read(offset as usize, &mut core.operand.0[..S]);
    if !execute(core, plan) {
        return core.refused(op);
    }
    next!(core, cache, op, rest)
}

/// A memory operand of S bytes that is only written.
fn store<'a, const A: u8, const S: usize>(
    core: &mut Core,
    cache: &'a Cache,
    op: &'a Op,
    rest: &'a [Op],
) -> Stop {
    let plan = some!(checked(core, cache, op), core, op);
    let linear = some!(address::<A>(core, op, S, true), core, op);
    let entry = core.tlb.write[data_index(linear)];
    let offset = linear.wrapping_sub(entry.tag);
    if offset > 4096 - S as u64 || linear & u64::from(op.dst) != 0 || entry.watch.load(Ordering::Relaxed) != 0
    {
        return any(core, cache, op, rest);
    }
    if !execute(core, plan) {
        return core.refused(op);
    }
    entry.page.write(offset as usize, &core.operand.0[..S]);
    if entry.watch.load(Ordering::Relaxed) != 0 {
        core.note_stored(linear, S);
        if core.smc {
            return core.stored_code(op);
        }
    }
    next!(core, cache, op, rest)
}

macro_rules! by_size {
    ($size:expr, $f:ident, $form:expr) => {
        match $size {
            4 => $f::<$form, 4>,
            8 => $f::<$form, 8>,
            16 => $f::<$form, 16>,
            32 => $f::<$form, 32>,
            _ => any,
        }
    };
}

/// The handler of an instruction with `plan`; `op.imm` is the plan's index. Alignment goes
/// to `op.dst` as a mask.
pub fn simd_handler(core: &Core, i: &Instruction, op: &mut Op, plan: &Plan) -> Handler {
    // x87 and MMX report a pending exception before any fault of their operand.
    let odd = plan.gather().is_some()
        || plan.sets_x87_pointers
        || plan.touches.intersects(Touches::FLAGS_READ | Touches::FLAGS_WRITE | Touches::X87 | Touches::MMX);
    if odd || core.mode & crate::core::mode::SLOW != 0 {
        return any;
    }
    let Some(memory) = plan.memory else { return registers };
    if memory.masked || memory.read && memory.write || (!memory.read && !memory.write) {
        return any;
    }
    if !(0..i.op_count()).any(|n| i.op_kind(n) == iced_x86::OpKind::Memory) {
        return any;
    }
    op.dst = memory.align.max(1) - 1;
    match (form(core, i, op), memory.write) {
        (FLAT64, false) => by_size!(memory.size, load, FLAT64),
        (FLAT64, true) => by_size!(memory.size, store, FLAT64),
        (FLAT32, false) => by_size!(memory.size, load, FLAT32),
        (FLAT32, true) => by_size!(memory.size, store, FLAT32),
        (_, false) => by_size!(memory.size, load, ANY),
        (_, true) => by_size!(memory.size, store, ANY),
    }
}
