//! `check`: every table word against the file and against each other.

use super::{Format, Image, Place};
use crate::driver::{Check, Fix};
use crate::types::*;

impl<F: Format> Image<F> {
    /// Counts clusters that are named twice or lie outside, and room nothing names.
    pub(super) async fn check_tables(&self, fix: Fix) -> IoResult<Check> {
        let _one = self.allocating.lock().await;
        let cluster = self.shape.cluster;
        let total = self.disk_size().div_ceil(cluster);
        let mut found = Check { total_clusters: total, ..Check::default() };
        if self.state.lock().has_shared_tables() {
            // What hangs on them is not to be told apart, and may be without end.
            found.corruptions = 1;
            found.messages.push("a table is used twice".to_string());
            return Ok(found);
        }
        let mut places: Vec<(u64, u64)> = Vec::new();
        let mut last = None;
        let mut index = 0;
        while index < total {
            // A page without a table is passed as a whole.
            if self.word(self.format.slot(index)).await?.is_none() {
                let per_page = self.state.lock().per_page;
                index = (index / per_page + 1) * per_page;
                continue;
            }
            match self.place(index).await {
                Ok(Place::At(host)) => {
                    found.allocated_clusters += 1;
                    found.fragmented_clusters += u64::from(last.is_some_and(|at| at + cluster != host));
                    last = Some(host);
                    places.push((host, index));
                }
                Ok(Place::Packed(..)) => {
                    found.allocated_clusters += 1;
                    found.compressed_clusters += 1;
                }
                Ok(_) => {}
                Err(_) => {
                    found.corruptions += 1;
                    found.messages.push(format!("cluster {index} lies outside of the image file"));
                    self.forget(index, fix, &mut found).await?;
                }
            }
            index += 1;
        }
        places.sort_unstable();
        found.image_end_offset = Some(places.last().map_or(self.shape.base, |(host, _)| host + cluster));
        for pair in places.windows(2) {
            if pair[0].0 + cluster > pair[1].0 {
                found.corruptions += 1;
                found.messages.push(format!("clusters {} and {} overlap", pair[0].1, pair[1].1));
            }
        }
        if fix == Fix::All && found.corruptions_fixed > 0 {
            self.sync().await?;
            self.file.flush().await?;
        }
        if found.corruptions == 0 && fix != Fix::Nothing && !self.is_read_only() {
            self.format.checked(self).await?;
        }
        Ok(found)
    }

    async fn forget(&self, index: u64, fix: Fix, found: &mut Check) -> IoResult {
        if fix == Fix::All && !self.is_read_only() {
            self.set_place(index, Place::Absent).await?;
            found.corruptions_fixed += 1;
            found.corruptions -= 1;
        }
        Ok(())
    }
}
