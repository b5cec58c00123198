//! What a vCPU remembers of the ways out of translated code that it took, so that it need not
//! ask the shared cache again.

use crate::cache::Site;
use crate::direct::Direct;
use crate::ports::Port;
use crate::shared::Shared;
use cpu_interpreter::{Core, Single};
use std::sync::atomic::Ordering;

/// A way out that was taken.
pub struct Known {
    pub site: Site,
    /// The instruction, once it has been left to the interpreter.
    pub single: Option<Single>,
    /// Likewise, if it is IN or OUT.
    pub port: Option<Port>,
    /// Likewise, if it is one of those.
    pub direct: Option<Direct>,
    /// [`Shared::ended`] when the block was last seen alive.
    ended: u64,
}

/// Ways out by their number; void when the cache is flushed.
pub struct Exits {
    /// Place in `known` plus one, by number.
    places: Vec<u32>,
    known: Vec<Known>,
}

impl Default for Exits {
    fn default() -> Exits {
        let exits = Exits { places: Vec::new(), known: Vec::with_capacity(1 << 16) };
        memory::prefer_large_pages(&exits.known);
        exits
    }
}

impl Exits {
    pub fn clear(&mut self) {
        self.places.clear();
        self.known.clear();
    }

    /// The place of site `number`, and whether its block is alive.
    pub fn place(&mut self, number: u32, shared: &Shared) -> (usize, bool) {
        let ended = shared.ended.load(Ordering::SeqCst);
        let index = number as usize;
        if index >= self.places.len() {
            self.places.resize(index + 1024, 0);
        }
        if let Some(place) = (self.places[index] as usize).checked_sub(1) {
            let known = &mut self.known[place];
            if known.ended == ended {
                return (place, true);
            }
            let alive = shared.cache().blocks[known.site.block as usize].alive;
            if alive {
                known.ended = ended;
            }
            return (place, alive);
        }
        let cache = shared.cache();
        let site = cache.sites[index];
        let alive = cache.blocks[site.block as usize].alive;
        self.known.push(Known {
            site,
            single: None,
            port: None,
            direct: None,
            ended: if alive { ended } else { u64::MAX },
        });
        self.places[index] = self.known.len() as u32;
        (self.known.len() - 1, alive)
    }

    pub fn get(&self, place: usize) -> &Known {
        &self.known[place]
    }

    /// Decodes the instruction of a site, from the bytes that its block was made of.
    pub fn decode(&mut self, place: usize, shared: &Shared, core: &Core) -> bool {
        let known = &mut self.known[place];
        if known.single.is_some() {
            return true;
        }
        let site = &known.site;
        let cache = shared.cache();
        let block = &cache.blocks[site.block as usize];
        let from = (site.rip & 0xfff) as usize - usize::from(block.span.0);
        let Some(bytes) = block.bytes.get(from..from + usize::from(site.len)) else { return false };
        let mut decoder =
            iced_x86::Decoder::with_ip(core.code_bits(), bytes, site.rip, iced_x86::DecoderOptions::NONE);
        let instruction = decoder.decode();
        known.port = Port::of(&instruction);
        known.direct = Direct::of(&instruction);
        known.single = Some(Single::new(core, &instruction, bytes));
        true
    }
}
