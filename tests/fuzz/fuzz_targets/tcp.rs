//! Feeds `berth_proto::fuzz::tcp`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| berth_proto::fuzz::tcp(bytes));
