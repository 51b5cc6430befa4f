//! Which word of the schedulers makes this gateway ask about its connections again. Pure.
//!
//! Replicas take a new policy up one after the other, and one that is cut off goes on with an older one. Connections must not be
//! moved there and back between them, so a gateway waits until those it hears agree, or until those that differ have
//! done so for [`DISAGREE_MS`]: then the one with the newest policy is believed.

/// So long replicas may take to agree, in milliseconds: a policy file is looked at every 2 s.
const DISAGREE_MS: i64 = 10_000;

/// What a scheduler said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Word {
    pub(crate) policy_version: u64,
    /// Of what decides where users belong.
    pub(crate) placement: u64,
    /// Of the home regions that can take connections.
    pub(crate) homes: u64,
    /// Connections a second; 0: none are moved.
    pub(crate) per_second: u32,
}

/// Whom to ask about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sweep {
    pub(crate) placement: u64,
    /// Only those whose home is another region: what decides is the same, but a home came back, or went.
    pub(crate) only_away: bool,
}

impl Sweep {
    /// In the place of an older one that is not through: whoever was to be asked about is.
    pub(crate) fn after(self, older: Option<Self>) -> Self {
        Self { only_away: self.only_away && older.is_none_or(|older| older.only_away), ..self }
    }
}

/// What follows from new word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// It is the first: nobody is here who was placed by another one, but some may come whose tickets are of before.
    First,
    Sweep(Sweep),
}

/// What the schedulers said, and what was done about it.
#[derive(Debug, Default)]
pub(crate) struct Sweeps {
    /// By scheduler; with whether its link is up.
    words: Vec<Option<Word>>,
    /// What connections were last asked about by.
    done: Option<Word>,
    disagree_since_ms: Option<i64>,
}

impl Sweeps {
    /// A scheduler introduced itself.
    pub(crate) fn hear(&mut self, scheduler: usize, word: Word) {
        if self.words.len() <= scheduler {
            self.words.resize(scheduler + 1, None);
        }
        self.words[scheduler] = Some(word);
    }

    /// What is due, if anything; `up`: which schedulers' links are.
    pub(crate) fn due(&mut self, up: &[bool], now_ms: i64) -> Option<Due> {
        let heard: Vec<Word> = self.heard(up).collect();
        let newest = *heard.iter().max_by_key(|word| word.policy_version)?;
        let agree = heard.iter().all(|word| (word.placement, word.homes) == (newest.placement, newest.homes));
        if agree {
            self.disagree_since_ms = None;
        } else if now_ms - *self.disagree_since_ms.get_or_insert(now_ms) < DISAGREE_MS {
            return None;
        }
        if self.done.is_some_and(|done| newest.policy_version < done.policy_version) {
            return None;
        }
        let Some(done) = self.done.replace(newest) else { return Some(Due::First) };
        let placement = newest.placement;
        let only_away = match (done.placement != placement, done.homes != newest.homes) {
            (true, _) => false,
            (false, true) => true,
            (false, false) => return None,
        };
        Some(Due::Sweep(Sweep { placement, only_away }))
    }

    /// Connections a second as the newest policy says (0: none are moved), while any scheduler is heard.
    pub(crate) fn per_second(&self, up: &[bool]) -> Option<u32> {
        let newest = self.heard(up).max_by_key(|word| word.policy_version)?;
        let newer = self.done.filter(|done| done.policy_version > newest.policy_version);
        Some(newer.unwrap_or(newest).per_second)
    }

    /// The schedulers that place by that, a bit each by their index: the others would say what is no longer so.
    pub(crate) fn who_place_by(&self, placement: u64) -> u64 {
        let words = self.words.iter().take(64).enumerate();
        let those = words.filter(|(_, word)| word.is_some_and(|word| word.placement == placement));
        those.fold(0, |bits, (index, _)| bits | 1 << index)
    }

    /// The schedulers that place as connections were last asked about; before any word, all.
    pub(crate) fn who_agree(&self) -> u64 {
        self.done.map_or(u64::MAX, |done| self.who_place_by(done.placement))
    }

    fn heard(&self, up: &[bool]) -> impl Iterator<Item = Word> {
        self.words.iter().zip(up).filter(|(_, up)| **up).filter_map(|(word, _)| *word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(policy_version: u64, placement: u64, homes: u64) -> Word {
        Word { policy_version, placement, homes, per_second: 100 }
    }

    fn sweep(placement: u64, only_away: bool) -> Option<Due> {
        Some(Due::Sweep(Sweep { placement, only_away }))
    }

    #[test]
    fn the_first_word_moves_nobody_and_each_new_one_everybody_once() {
        let mut sweeps = Sweeps::default();
        assert_eq!(sweeps.due(&[true], 0), None);
        assert_eq!(sweeps.who_agree(), u64::MAX);
        sweeps.hear(0, word(1, 11, 5));
        assert_eq!(sweeps.due(&[true], 0), Some(Due::First));
        assert_eq!(sweeps.due(&[true], 0), None);
        sweeps.hear(0, word(2, 22, 5));
        assert_eq!(sweeps.due(&[true], 1), sweep(22, false));
        assert_eq!(sweeps.due(&[true], 2), None);
        sweeps.hear(0, word(2, 22, 6));
        assert_eq!(sweeps.due(&[true], 3), sweep(22, true), "only a home came or went");
        assert_eq!(sweeps.per_second(&[true]), Some(100));
        sweeps.hear(0, Word { per_second: 0, ..word(3, 33, 6) });
        assert_eq!((sweeps.due(&[true], 4), sweeps.per_second(&[true])), (sweep(33, false), Some(0)));
        sweeps.hear(1, word(2, 22, 6));
        assert_eq!(sweeps.per_second(&[false, true]), Some(0), "an older policy is not gone back to");
        assert_eq!(sweeps.per_second(&[false, false]), None);
        assert_eq!((sweeps.who_place_by(33), sweeps.who_place_by(22), sweeps.who_place_by(1)), (1, 2, 0));
    }

    #[test]
    fn replicas_that_differ_are_waited_for() {
        let mut sweeps = Sweeps::default();
        let both = [true, true];
        sweeps.hear(0, word(1, 11, 5));
        sweeps.hear(1, word(1, 11, 5));
        assert_eq!(sweeps.due(&both, 0), Some(Due::First));
        sweeps.hear(1, word(2, 22, 5));
        assert_eq!(sweeps.due(&both, 1_000), None);
        sweeps.hear(0, word(2, 22, 5));
        assert_eq!(sweeps.due(&both, 2_000), sweep(22, false), "they agree");
        // One is restarted with the older policy, for a moment.
        sweeps.hear(0, word(1, 11, 5));
        assert_eq!(sweeps.due(&both, 3_000), None);
        sweeps.hear(0, word(2, 22, 5));
        assert_eq!(sweeps.due(&both, 4_000), None, "nobody is moved there and back");
    }

    #[test]
    fn of_those_that_differ_for_long_the_newest_policy_is_believed() {
        let mut sweeps = Sweeps::default();
        let both = [true, true];
        sweeps.hear(0, word(1, 11, 5));
        sweeps.hear(1, word(1, 11, 5));
        assert_eq!(sweeps.due(&both, 0), Some(Due::First));
        sweeps.hear(0, word(2, 22, 5));
        assert_eq!(sweeps.due(&both, 1_000), None);
        assert_eq!(sweeps.due(&both, 10_999), None);
        assert_eq!(sweeps.who_agree(), 0b10, "nobody was asked about by the new one yet");
        assert_eq!(sweeps.due(&both, 11_000), sweep(22, false));
        assert_eq!(sweeps.who_agree(), 0b01, "the other one would send there and back");
        assert_eq!(sweeps.due(&[false, true], 12_000), None, "the old one alone is heard: nobody goes back");
        assert_eq!(sweeps.due(&both, 60_000), None);
    }
}
