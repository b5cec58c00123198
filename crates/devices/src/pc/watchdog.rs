//! `ib700`: the iBASE IB700 ISA watchdog (ports 0x441 stop, 0x443 start).

use super::range::{byte_range, isa_model};
use base::clock::{NANOS, Timer};
use device::{Device, Model, Props, ResetKind, Wiring};
use std::any::Any;
use std::sync::Arc;

pub static MODEL: Model = isa_model("ib700", "iBASE 700 watchdog", &[], create);

pub struct Ib700 {
    timer: Timer,
}

impl Ib700 {
    /// Values 0 to 15 are 30 to 0 seconds.
    fn start(&self, value: u8) {
        self.timer.arm_in(u64::from(30 - 2 * (value & 0xf)) * NANOS);
    }
}

impl Device for Ib700 {
    fn model(&self) -> &'static Model {
        &MODEL
    }
    fn reset(&self, _: ResetKind) {
        self.timer.cancel();
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn create(_: &Props, wiring: &mut Wiring<'_>) -> base::Result<Arc<dyn Device>> {
    let power = wiring.services.power.clone();
    let device = Arc::new(Ib700 { timer: wiring.clock().timer(move |_| power.watchdog_expired()) });
    let stop = byte_range(&device, |_, _, _| 0xff, |d, _, _, _| d.timer.cancel());
    let start = byte_range(&device, |_, _, _| 0xff, |d, _, _, value| d.start(value as u8));
    wiring.services.ports.edit(|edit| {
        edit.io("ib700-stop", 0x441, 1, stop);
        edit.io("ib700-start", 0x443, 1, start);
    });
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::Testbed;

    #[test]
    fn expires_unless_fed() {
        let bed = Testbed::new();
        let power = bed.services.power.clone();
        let clock = &bed.services.clocks.virtual_;
        let device = Ib700 { timer: clock.timer(move |_| power.watchdog_expired()) };
        device.start(0);
        clock.advance(29 * NANOS);
        device.start(0xa);
        clock.advance(38 * NANOS);
        assert!(bed.recorder.asked.lock().unwrap().is_empty());
        clock.advance(39 * NANOS);
        assert_eq!(*bed.recorder.asked.lock().unwrap(), ["watchdog"]);
        device.start(5);
        device.reset(ResetKind::Warm);
        assert_eq!(clock.next_deadline(), None);
    }
}
