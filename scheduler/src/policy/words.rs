//! Word of policies that gateways bring from other replicas: when it means that this replica is behind, and whether
//! somebody was told so already.

use std::collections::HashSet;

/// Identities told of for one policy in force: replicas differ in a few texts. Beyond, nothing new is told: the fault is
/// known by then, and a gateway must not fill the log.
const MAX_TOLD: usize = 16;

/// Longest hash that is kept, in characters: SHA-256 in hex.
const MAX_HASH: usize = 64;

/// Which policy: version and hash.
type Identity = (u64, String);

/// What somebody should be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct News {
    /// No gateway has seen a higher version before.
    pub newest: Option<u64>,
    /// Another policy than the one in force, newer or under the same version, that nobody was told of.
    pub behind: bool,
}

/// What was heard.
#[derive(Debug, Default)]
pub(crate) struct Words {
    newest: u64,
    /// In force when `told` was told.
    own: Identity,
    told: HashSet<Identity>,
}

impl Words {
    /// Compares a word with the policy in force.
    pub fn hear(&mut self, word: (u64, &str), own: (u64, &str)) -> News {
        let newest = (word.0 > self.newest).then_some(word.0);
        self.newest = self.newest.max(word.0);
        if (self.own.0, self.own.1.as_str()) != own {
            self.own = (own.0, own.1.to_owned());
            self.told.clear();
        }
        let other_text = word.0 == own.0 && word.0 > 0 && word.1 != own.1;
        let behind = (word.0 > own.0 || other_text) && self.told.len() < MAX_TOLD;
        News { newest, behind: behind && self.told.insert((word.0, word.1.chars().take(MAX_HASH).collect())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each word is told of, while `own` is in force.
    fn told(words: &mut Words, own: (u64, &str), heard: &[(u64, &str)]) -> Vec<bool> {
        heard.iter().map(|word| words.hear(*word, own).behind).collect()
    }

    #[test]
    fn each_word_is_told_once_for_one_own_policy() {
        let mut words = Words::default();
        // Two gateways that were told by different replicas, in turns.
        let heard = [(3, "a"), (3, "b"), (3, "a"), (3, "b"), (2, "own"), (1, "x"), (0, "")];
        assert_eq!(told(&mut words, (2, "own"), &heard), [true, true, false, false, false, false, false]);
        assert_eq!(
            told(&mut words, (3, "a"), &heard),
            [false, true, false, false, false, false, false],
            "the other text is news again: it stands against another own one"
        );
    }

    #[test]
    fn a_word_is_compared_though_a_higher_one_came_before() {
        let mut words = Words::default();
        assert_eq!(words.hear((9, "z"), (2, "own")), News { newest: Some(9), behind: true });
        assert_eq!(words.hear((2, "other"), (2, "own")), News { newest: None, behind: true });
        assert_eq!(words.hear((9, "y"), (2, "own")), News { newest: None, behind: true });
        assert_eq!(words.hear((10, "x"), (10, "x")).newest, Some(10));
    }

    #[test]
    fn a_flood_of_words_ends() {
        let mut words = Words::default();
        let flood = (0..1_000).filter(|n| words.hear((5 + n, "h"), (1, "own")).behind).count();
        assert_eq!((flood, words.told.len()), (MAX_TOLD, MAX_TOLD));
        let long = "h".repeat(100_000);
        words.hear((1, &long), (1, "new"));
        assert!(words.told.iter().all(|(_, hash)| hash.len() <= MAX_HASH));
    }
}
