use super::Board;
use crate::Machine;
use base::Result;

/// `-machine none`: no devices, no CPUs, no memory; for probing.
pub(crate) struct NoneBoard;

impl Board for NoneBoard {
    fn after_reset(&self, _machine: &Machine) -> Result<()> {
        Ok(())
    }
    fn power_button(&self, _machine: &Machine) {}
    fn woken(&self, _machine: &Machine) {}
    fn inject_nmi(&self, _machine: &Machine) {}
}
