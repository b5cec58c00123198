//! Through which linear pages a host page may be written: who must lose its entry when code on
//! the page comes to be watched.

use crate::cache::Mixed;

/// Pages of a chunk, which is what is looked for by a hash.
const CHUNK: usize = 512;
/// Ways to a page beyond the first that are noted before those are forgotten that lead there no
/// more. (A page of a guest that lives long is mapped at very many addresses, one after the other.)
const MANY: usize = 16;

/// The ways to one page: linear page, and number of the table plus one in its low bits.
#[derive(Clone, Default)]
struct Ways {
    /// 0: there is none.
    first: u64,
    #[expect(clippy::box_collection, reason = "most pages have none; it is to be small")]
    more: Option<Box<Vec<u64>>>,
}

#[derive(Default)]
pub struct Writers {
    /// GS bases of tables by number; 0: none.
    tables: Vec<usize>,
    chunks: Mixed<usize, Box<[Ways]>>,
}

impl Writers {
    pub fn join(&mut self, tables: &[usize]) {
        for &gs in tables {
            match self.tables.iter_mut().find(|at| **at == 0) {
                Some(free) => *free = gs,
                None => self.tables.push(gs),
            }
        }
    }

    pub fn leave(&mut self, tables: &[usize]) {
        let is_left = |known: &[usize], way: u64| tables.contains(&known[(way as usize & 0xfff) - 1]);
        for ways in self.chunks.values_mut().flatten() {
            if let Some(more) = &mut ways.more {
                more.retain(|&way| !is_left(&self.tables, way));
            }
            if ways.first != 0 && is_left(&self.tables, ways.first) {
                ways.first = ways.more.as_mut().and_then(|more| more.pop()).unwrap_or(0);
            }
        }
        self.tables.iter_mut().filter(|gs| tables.contains(gs)).for_each(|gs| *gs = 0);
    }

    /// Notes that `host` (a page) may be written through `linear` (a page) of a table. Where there
    /// are many ways, forgets those that are not `alive`, after `forgetting` was called.
    pub fn note(
        &mut self,
        (host, gs, linear): (usize, usize, u64),
        alive: impl Fn(usize, u64) -> bool,
        forgetting: impl FnOnce(),
    ) {
        let Some(number) = self.tables.iter().position(|&known| known == gs) else { return };
        let way = linear | (number as u64 + 1);
        let page = host / 4096;
        let chunk = self.chunks.entry(page / CHUNK).or_insert_with(|| vec![Ways::default(); CHUNK].into());
        let ways = &mut chunk[page % CHUNK];
        if ways.first == way {
            return;
        }
        if ways.first == 0 {
            ways.first = way;
            return;
        }
        let more = ways.more.get_or_insert_default();
        if more.contains(&way) {
            return;
        }
        if more.len() >= MANY && more.len().is_power_of_two() {
            forgetting();
            more.retain(|&way| alive(self.tables[(way as usize & 0xfff) - 1], way & !0xfff));
        }
        more.push(way);
    }

    /// Forgets the ways to `host` and returns them: (GS base, linear page).
    pub fn take(&mut self, host: usize) -> Vec<(usize, u64)> {
        let page = host / 4096;
        let Some(chunk) = self.chunks.get_mut(&(page / CHUNK)) else { return Vec::new() };
        let ways = std::mem::take(&mut chunk[page % CHUNK]);
        let all = (ways.first != 0).then_some(ways.first).into_iter();
        let all = all.chain(ways.more.into_iter().flat_map(|more| *more));
        all.map(|way| (self.tables[(way as usize & 0xfff) - 1], way & !0xfff)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: usize = 0x7f00_0020_3000;

    fn sorted(mut ways: Vec<(usize, u64)>) -> Vec<(usize, u64)> {
        ways.sort_unstable();
        ways
    }

    #[test]
    fn every_way_is_taken_once() {
        let mut writers = Writers::default();
        writers.join(&[0x10_0000, 0x20_0000]);
        for (gs, linear) in
            [(0x10_0000, 0x1000), (0x20_0000, 0x1000), (0x10_0000, 0x1000), (0x10_0000, 0x5000)]
        {
            writers.note((HOST, gs, linear), |_, _| true, || panic!());
        }
        writers.note((HOST + 4096, 0x10_0000, 0x7000), |_, _| true, || panic!());
        let all = vec![(0x10_0000, 0x1000), (0x10_0000, 0x5000), (0x20_0000, 0x1000)];
        assert_eq!(sorted(writers.take(HOST)), all);
        assert!(writers.take(HOST).is_empty());
        assert_eq!(writers.take(HOST + 4096), vec![(0x10_0000, 0x7000)]);
    }

    #[test]
    fn of_many_ways_those_are_forgotten_that_lead_nowhere() {
        let mut writers = Writers::default();
        writers.join(&[0x10_0000]);
        let mut forgot = 0;
        for page in 1..=40u64 {
            let alive = |_, linear: u64| linear.is_multiple_of(0x4000) || linear == page << 12;
            writers.note((HOST, 0x10_0000, page << 12), alive, || forgot += 1);
        }
        let kept = sorted(writers.take(HOST));
        assert!(forgot > 1 && kept.len() < 34, "{forgot} {kept:?}");
        for page in (4..=40).step_by(4) {
            assert!(kept.contains(&(0x10_0000, page << 12)), "{page}");
        }
    }

    #[test]
    fn who_leaves_has_no_ways_any_more_and_its_number_is_free() {
        let mut writers = Writers::default();
        writers.join(&[0x10_0000, 0x20_0000]);
        for gs in [0x10_0000, 0x20_0000] {
            writers.note((HOST, gs, 0x1000), |_, _| true, || ());
            writers.note((HOST, gs, 0x2000), |_, _| true, || ());
        }
        writers.leave(&[0x10_0000]);
        writers.join(&[0x30_0000]);
        assert_eq!(sorted(writers.take(HOST)), vec![(0x20_0000, 0x1000), (0x20_0000, 0x2000)]);
        assert_eq!(writers.tables, vec![0x30_0000, 0x20_0000]);
    }
}
