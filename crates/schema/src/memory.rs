//! Guest memory.

use crate::{commands, events};
use qapi::{Command, Describe, Event};

commands![Memsave, Pmemsave, QueryMemorySizeSummary, QueryMemdev, QueryMemoryDevices, Balloon, QueryBalloon];
events![BalloonChange];

/// Saves a part of virtual memory as one vCPU sees it.
#[derive(Command, Debug, Clone)]
pub struct Memsave {
    /// guest-virtual address (kernel addresses may be given as negative numbers)
    pub val: i64,
    /// bytes
    pub size: i64,
    /// file to write, created or truncated
    pub filename: String,
    /// vCPU whose page tables count (default 0)
    #[qapi(alias = "cpu")]
    pub cpu_index: Option<i64>,
}

/// Saves a part of physical memory.
#[derive(Command, Debug, Clone)]
pub struct Pmemsave {
    /// guest-physical address
    pub val: i64,
    /// bytes
    pub size: i64,
    /// file to write, created or truncated
    pub filename: String,
}

/// Sizes of the memory the machine has.
#[derive(Command, Debug, Clone)]
#[command(reply = MemoryInfo)]
pub struct QueryMemorySizeSummary {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct MemoryInfo {
    /// bytes, without memory that can be unplugged
    pub base_memory: u64,
    /// bytes of memory that can be unplugged
    pub plugged_memory: Option<u64>,
}

/// The memory back ends.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<Memdev>)]
pub struct QueryMemdev {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct Memdev {
    pub id: Option<String>,
    /// bytes
    pub size: u64,
    /// the host may merge equal pages
    pub merge: bool,
    /// part of a dump of the process
    pub dump: bool,
    /// all pages taken at the start
    pub prealloc: bool,
    /// shared with other processes
    pub share: bool,
    /// host memory or swap is reserved
    pub reserve: Option<bool>,
    /// host NUMA nodes
    pub host_nodes: Vec<u16>,
    pub policy: HostMemPolicy,
}

#[derive(Describe, Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostMemPolicy {
    Default,
    Preferred,
    Bind,
    Interleave,
}

/// The memory modules that are plugged in.
#[derive(Command, Debug, Clone)]
#[command(reply = Vec<MemoryDeviceInfo>)]
pub struct QueryMemoryDevices {}

#[derive(Describe, Debug, Clone, PartialEq)]
#[qapi(tag = "type", data = "data")]
pub enum MemoryDeviceInfo {
    Dimm(PcDimmDeviceInfo),
}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct PcDimmDeviceInfo {
    pub id: Option<String>,
    /// guest-physical address
    pub addr: i64,
    /// bytes
    pub size: i64,
    pub slot: i64,
    /// NUMA node
    pub node: i64,
    /// QOM path of the memory back end
    pub memdev: String,
    pub hotplugged: bool,
    pub hotpluggable: bool,
}

/// Asks the guest to keep `value` bytes of its memory and to give the rest to the host. The
/// guest does it in its own time.
#[derive(Command, Debug, Clone)]
pub struct Balloon {
    /// bytes
    pub value: i64,
}

/// How much memory the balloon leaves the guest.
#[derive(Command, Debug, Clone)]
#[command(reply = BalloonInfo)]
pub struct QueryBalloon {}

#[derive(Describe, Debug, Clone, PartialEq)]
pub struct BalloonInfo {
    /// bytes
    pub actual: i64,
}

/// The guest has given memory to the balloon or taken some back.
#[derive(Event, Debug, Clone)]
#[event(throttle)]
pub struct BalloonChange {
    /// bytes that the guest has
    pub actual: i64,
}
