//! Formats of floppy disks.

/// Kinds of drive, as CMOS 10h numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriveType {
    None,
    /// 5.25 inch, 1.2 MB.
    D120,
    /// 3.5 inch, 1.44 MB.
    D144,
    /// 3.5 inch, 2.88 MB.
    D288,
}

impl DriveType {
    /// `None` for `auto`.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "120" => DriveType::D120,
            "144" => DriveType::D144,
            "288" => DriveType::D288,
            "none" => DriveType::None,
            _ => return None,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            DriveType::None => "none",
            DriveType::D120 => "120",
            DriveType::D144 => "144",
            DriveType::D288 => "288",
        }
    }

    pub fn cmos(self) -> u8 {
        match self {
            DriveType::None => 0,
            DriveType::D120 => 2,
            DriveType::D144 => 4,
            DriveType::D288 => 5,
        }
    }

    /// Whether the drive takes disks made for `other`: they are of one width.
    fn takes(self, other: DriveType) -> bool {
        (self == DriveType::D120) == (other == DriveType::D120)
    }
}

/// How a disk is laid out; sectors of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub drive: DriveType,
    pub sectors: u8,
    pub cylinders: u8,
    pub heads: u8,
    /// Data rate select code: 0 is 500, 1 is 300, 2 is 250, 3 is 1000 kbit/s.
    pub rate: u8,
}

const fn format(drive: DriveType, sectors: u8, cylinders: u8, heads: u8, rate: u8) -> Format {
    Format { drive, sectors, cylinders, heads, rate }
}

/// Of formats with the same size the first counts. The first of a drive is its usual one.
const FORMATS: [Format; 32] = {
    use DriveType::{D120, D144, D288};
    [
        format(D144, 18, 80, 2, 0),
        format(D144, 20, 80, 2, 0),
        format(D144, 21, 80, 2, 0),
        format(D144, 21, 82, 2, 0),
        format(D144, 21, 83, 2, 0),
        format(D144, 22, 80, 2, 0),
        format(D144, 23, 80, 2, 0),
        format(D144, 24, 80, 2, 0),
        format(D288, 36, 80, 2, 3),
        format(D288, 39, 80, 2, 3),
        format(D288, 40, 80, 2, 3),
        format(D288, 44, 80, 2, 3),
        format(D288, 48, 80, 2, 3),
        format(D144, 9, 80, 2, 2),
        format(D144, 10, 80, 2, 2),
        format(D144, 10, 82, 2, 2),
        format(D144, 10, 83, 2, 2),
        format(D144, 13, 80, 2, 2),
        format(D144, 14, 80, 2, 2),
        format(D120, 15, 80, 2, 0),
        format(D120, 18, 80, 2, 0),
        format(D120, 18, 82, 2, 0),
        format(D120, 18, 83, 2, 0),
        format(D120, 20, 80, 2, 0),
        format(D120, 9, 80, 2, 1),
        format(D120, 11, 80, 2, 1),
        format(D120, 9, 40, 2, 1),
        format(D120, 9, 40, 1, 1),
        format(D120, 10, 41, 2, 1),
        format(D120, 10, 42, 2, 1),
        format(D120, 8, 40, 2, 1),
        format(D120, 8, 40, 1, 1),
    ]
};

impl Format {
    pub fn bytes(&self) -> u64 {
        u64::from(self.sectors) * u64::from(self.cylinders) * u64::from(self.heads) * 512
    }

    /// The format of a medium of `bytes` in a drive; in a drive of unknown type any that
    /// fits. A size that no format has is read as the drive's usual format.
    pub fn of(bytes: u64, drive: Option<DriveType>) -> Option<Format> {
        let takes = |format: &&Format| drive.is_none_or(|drive| drive.takes(format.drive));
        let fits = FORMATS.iter().filter(takes).find(|format| format.bytes() == bytes);
        fits.or_else(|| FORMATS.iter().find(|format| Some(format.drive) == drive)).copied()
    }

    /// Byte offset of a sector, if the disk has it.
    pub fn offset(&self, cylinder: u8, head: u8, sector: u8) -> Option<u64> {
        if cylinder >= self.cylinders || head >= self.heads || sector == 0 || sector > self.sectors {
            return None;
        }
        let track = u64::from(cylinder) * u64::from(self.heads) + u64::from(head);
        Some((track * u64::from(self.sectors) + u64::from(sector) - 1) * 512)
    }
}
