//! What the process has before the machine: descriptors, character devices, objects, nodes.

use crate::message::Messages;
use base::fd::{FdSets, Inherited, SetFd};
use base::notice::Notices;
use base::{Result, fail};
use cli::Complaint;
use machine::{Host, clocks};
use rustix::fs::OFlags;
use spec::Invocation;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The surroundings that character devices ask of.
struct Surroundings {
    inherited: Arc<Inherited>,
    fdsets: FdSets,
    notices: Notices,
    messages: Messages,
}

/// Ctrl-A X on a multiplexed terminal.
pub struct QuitKey;

impl chardev::Host for Surroundings {
    fn take_fd(&self, name: &str) -> Result<OwnedFd> {
        let number = name.parse().map_err(|_| fail!("No file descriptor named {name} found"))?;
        self.inherited.take(number)
    }

    fn open_fdset(&self, set: u64, flags: OFlags) -> Result<SetFd, rustix::io::Errno> {
        self.fdsets.open(set, flags)
    }

    fn info(&self, text: &str) {
        self.messages.say(text);
    }

    fn escape(&self, what: chardev::Escape) {
        if what == chardev::Escape::Quit {
            self.notices.send(QuitKey);
        }
    }
}

/// Makes everything up to (not including) the machine.
pub async fn prepare(
    invocation: &Invocation,
    inherited: &Arc<Inherited>,
    fdsets: &FdSets,
    messages: &Messages,
) -> Result<Host, Complaint> {
    let notices = Notices::new();
    for (add, place) in invocation.add_fds.iter().zip(&invocation.places.add_fds) {
        let fd = inherited.duplicate(add.fd);
        let fd = fd.map_err(|_| Complaint::at(place, fail!("fd is not valid or already in use")))?;
        fdsets.add(Some(add.set), fd, add.opaque.clone());
    }
    let qtest = invocation.machine.accels.first().is_some_and(|accel| accel.name == "qtest");
    let clocks = clocks(qtest);
    let surroundings = Arc::new(Surroundings {
        inherited: inherited.clone(),
        fdsets: fdsets.clone(),
        notices: notices.clone(),
        messages: messages.clone(),
    });
    let chardevs = chardev::Chardevs::new(tokio::runtime::Handle::current(), surroundings);
    chardevs.set_escape(invocation.escape);
    let host = Host::new(notices, chardevs, fdsets.clone(), clocks.clone());
    host.graph.set_inherited(inherited.clone());
    // As in QEMU, objects of the command line are made before the accelerator, whose clock
    // (that of the test channel) they therefore do not follow.
    host.graph.throttle_groups.set_clock(clocks.realtime);
    for (object, place) in invocation.machine.objects.iter().zip(&invocation.places.objects) {
        host.objects.add(&object.tree, object.typed).map_err(|f| Complaint::at(place, f))?;
    }
    host.graph.throttle_groups.set_clock(host.graph.clock.clone());
    for (chardev, place) in invocation.chardevs.iter().zip(&invocation.places.chardevs) {
        let added = host.chardevs.add(chardev).await.map_err(|f| Complaint::at(place, f))?;
        if let Some(pty) = added.pty {
            println!("char device redirected to {pty} (label {})", chardev.id);
        }
    }
    for (node, place) in invocation.machine.blockdevs.iter().zip(&invocation.places.blockdevs) {
        let mut options = block::Options::crumple(node.tree.clone()).map_err(|f| Complaint::at(place, f))?;
        options = match node.typed {
            true => options.typed(),
            false => options.said(block::Origin::Words(Default::default())),
        };
        host.graph.add(options).await.map_err(|f| Complaint::at(place, f))?;
    }
    Ok(host)
}
