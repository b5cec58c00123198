//! Filters: nodes that show a child's data and do something on the way.

pub mod blkdebug;
pub mod blkverify;
pub mod compress;
pub mod copy_before_write;
pub mod copy_on_read;
pub mod preallocate;
pub mod quorum;
pub mod throttle;
pub(crate) mod together;

/// Methods of [`crate::Layer`] that a filter passes to its child `file` unchanged.
macro_rules! pass {
    (size) => {
        fn size(&self) -> u64 {
            self.file.size()
        }
        fn grows(&self) -> bool {
            self.file.node().layer().grows()
        }
        fn zero_initialised(&self) -> bool {
            self.file.node().layer().zero_initialised()
        }
        fn truncate<'a>(&'a self, size: u64, how: Truncate) -> Fut<'a, base::Result<()>> {
            self.file.truncate(size, how)
        }
        fn as_any(&self) -> &dyn std::any::Any {
            self
        }
    };
    (limits) => {
        fn limits(&self) -> Limits {
            Limits { request_alignment: 1, ..self.file.node().layer().limits() }
        }
    };
    (status) => {
        fn block_status<'a>(&'a self, offset: u64, len: u64) -> Fut<'a, IoResult<Status>> {
            self.file.block_status(offset, len)
        }
    };
}
pub(crate) use pass;

#[cfg(test)]
mod tests;
