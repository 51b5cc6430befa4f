//! What one decision costs over fleets of 10, 1,000 and 10,000 gateways.

fn main() {}
