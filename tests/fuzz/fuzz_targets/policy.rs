//! Feeds `berth_scheduler::fuzz::policy`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| berth_scheduler::fuzz::policy(bytes));
