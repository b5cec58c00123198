/// Where random bytes come from.
pub trait Entropy: Send + Sync {
    /// Fills some of `to`; may block; returns how many bytes were given.
    fn fill(&self, to: &mut [u8]) -> std::io::Result<usize>;
}

/// The payload of `rng-*` objects, what `Backends::object` gives for one.
pub struct EntropySource(pub Box<dyn Entropy>);
