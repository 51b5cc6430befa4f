//! A list in pieces of one size, for what grows with a storm: it never asks for its whole length at once, has no more than a
//! piece unused, and gives its memory back piece by piece, so that what is left of a storm is small.

/// The list. All pieces but the last one are full.
#[derive(Debug)]
pub(crate) struct Pieces<T, const SIZE: usize>(Vec<Vec<T>>);

impl<T, const SIZE: usize> Default for Pieces<T, SIZE> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const SIZE: usize> Pieces<T, SIZE> {
    pub(crate) fn len(&self) -> usize {
        self.0.last().map_or(0, |last| (self.0.len() - 1) * SIZE + last.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn push(&mut self, one: T) {
        match self.0.last_mut().filter(|piece| piece.len() < SIZE) {
            Some(piece) => piece.push(one),
            None => {
                let mut piece = Vec::with_capacity(SIZE);
                piece.push(one);
                self.0.push(piece);
            }
        }
    }

    /// Takes the newest. The memory of the first piece stays for what comes next.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let piece = self.0.last_mut()?;
        let one = piece.pop();
        if piece.is_empty() && self.0.len() > 1 {
            self.0.pop();
        }
        one
    }

    /// The pieces, with all memory.
    pub(crate) fn into_pieces(self) -> Vec<Vec<T>> {
        self.0
    }

    /// Entries there is memory for.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.0.iter().map(Vec::capacity).sum()
    }
}

impl<T, const SIZE: usize> Extend<T> for Pieces<T, SIZE> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, more: I) {
        more.into_iter().for_each(|one| self.push(one));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_stack_that_has_no_more_than_a_piece_unused(steps in prop::collection::vec(prop::option::of(any::<u8>()), 0..200)) {
            let (mut pieces, mut plain) = (Pieces::<u8, 8>::default(), Vec::new());
            for step in steps {
                match step {
                    Some(one) => {
                        pieces.push(one);
                        plain.push(one);
                    }
                    None => prop_assert_eq!(pieces.pop(), plain.pop()),
                }
                prop_assert_eq!(pieces.len(), plain.len());
                prop_assert_eq!(pieces.is_empty(), plain.is_empty());
                prop_assert!(pieces.capacity() <= plain.len() + 8, "{} for {}", pieces.capacity(), plain.len());
            }
            prop_assert_eq!(pieces.into_pieces().concat(), plain);
        }
    }
}
