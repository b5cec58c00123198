//! The engine as a layer of the graph.

use super::{Format, Image};
use crate::crypto::{OldAes, SECTOR};
use crate::driver::{Check, Fix, Info, Layer};
use crate::graph::{Child, Settings};
use crate::options::Options;
use crate::types::*;
use base::{Result, bail};
use std::sync::atomic::Ordering;

impl<F: Format> Layer for Image<F> {
    fn size(&self) -> u64 {
        self.disk_size()
    }

    fn limits(&self) -> Limits {
        let cluster = self.shape.cluster;
        let unit = if cluster.is_power_of_two() && cluster <= 1 << 30 { cluster as u32 } else { 0 };
        let plain = Limits { zeroes_alignment: unit, ..Limits::default() };
        match self.format.crypto() {
            None => plain,
            Some(_) => Limits { request_alignment: SECTOR as u32, max_transfer: 1 << 20, ..plain },
        }
    }

    fn read<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.unlocked()?;
            self.read_guest(offset, buf).await
        })
    }

    fn write<'a>(&'a self, offset: u64, data: &'a [u8], flags: WriteFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.unlocked()?;
            self.begin().await?;
            if self.format.packed_only() {
                return self.write_once(offset, data).await;
            }
            // Compressed clusters are not encrypted.
            let packs = self.format.packs() && self.format.crypto().is_none();
            match flags.contains(WriteFlags::COMPRESSED) && packs {
                true => self.write_packed(offset, data).await,
                false => self.write_guest(offset, data).await,
            }
        })
    }

    fn write_zeroes<'a>(&'a self, offset: u64, len: u64, flags: ZeroFlags) -> Fut<'a, IoResult> {
        Box::pin(async move {
            self.unlocked()?;
            if self.format.crypto().is_some() {
                // The file has no zeroes where the disk has some.
                return Err(errno(libc::ENOTSUP));
            }
            self.begin().await?;
            self.zero_guest(offset, len, flags).await
        })
    }

    fn flush(&self) -> Fut<'_, IoResult> {
        Box::pin(async {
            match self.is_read_only() {
                true => Ok(()),
                false => self.sync().await,
            }
        })
    }

    fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
        Box::pin(self.status(offset, len))
    }

    fn truncate<'a>(&'a self, size: u64, how: Truncate) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            let Some(work) = self.format.grow(self, size) else {
                bail!("Image format driver does not support resize")
            };
            if how.preallocation != Preallocation::Off {
                bail!("Unsupported preallocation mode '{}'", how.preallocation.as_str());
            }
            let old = self.disk_size();
            if size < old {
                bail!("Shrinking images is currently not supported");
            }
            self.begin().await?;
            work.await?;
            if how.zero && self.backing().is_some() && size > old {
                self.zero_guest(old, size - old, ZeroFlags::MAY_UNMAP).await?;
            }
            Ok(())
        })
    }

    fn close(&self) -> Fut<'_, IoResult> {
        Box::pin(async {
            if self.is_read_only() {
                return Ok(());
            }
            self.sync().await?;
            self.file.flush().await?;
            self.format.close(self).await
        })
    }

    fn reopen<'a>(&'a self, to: &'a Settings, _options: &'a mut Options) -> Fut<'a, Result<()>> {
        Box::pin(async move {
            if to.read_only && !self.is_read_only() {
                self.close().await?;
                *self.begun.lock().await = false;
                self.has_begun.store(false, Ordering::Release);
            }
            self.read_only.store(to.read_only, Ordering::Release);
            Ok(())
        })
    }

    fn info(&self) -> Info {
        let info = self.format.info();
        Info { cluster_size: Some(self.shape.cluster), dirty: info.dirty.or(Some(false)), ..info }
    }

    fn check<'a>(&'a self, fix: Fix) -> Fut<'a, IoResult<Check>> {
        Box::pin(async move {
            match self.format.checks() {
                true => self.check_tables(fix).await,
                false => Err(errno(libc::ENOTSUP)),
            }
        })
    }

    fn change_backing<'a>(&'a self, name: Option<&'a str>, format: Option<&'a str>) -> Fut<'a, IoResult> {
        Box::pin(async move {
            if self.is_read_only() {
                return Err(errno(libc::EPERM));
            }
            self.format.change_backing(self, name, format).await
        })
    }

    fn set_backing(&self, backing: Option<Child>) -> Result<()> {
        *self.backing.lock() = backing;
        self.estranged.store(false, Ordering::Release);
        Ok(())
    }

    fn zero_initialised(&self) -> bool {
        true
    }

    fn late_key(&self) -> Option<&OldAes> {
        self.format.crypto()
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
