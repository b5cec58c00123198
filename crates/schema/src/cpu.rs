//! vCPUs and their models.

use crate::commands;
use crate::machine::SysEmuTarget;
use qapi::{Command, Describe, Map};

commands![Cpu, QueryCpus, QueryCpusFast, QueryHotpluggableCpus, QueryCpuDefinitions, QueryCpuModelExpansion];

/// Does nothing, for any index: kept for old clients. The human monitor has its own `cpu`.
#[derive(Command, Debug, Clone)]
#[command(features("deprecated"))]
pub struct Cpu {
    pub index: i64,
}

/// Each vCPU with its program counter. Interrupts the vCPUs for a moment;
/// `query-cpus-fast` does not.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<CpuInfo>, features("deprecated"))]
pub struct QueryCpus {}

#[derive(Describe, Debug, Clone, PartialEq)]
#[qapi(rename_all = "snake")]
pub struct CpuInfo {
    #[qapi(name = "CPU")]
    pub cpu: i64,
    /// the first vCPU
    pub current: bool,
    /// waits for an interrupt
    pub halted: bool,
    pub qom_path: String,
    /// base of the code segment plus instruction pointer
    pub pc: i64,
    /// host thread
    pub thread_id: i64,
}

/// Each vCPU, without interrupting it.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<CpuInfoFast>)]
pub struct QueryCpusFast {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct CpuInfoFast {
    pub cpu_index: i64,
    pub qom_path: String,
    /// host thread
    pub thread_id: i64,
    pub props: Option<CpuInstanceProperties>,
    pub target: SysEmuTarget,
}

/// Where a vCPU sits.
#[derive(Describe, Debug, Clone, Default, PartialEq)]
pub struct CpuInstanceProperties {
    pub node_id: Option<i64>,
    pub socket_id: Option<i64>,
    pub die_id: Option<i64>,
    pub core_id: Option<i64>,
    pub thread_id: Option<i64>,
}

/// Every place for a vCPU, filled or not.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<HotpluggableCpu>)]
pub struct QueryHotpluggableCpus {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct HotpluggableCpu {
    /// type of the vCPU
    #[qapi(name = "type")]
    pub kind: String,
    pub vcpus_count: i64,
    pub props: CpuInstanceProperties,
    /// absent for an empty place
    pub qom_path: Option<String>,
}

/// The models that `-cpu` takes.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<CpuDefinitionInfo>, preconfig)]
pub struct QueryCpuDefinitions {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct CpuDefinitionInfo {
    pub name: String,
    /// means the same on every host
    pub migration_safe: Option<bool>,
    /// a fixed set of features that no option changes
    #[qapi(name = "static")]
    pub fixed: bool,
    /// features of the model that the CPU engine in use lacks
    pub unavailable_features: Option<Vec<String>>,
    pub typename: String,
    pub alias_of: Option<String>,
    pub deprecated: bool,
}

/// Spells out what a CPU model means here.
#[derive(Command, Debug, Clone)]
#[command(reply = CpuModelExpansionInfo)]
pub struct QueryCpuModelExpansion {
    #[qapi(name = "type")]
    pub kind: CpuModelExpansionType,
    pub model: CpuModelInfo,
}

#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuModelExpansionType {
    /// as a static model with the features that differ from it
    Static,
    /// with every feature
    Full,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct CpuModelInfo {
    pub name: String,
    /// properties that differ from those of the named model
    pub props: Option<Map>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct CpuModelExpansionInfo {
    pub model: CpuModelInfo,
}
