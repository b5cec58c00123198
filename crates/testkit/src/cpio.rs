//! Initramfs archives in the kernel's `newc` form (Linux Documentation/driver-api/early-userspace/buffer-format).

/// An archive under construction.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn directory(&mut self, name: &str) -> &mut Self {
        self.entry(name, 0o40755, &[], 0)
    }

    /// A regular file, executable.
    pub fn file(&mut self, name: &str, data: &[u8]) -> &mut Self {
        self.entry(name, 0o100_755, data, 0)
    }

    pub fn symlink(&mut self, name: &str, to: &str) -> &mut Self {
        self.entry(name, 0o120_777, to.as_bytes(), 0)
    }

    /// A character device node.
    pub fn char_device(&mut self, name: &str, major: u32, minor: u32) -> &mut Self {
        self.entry(name, 0o20600, &[], major << 8 | minor)
    }

    /// The archive with its trailer.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], 0);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8], device: u32) -> &mut Self {
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0,
            0,
            1,
            0,
            data.len() as u32,
            0,
            0,
            device >> 8,
            device & 255,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
