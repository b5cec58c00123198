//! The PCI buses.

use crate::commands;
use qapi::{Command, Describe};

commands![QueryPci];

/// Every PCI function with what its configuration space says now.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<PciInfo>)]
pub struct QueryPci {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct PciInfo {
    pub bus: i64,
    pub devices: Vec<PciDeviceInfo>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
#[qapi(rename_all = "snake")]
pub struct PciDeviceInfo {
    pub bus: i64,
    pub slot: i64,
    pub function: i64,
    pub class_info: PciDeviceClass,
    pub id: PciDeviceId,
    /// interrupt line register; absent without an interrupt pin
    pub irq: Option<i64>,
    /// interrupt pin register
    pub irq_pin: i64,
    /// id of the device, empty if it has none
    pub qdev_id: String,
    pub pci_bridge: Option<PciBridgeInfo>,
    pub regions: Vec<PciMemoryRegion>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct PciDeviceClass {
    pub desc: Option<String>,
    pub class: i64,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct PciDeviceId {
    pub device: i64,
    pub vendor: i64,
    pub subsystem: Option<i64>,
    pub subsystem_vendor: Option<i64>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct PciBridgeInfo {
    pub bus: PciBusInfo,
    pub devices: Option<Vec<PciDeviceInfo>>,
}

#[derive(Describe, Debug, Clone, PartialEq)]
#[qapi(rename_all = "snake")]
pub struct PciBusInfo {
    pub number: i64,
    pub secondary: i64,
    pub subordinate: i64,
    pub io_range: PciMemoryRange,
    pub memory_range: PciMemoryRange,
    pub prefetchable_range: PciMemoryRange,
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct PciMemoryRange {
    pub base: i64,
    pub limit: i64,
}

#[derive(Describe, Debug, Clone, PartialEq)]
#[qapi(rename_all = "snake")]
pub struct PciMemoryRegion {
    /// 6 is the expansion ROM
    pub bar: i64,
    #[qapi(name = "type")]
    pub kind: PciRegionType,
    /// -1 if not mapped
    pub address: i64,
    /// bytes
    pub size: i64,
    pub prefetch: Option<bool>,
    #[qapi(name = "mem_type_64")]
    pub mem_type_64: Option<bool>,
}

#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum PciRegionType {
    Io,
    Memory,
}
