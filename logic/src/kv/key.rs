//! Keys whose byte order is the order of their parts.

/// Builds a key: a kind, then parts. Numbers are big-endian, texts end in a zero byte (no id contains one).
#[derive(Debug, Clone)]
pub struct Key(Vec<u8>);

impl Key {
    /// A key of this kind: kinds share a space and are told apart by their first byte.
    #[must_use]
    pub fn new(kind: u8) -> Self {
        let mut bytes = Vec::with_capacity(48);
        bytes.push(kind);
        Self(bytes)
    }

    /// Makes it the key of this kind and text, in the same memory.
    pub fn set(&mut self, kind: u8, text: &str) {
        self.0.clear();
        self.0.push(kind);
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    /// Appends a text and its end, so that no text is the beginning of another.
    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        debug_assert!(!text.as_bytes().contains(&0), "ids have no zero byte");
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
        self
    }

    /// Appends a number.
    #[must_use]
    pub fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// Appends bytes as they are: only as the last part.
    #[must_use]
    pub fn tail(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The first key after all that begin with this one.
    #[must_use]
    pub fn after_prefix(&self) -> Vec<u8> {
        let mut end = self.0.clone();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return end;
            }
        }
        vec![u8::MAX; self.0.len() + 1]
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Key> for Vec<u8> {
    fn from(key: Key) -> Self {
        key.0
    }
}

/// The number that a key or value ends with, or 0 where there is none.
#[must_use]
pub(crate) fn last_number(bytes: &[u8]) -> u64 {
    bytes.last_chunk().map_or(0, |chunk| u64::from_be_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_keys_is_order_of_parts() {
        let key = |user: &str, seq| Vec::from(Key::new(b'i').text(user).number(seq));
        let mut keys = vec![key("b", 1), key("a.x", 3), key("a", 256), key("a", 2), key("aa", 1)];
        keys.sort();
        assert_eq!(keys, [key("a", 2), key("a", 256), key("a.x", 3), key("aa", 1), key("b", 1)]);
        let mut again = Key::new(b'x').text("longer than the next");
        again.set(b'i', "a");
        assert_eq!(again.bytes(), Key::new(b'i').text("a").bytes());
        assert_eq!(last_number(&key("a", 256)), 256);
        assert_eq!(last_number(b"abc"), 0);
    }

    #[test]
    fn the_end_of_a_prefix_is_above_every_key_in_it_and_below_the_next() {
        let prefix = Key::new(b'i').text("a").number(u64::MAX);
        assert!(prefix.after_prefix().as_slice() > prefix.clone().tail(&[255; 40]).bytes());
        assert!(prefix.after_prefix() <= Vec::from(Key::new(b'i').text("aa")));
        assert!(Key::new(255).after_prefix().as_slice() > Key::new(255).bytes());
    }
}
