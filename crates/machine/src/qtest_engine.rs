//! `-accel qtest`: vCPUs that execute nothing; a test program drives the devices.

use base::Result;
use cpu::engine::DebugPlan;
use cpu::{CpuState, Engine, Exit, Vcpu, VcpuConfig};

pub(crate) struct QtestEngine;

struct QtestVcpu {
    state: CpuState,
    config: VcpuConfig,
}

impl Engine for QtestEngine {
    fn name(&self) -> &'static str {
        "qtest"
    }

    fn vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>> {
        let state = CpuState::reset(config.index == 0, config.cpuid.signature());
        Ok(Box::new(QtestVcpu { state, config }))
    }
}

impl Vcpu for QtestVcpu {
    fn run(&mut self) -> Exit {
        let asked = self.config.bus.link.take(cpu::Request::all());
        if asked.contains(cpu::Request::EXIT) { Exit::Asked } else { Exit::Halted }
    }

    fn save(&self) -> CpuState {
        self.state.clone()
    }

    fn load(&mut self, state: &CpuState) -> Result<()> {
        self.state = state.clone();
        Ok(())
    }

    fn translate(&self, linear: u64) -> Option<u64> {
        Some(linear)
    }

    fn set_debug(&mut self, plan: &DebugPlan) -> Result<()> {
        if *plan != DebugPlan::default() {
            base::bail!("the qtest accelerator executes no code to debug");
        }
        Ok(())
    }
}
