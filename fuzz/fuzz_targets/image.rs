//! Hostile images: the format by the first byte (its highest bit: opened for writing), then
//! the image.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| block::formats::hostile::fuzz_entry(input));
