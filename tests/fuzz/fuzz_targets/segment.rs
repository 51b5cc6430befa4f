//! Feeds `berth_logic::fuzz::segment`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| berth_logic::fuzz::segment(bytes));
