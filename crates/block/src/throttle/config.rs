//! What limits there are.

use crate::options::Options;
use base::{Result, bail};
use serde_json::{Map, Value};

/// One limit. Units (bytes or operations) per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// Long-term rate; 0 is no limit.
    pub avg: u64,
    /// Rate in bursts; 0 allows a tenth of a second of `avg`.
    pub max: u64,
    /// Seconds for which `max` may last; at least 1.
    pub burst_length: u64,
}

impl Default for Bucket {
    fn default() -> Self {
        Bucket { avg: 0, max: 0, burst_length: 1 }
    }
}

/// The limits of a group, in the order total, read, write.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Config {
    pub bps: [Bucket; 3],
    pub iops: [Bucket; 3],
    /// A request of n bytes counts as n/iops_size operations; 0 counts each as one.
    pub iops_size: u64,
}

pub(crate) const LIMIT: u64 = 1_000_000_000_000_000;

impl Config {
    pub fn is_limited(&self) -> bool {
        self.bps.iter().chain(&self.iops).any(|bucket| bucket.avg > 0)
    }

    /// Refuses contradictions, with the customary texts.
    pub fn check(&self) -> Result<()> {
        for group in [&self.bps, &self.iops] {
            let [total, read, write] = group;
            if (total.avg > 0 && (read.avg > 0 || write.avg > 0))
                || (total.max > 0 && (read.max > 0 || write.max > 0))
            {
                bail!("bps/iops/max total values and read/write values cannot be used at the same time");
            }
        }
        if self.iops_size > 0 && self.iops.iter().all(|bucket| bucket.avg == 0) {
            bail!("iops size requires an iops value to be set");
        }
        for bucket in self.bps.iter().chain(&self.iops) {
            if bucket.avg > LIMIT || bucket.max > LIMIT {
                bail!("bps/iops/max values must be within [0, {LIMIT}]");
            }
            if bucket.burst_length == 0 {
                bail!("the burst length cannot be 0");
            }
            if bucket.burst_length > 1 && bucket.max == 0 {
                bail!("burst length set without burst rate");
            }
            if bucket.max > 0 && bucket.burst_length > LIMIT / bucket.max {
                bail!("burst length too high for this burst rate");
            }
            if bucket.max > 0 && bucket.avg == 0 {
                bail!("bps_max/iops_max require corresponding bps/iops values");
            }
            if bucket.max > 0 && bucket.max < bucket.avg {
                bail!("bps_max/iops_max cannot be lower than bps/iops");
            }
        }
        Ok(())
    }

    /// Every limit with its modern name (`bps-total`, `iops-read-max`, `bps-write-max-length`,
    /// `iops-size`).
    fn fields(&mut self) -> Vec<(String, &mut u64)> {
        let mut all = Vec::new();
        for (unit, buckets) in [("bps", &mut self.bps), ("iops", &mut self.iops)] {
            for (kind, bucket) in ["total", "read", "write"].iter().zip(buckets) {
                let name = format!("{unit}-{kind}");
                all.push((format!("{name}-max-length"), &mut bucket.burst_length));
                all.push((format!("{name}-max"), &mut bucket.max));
                all.push((name, &mut bucket.avg));
            }
        }
        all.push(("iops-size".to_string(), &mut self.iops_size));
        all
    }

    /// Takes the limits that are given (`prefix` before their names); others stay.
    pub fn take(&mut self, options: &mut Options, prefix: &str) -> Result<()> {
        for (name, field) in self.fields() {
            if let Some(value) = options.take_u64(&format!("{prefix}{name}"))? {
                *field = value;
            }
        }
        Ok(())
    }

    /// All limits by their names.
    pub fn table(mut self) -> Map<String, Value> {
        self.fields().into_iter().map(|(name, field)| (name, Value::from(*field))).collect()
    }
}
