//! Feeds `berth_proto::fuzz::ticket`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| berth_proto::fuzz::ticket(bytes));
