//! Feeds `berth_gateway::fuzz::upgrade`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| berth_gateway::fuzz::upgrade(bytes));
