//! Where vCPUs sit, by `-smp`.

use schema::cpu::CpuInstanceProperties;
use spec::machine::Smp;

/// The place of the vCPU with that index: threads vary fastest, then cores, dies, sockets.
pub fn place(smp: &Smp, index: u32) -> CpuInstanceProperties {
    let take = |rest: &mut u32, size: u32| {
        let size = size.max(1);
        let at = *rest % size;
        *rest /= size;
        Some(i64::from(at))
    };
    let mut rest = index;
    CpuInstanceProperties {
        node_id: None,
        thread_id: take(&mut rest, smp.threads),
        core_id: take(&mut rest, smp.cores),
        die_id: take(&mut rest, smp.dies),
        socket_id: Some(i64::from(rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let smp = Smp { cpus: 8, maxcpus: 8, sockets: 2, dies: 1, cores: 2, threads: 2 };
        let got = place(&smp, 6);
        assert_eq!(
            (got.socket_id, got.die_id, got.core_id, got.thread_id),
            (Some(1), Some(0), Some(1), Some(0))
        );
    }
}
