use super::ide::Channel;
use super::{Geometry, IdeBus, Translation};
use base::Result;
use device::pci::{Identity, PciCore, PciFunction, RegionKind};
use device::{Bus, BusKind, Device, Model, Props, ResetKind, Wiring};
use memory::Handler;
use std::any::Any;
use std::sync::Arc;

/// The IDE function of PIIX3 (Intel 82371SB): two channels at their compatible ports.
pub static MODEL: Model = Model {
    name: "piix3-ide",
    aliases: &[],
    description: "IDE controller",
    bus: BusKind::Pci,
    parent: "pci-ide",
    properties: &[device::pci::PROPERTIES],
    user_creatable: false,
    hotpluggable: false,
    create,
};

/// Command block, control block and interrupt of the channels.
const CHANNELS: [(u64, u64, usize); 2] = [(0x1f0, 0x3f6, 14), (0x170, 0x376, 15)];

pub struct Piix3Ide {
    core: Arc<PciCore>,
    channels: [Arc<Channel>; 2],
}

struct CommandBlock(Arc<Channel>);

impl Handler for CommandBlock {
    fn read(&self, offset: u64, size: u8) -> u64 {
        match offset {
            0 => self.0.read_data(size).into(),
            _ => (0..u64::from(size))
                .take_while(|i| offset + i < 8)
                .fold(0, |value, i| value | u64::from(self.0.read(offset + i)) << (i * 8)),
        }
    }

    fn write(&self, offset: u64, size: u8, value: u64) {
        match offset {
            0 => self.0.write_data(size, value as u32),
            _ => (0..u64::from(size))
                .take_while(|i| offset + i < 8)
                .for_each(|i| self.0.write(offset + i, (value >> (i * 8)) as u8)),
        }
    }

    fn max_access(&self) -> u8 {
        4
    }
}

struct ControlBlock(Arc<Channel>);

impl Handler for ControlBlock {
    fn read(&self, _offset: u64, _size: u8) -> u64 {
        self.0.alternate_status().into()
    }
    fn write(&self, _offset: u64, _size: u8, value: u64) {
        self.0.control(value as u8);
    }
    fn max_access(&self) -> u8 {
        1
    }
}

/// The bus master registers, eight bytes a channel.
struct BusMaster([Arc<Channel>; 2]);

impl Handler for BusMaster {
    fn read(&self, offset: u64, _size: u8) -> u64 {
        self.0[(offset >> 3 & 1) as usize].bm_read(offset & 7).into()
    }
    fn write(&self, offset: u64, _size: u8, value: u64) {
        self.0[(offset >> 3 & 1) as usize].bm_write(offset & 7, value as u8);
    }
    fn max_access(&self) -> u8 {
        1
    }
}

/// Of each place of a PIIX3's IDE function the fixed disk there.
pub fn fixed_disks(device: &dyn Device) -> Option<[Option<(Geometry, Translation)>; 4]> {
    let controller = device.as_any().downcast_ref::<Piix3Ide>()?;
    Some([0, 1, 2, 3].map(|place| {
        let drive = controller.channels[place / 2].bus().drive(place % 2)?;
        let geometry = drive.conf.geometry(drive.backend.size());
        (!drive.is_packet()).then_some((geometry, drive.conf.translation))
    }))
}

fn create(props: &Props, wiring: &mut Wiring<'_>) -> Result<Arc<dyn Device>> {
    let core = PciCore::new("piix3-ide", Identity::new(0x8086, 0x7010, 0, 0x01_0180), props, wiring)?;
    core.init(0x06, &[0x80, 0x02]);
    // IDETIM: both channels decode; timings are kept and have no effect.
    core.init(0x40, &[0, 0x80, 0, 0x80]);
    core.set_writable(0x40, &[0xff; 8]);
    let dma = core.dma();
    let channels = [0, 1].map(|index| {
        let bus = IdeBus::new(wiring.bus_name("ide", index), index, 2, false);
        Channel::new(bus, wiring.irq(CHANNELS[index].2), dma.clone())
    });
    wiring.services.ports.edit(|edit| {
        for (channel, (command, control, _)) in channels.iter().zip(CHANNELS) {
            edit.io("ide", command, 8, Arc::new(CommandBlock(channel.clone())));
            edit.io("ide", control, 1, Arc::new(ControlBlock(channel.clone())));
        }
    });
    core.add_io_bar(4, RegionKind::Io, 16, Arc::new(BusMaster(channels.clone())));
    channels.iter().for_each(|channel| channel.reset());
    Ok(Arc::new(Piix3Ide { core, channels }))
}

impl PciFunction for Piix3Ide {
    fn core(&self) -> &PciCore {
        &self.core
    }
}

impl Device for Piix3Ide {
    fn model(&self) -> &'static Model {
        &MODEL
    }
    fn reset(&self, _kind: ResetKind) {
        self.core.reset();
        self.channels.iter().for_each(|channel| channel.reset());
    }
    fn buses(&self) -> Vec<Arc<dyn Bus>> {
        self.channels.iter().map(|channel| channel.bus().clone() as Arc<dyn Bus>).collect()
    }
    fn pci(&self) -> Option<&dyn PciFunction> {
        Some(self)
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
