#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| dstack_vpc::fuzzing::sys_config(data));
