//! Feeds `berth_gateway::fuzz::lists`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| berth_gateway::fuzz::lists(bytes));
