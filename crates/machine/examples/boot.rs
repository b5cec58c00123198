//! Boots a kernel without the control plane: `boot KERNEL INITRD "APPEND" [key=value...]`.

use base::clock::{Clock, Kind};
use machine::{Host, Notice, build, clocks};
use spec::machine::{Accel, MachineSpec};
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Plain;

impl chardev::Host for Plain {
    fn take_fd(&self, name: &str) -> base::Result<std::os::fd::OwnedFd> {
        Err(base::fail!("no descriptor {name}"))
    }
    fn open_fdset(
        &self,
        _set: u64,
        _flags: rustix::fs::OFlags,
    ) -> Result<base::fd::SetFd, rustix::io::Errno> {
        Err(rustix::io::Errno::NOENT)
    }
    fn info(&self, text: &str) {
        eprintln!("{text}");
    }
    fn escape(&self, _what: chardev::Escape) {}
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    if let Err(failure) = runtime.block_on(run()) {
        eprintln!("boot: {failure}");
    }
    std::process::exit(0);
}

async fn run() -> base::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut spec = MachineSpec::default();
    let mut accel = "interpreter".to_string();
    spec.boot.kernel = args.first().filter(|k| !k.is_empty()).cloned();
    spec.boot.initrd = args.get(1).filter(|k| !k.is_empty()).cloned();
    spec.boot.append = args.get(2).cloned();
    spec.memory.size = 256 << 20;
    for arg in args.iter().skip(3) {
        match arg.split_once('=') {
            Some(("m", v)) => spec.memory.size = v.parse::<u64>().unwrap_or(256) << 20,
            Some(("smp", v)) => {
                spec.smp.cpus = v.parse().unwrap_or(1);
                spec.smp.maxcpus = spec.smp.cpus;
                spec.smp.sockets = spec.smp.cpus;
            }
            Some(("M", "q35")) => spec.kind = spec::MachineKind::Q35,
            Some(("accel", v)) => accel = v.into(),
            Some(("cpu", v)) => spec.cpu = Some(v.into()),
            Some(("drive", v)) => {
                let keys = v.split(',').filter_map(|kv| kv.split_once(':'));
                spec.drives.push(keys.map(|(k, v)| (k.to_string(), v.into())).collect());
            }
            _ => eprintln!("ignored: {arg}"),
        }
    }
    spec.accels = vec![Accel { name: accel, options: spec::Tree::new() }];
    spec.serials = vec![Some("serial0".into())];
    let notices = base::notice::Notices::new();
    let clocks = clocks(false);
    let chardevs = chardev::Chardevs::new(tokio::runtime::Handle::current(), Arc::new(Plain));
    let stdio = spec::Chardev::new("serial0", spec::ChardevKind::Stdio { signal: true });
    chardevs.add(&stdio).await?;
    let host = Host::new(notices.clone(), chardevs, base::fd::FdSets::default(), clocks);
    let machine = build(spec, &host)?;
    let wall = Instant::now();
    let _unused: Clock = Clock::new(Kind::Manual);
    machine.start()?;
    loop {
        for notice in notices.drain() {
            let Ok(notice) = notice.what.downcast::<Notice>() else { continue };
            match *notice {
                Notice::Pending => machine.perform_pending(),
                Notice::Finished => {
                    eprintln!("[finished after {:.2} s]", wall.elapsed().as_secs_f64());
                    return Ok(());
                }
                other => eprintln!("[{other:?}]"),
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
