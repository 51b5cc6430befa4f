//! What a fuzzer feeds this crate's parsers: any bytes, and what must hold of the answer. The property tests and the target
//! of `tests/fuzz` call the same function.

/// A segment of the ingest log: what is read lies within it, and nothing passes that was not written so.
///
/// # Panics
/// When something does not hold.
pub fn segment(bytes: &[u8]) {
    crate::queue::check_segment(bytes);
}
