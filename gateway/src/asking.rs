//! Which scheduler the workers ask where an arriving client belongs: one that lets a question lie is asked last from then on, so
//! that one frozen scheduler costs one wait and not every client's.

use std::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use berth_proto::wire::MovePurpose;

/// Whom to ask: schedulers by their bits, and the index of the first.
pub(crate) type Whom = (u64, usize);

/// Shared by the workers.
#[derive(Debug)]
pub(crate) struct Asking {
    /// The first to ask: who took the last question.
    from: AtomicUsize,
    /// Those that place users as connections were last asked about: the others would send them there and back.
    among: AtomicU64,
}

impl Asking {
    /// Each boot begins with another scheduler, or after a mass restart all gateways would ask one.
    pub(crate) fn new(boot: u64) -> Self {
        // Whoever asks takes the remainder by the schedulers that there are.
        let from = usize::try_from(boot).unwrap_or_default();
        Self { from: AtomicUsize::new(from), among: AtomicU64::new(u64::MAX) }
    }

    pub(crate) fn whom(&self, purpose: MovePurpose) -> Whom {
        let among = if purpose == MovePurpose::Home { self.among.load(Relaxed) } else { u64::MAX };
        (among, self.from.load(Acquire))
    }

    /// About users who may belong elsewhere only the schedulers of these bits are asked.
    pub(crate) fn among(&self, schedulers: u64) {
        self.among.store(schedulers, Relaxed);
    }

    /// Of those told by [`Asking::whom`] this one took the question.
    pub(crate) fn took(&self, (_, from): Whom, scheduler: usize) {
        self.step(from, scheduler);
    }

    /// That one did not answer in time. However many of its questions lie, it is stepped over once.
    pub(crate) fn silent(&self, scheduler: usize) {
        self.step(scheduler, scheduler + 1);
    }

    /// Unless another worker was faster.
    fn step(&self, from: usize, to: usize) {
        let _ = self.from.compare_exchange(from, to, AcqRel, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lets_a_question_lie_is_stepped_over_once() {
        let asking = Asking::new(0);
        let from = || asking.whom(MovePurpose::Stray).1;
        asking.took(asking.whom(MovePurpose::Stray), 0);
        // Three had asked it by then.
        [0, 0, 0].into_iter().for_each(|silent| asking.silent(silent));
        assert_eq!(from(), 1);
        // The next one is not linked.
        asking.took(asking.whom(MovePurpose::Stray), 2);
        asking.silent(0);
        assert_eq!(from(), 2);
        asking.silent(2);
        asking.took(asking.whom(MovePurpose::Stray), 0);
        assert_eq!(from(), 0, "around");
    }

    #[test]
    fn gateways_begin_with_different_schedulers() {
        let first = |boot| Asking::new(boot).whom(MovePurpose::Stray).1 % 3;
        assert_eq!([6, 7, 8, u64::MAX].map(first), [0, 1, 2, 0]);
        let asking = Asking::new(7);
        asking.took(asking.whom(MovePurpose::Stray), 1);
        asking.silent(1);
        assert_eq!(asking.whom(MovePurpose::Stray).1, 2, "its first question counts like any other");
    }

    #[test]
    fn where_users_belong_is_asked_of_those_who_agree_on_it() {
        let asking = Asking::new(0);
        assert_eq!(asking.whom(MovePurpose::Home).0, u64::MAX);
        asking.among(0b10);
        let among =
            [MovePurpose::Home, MovePurpose::Stray, MovePurpose::Drain].map(|purpose| asking.whom(purpose).0);
        assert_eq!(among, [0b10, u64::MAX, u64::MAX]);
    }
}
