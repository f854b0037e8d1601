#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dstack_vpc::fuzzing::target_headers(data));
