#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dstack_vpc::fuzzing::vpn_answers(data));
