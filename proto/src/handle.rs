//! How others name a connection of a gateway: worker, slot and generation in one 64-bit number.

/// A connection of a gateway. A slot is used again under the next generation, so an old handle finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle {
    /// The worker (thread) that owns the connection.
    pub worker: u8,
    /// The connection's place in that worker's table: 24 bits.
    pub slot: u32,
    /// How often the slot was used before, modulo 2^32.
    pub generation: u32,
}

/// Slots fit into 24 bits: 16.7 million connections a worker.
pub const MAX_SLOT: u32 = (1 << 24) - 1;

impl Handle {
    /// As one number: worker (8 bits), slot (24 bits), generation (32 bits).
    #[must_use]
    pub fn pack(self) -> u64 {
        u64::from(self.worker) << 56 | u64::from(self.slot & MAX_SLOT) << 32 | u64::from(self.generation)
    }

    /// The inverse of [`Handle::pack`]; every number is a handle, though perhaps of no connection.
    #[must_use]
    pub fn unpack(packed: u64) -> Self {
        let [worker, a, b, c, generation @ ..] = packed.to_be_bytes();
        Self { worker, slot: u32::from_be_bytes([0, a, b, c]), generation: u32::from_be_bytes(generation) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn there_and_back(worker: u8, slot in 0..=MAX_SLOT, generation: u32) {
            let handle = Handle { worker, slot, generation };
            prop_assert_eq!(Handle::unpack(handle.pack()), handle);
        }
    }
}
