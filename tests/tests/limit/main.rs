//! `berth bench` against Berth and against the limit (`tests/limit/`): that it counts right, and what the ratios are.

mod bench;
mod faults;
mod figures;
mod ratios;
mod support;
