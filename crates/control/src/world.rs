use crate::{BoxFuture, Control};
use base::fd::{FdSets, Inherited, fdset_number};
use base::{Failure, Result, fail};
use machine::{Host, Machine};
use rustix::fs::{Mode, OFlags};
use schema::introspect::CommandLineOptionInfo;
use schema::monitor::{VersionInfo, VersionTriple};
use std::fs::File;
use std::sync::Arc;

/// Runs a line of the human monitor, on a vCPU by its index, and gives what it prints.
pub type HumanMonitor = Arc<dyn Fn(Control, String, usize) -> BoxFuture<Result<String>> + Send + Sync>;

/// Who this program is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The QEMU version whose command set is followed.
    pub level: (i64, i64, i64),
    /// `Ryokan <version>`.
    pub package: String,
}

impl Default for Identity {
    fn default() -> Self {
        Identity { level: (7, 2, 0), package: format!("Ryokan {}", env!("CARGO_PKG_VERSION")) }
    }
}

impl Identity {
    /// What `query-version` and the greeting tell.
    pub fn version(&self) -> VersionInfo {
        let (major, minor, micro) = self.level;
        VersionInfo { qemu: VersionTriple { major, minor, micro }, package: self.package.clone() }
    }
}

/// All that handlers can reach.
pub struct World {
    pub identity: Identity,
    pub host: Host,
    pub machine: Arc<Machine>,
    pub fdsets: FdSets,
    pub inherited: Arc<Inherited>,
    pub trace: trace::Points,
    /// What `query-command-line-options` answers.
    pub options: Vec<CommandLineOptionInfo>,
    pub human_monitor: Option<HumanMonitor>,
}

impl World {
    /// Lets the block layer follow the machine: drained and flushed when it stops; what an
    /// error policy holds back is tried again when it runs.
    pub(crate) fn couple_block_layer(&self) {
        let graph = Arc::downgrade(&self.host.graph);
        self.machine.on_run_change(move |runs| {
            let Some(graph) = graph.upgrade() else { return };
            let backends = graph.backends();
            if runs {
                backends.iter().for_each(block::Backend::resume);
            } else if !backends.is_empty() {
                graph.block_on(async move {
                    for backend in backends {
                        backend.drain().await;
                        if let Some(node) = backend.node() {
                            // A failure shows again at the guest's own next flush.
                            let _ = node.flush().await;
                        }
                    }
                });
            }
        });
    }

    /// The back end of the block device with that id or path.
    pub fn drive_of_device(&self, id: &str) -> Result<block::Backend> {
        // The disk of a virtio device is the part that its path ends with.
        let entry = self.machine.devices.find(id.strip_suffix("/virtio-backend").unwrap_or(id));
        let entry = entry.ok_or_else(|| Failure::device_not_found(id))?;
        let name = entry.id.clone().unwrap_or_else(|| entry.path.clone());
        let names = [format!("{}/virtio-backend", entry.path), entry.path.clone(), name];
        let holds =
            |one: &block::Backend| one.front_end().is_some_and(|front| names.contains(&front.qdev_id()));
        let found = self.host.graph.backends().into_iter().find(holds);
        found.ok_or_else(|| fail!("Device does not have a block device backend"))
    }

    /// Creates or truncates a file for output; `/dev/fdset/<N>` gives one of the set.
    pub fn create_file(&self, path: &str) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let failed =
            |errno: rustix::io::Errno| Failure::os(format!("Could not open '{path}'"), &errno.into());
        if let Some(set) = fdset_number(path) {
            let file = File::from(self.fdsets.open(set, flags).map_err(failed)?.fd);
            // Opening a set truncates nothing; what cannot be truncated is no regular file.
            let _ = file.set_len(0);
            return Ok(file);
        }
        rustix::fs::open(path, flags, Mode::from_raw_mode(0o666)).map(File::from).map_err(failed)
    }
}
