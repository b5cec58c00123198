//! Bytes of a hostile QMP client: framer, request check and writer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| qmp::fuzz_entry(input));
