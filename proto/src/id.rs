//! The form of user, device, group and gateway ids.

use thiserror::Error;

use crate::limits;

/// The user id that belongs to the server: no client may hold it.
pub const SYSTEM_USER: &str = "system";

/// Why a text is no id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidId {
    /// Ids have at least one byte.
    #[error("is empty; an id has 1 to 64 bytes of [A-Za-z0-9_.:@-]")]
    Empty,
    /// Ids have at most [`limits::ID`] bytes.
    #[error("has {0} bytes; an id has at most 64")]
    TooLong(usize),
    /// Only `[A-Za-z0-9_.:@-]`.
    #[error("contains {0:?}; an id has only [A-Za-z0-9_.:@-]")]
    Character(char),
}

/// Checks that `text` is an id: 1 to 64 bytes of `[A-Za-z0-9_.:@-]`.
///
/// # Errors
/// Says what is wrong with it, without repeating more than one character of it.
pub fn check(text: &str) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty);
    }
    if text.len() > limits::ID {
        return Err(InvalidId::TooLong(text.len()));
    }
    match text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':' | '@' | '-'))) {
        Some(c) => Err(InvalidId::Character(c)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_whole_alphabet_and_both_lengths() {
        for id in ["a", "Z9_.:@-", &"x".repeat(64)] {
            assert_eq!(check(id), Ok(()), "{id}");
        }
    }

    #[test]
    fn refuses_with_the_reason() {
        assert_eq!(check(""), Err(InvalidId::Empty));
        assert_eq!(check(&"x".repeat(65)), Err(InvalidId::TooLong(65)));
        assert_eq!(check("a b"), Err(InvalidId::Character(' ')));
        assert_eq!(check("é"), Err(InvalidId::Character('é')));
        assert_eq!(check("a/b"), Err(InvalidId::Character('/')));
    }
}
