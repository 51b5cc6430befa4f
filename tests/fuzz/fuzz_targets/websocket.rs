//! Feeds `berth_gateway::fuzz::websocket`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| berth_gateway::fuzz::websocket(bytes));
