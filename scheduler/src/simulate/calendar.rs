//! What happens when: a ring of milliseconds. Entries of one millisecond come out in the order they went in, so that a run
//! depends on nothing but its seed.

/// Milliseconds that can be looked ahead: above the longest report delay that a scenario may have.
pub(super) const HORIZON_MS: u32 = 1 << 17;

/// Entries by the millisecond they are due in.
pub(super) struct Calendar<E> {
    slots: Vec<Vec<E>>,
    now_ms: u32,
}

impl<E> Calendar<E> {
    pub fn new() -> Self {
        Self { slots: (0..HORIZON_MS).map(|_| Vec::new()).collect(), now_ms: 0 }
    }

    pub fn now_ms(&self) -> u32 {
        self.now_ms
    }

    /// Puts an entry in, at least one millisecond and less than [`HORIZON_MS`] ahead.
    pub fn after(&mut self, delay_ms: u32, entry: E) {
        let at_ms = self.now_ms + delay_ms.clamp(1, HORIZON_MS - 1);
        self.slots[(at_ms % HORIZON_MS) as usize].push(entry);
    }

    /// Goes one millisecond on, and takes what is due then.
    pub fn advance(&mut self) -> Vec<E> {
        self.now_ms += 1;
        std::mem::take(&mut self.slots[(self.now_ms % HORIZON_MS) as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_order_of_time_then_of_entry() {
        let mut calendar = Calendar::new();
        for (delay_ms, name) in [(3, 'd'), (1, 'a'), (3, 'e'), (0, 'b')] {
            calendar.after(delay_ms, name);
        }
        let taken: Vec<_> = (0..4).map(|_| calendar.advance()).collect();
        assert_eq!(taken, [vec!['a', 'b'], vec![], vec!['d', 'e'], vec![]]);
        assert_eq!(calendar.now_ms(), 4);
    }
}
