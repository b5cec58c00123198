//! LUKS headers.

#![no_main]

use block::crypto::luks::Header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = Header::parse(bytes) {
        assert_eq!(Header::parse(&header.encode()).expect("it was taken before"), header);
    }
});
