//! A simulated client, as the SDK behaves: along its list while the ticket is good, then it asks again.

/// Gateways that a client was told of, best first; and the next to try.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct List {
    gateways: [u16; Self::LEN],
    len: u8,
    next: u8,
}

impl List {
    pub const LEN: usize = berth_proto::limits::ENDPOINT_GATEWAYS;

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub fn push(&mut self, gateway: u16) {
        if let Some(slot) = self.gateways.get_mut(usize::from(self.len)) {
            *slot = gateway;
            self.len += 1;
        }
    }

    /// As [`List::push`], unless it is on the list.
    pub fn push_new(&mut self, gateway: u16) {
        if !self.gateways[..usize::from(self.len)].contains(&gateway) {
            self.push(gateway);
        }
    }

    /// The gateway to try now.
    pub fn next(&self) -> Option<u16> {
        self.gateways[..usize::from(self.len)].get(usize::from(self.next)).copied()
    }

    pub fn skip(&mut self) {
        self.next += 1;
    }

    pub fn rewind(&mut self) {
        self.next = 0;
    }

    /// Those that were tried.
    pub fn tried(&self) -> &[u16] {
        &self.gateways[..usize::from(self.next.min(self.len))]
    }
}

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// Away.
    Away,
    /// It tries to connect.
    Connecting,
    /// Connected.
    Online,
}

/// One client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    pub doing: Doing,
    /// Its place among those that do the same.
    pub place: u32,
    /// Where it is, or was last.
    pub gateway: u16,
    pub list: List,
    /// Failures since it asked last.
    pub failures: u8,
    /// Of the list; what was waiting for an earlier one is over.
    pub attempt: u16,
    /// The ticket has been shown to a gateway.
    pub shown: bool,
    pub ticket_until_ms: u32,
    /// When it began to want a connection.
    pub wanted_ms: u32,
    pub schedule_id: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_walked_from_the_first_to_the_last() {
        let mut list = List::default();
        assert_eq!(list.next(), None);
        for gateway in [7, 3, 7, 9, 1, 2, 8] {
            list.push_new(gateway);
        }
        let mut seen = Vec::new();
        while let Some(gateway) = list.next() {
            seen.push(gateway);
            list.skip();
        }
        assert_eq!(seen, [7, 3, 9, 1, 2]);
        assert_eq!(list.tried(), [7, 3, 9, 1, 2]);
        list.rewind();
        assert_eq!((list.next(), list.tried()), (Some(7), &[][..]));
    }
}
