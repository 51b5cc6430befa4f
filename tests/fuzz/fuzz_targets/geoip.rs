//! Feeds `berth_scheduler::fuzz::geoip`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| berth_scheduler::fuzz::geoip(bytes));
