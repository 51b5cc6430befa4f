//! Which scheduler to ask, and the place in the schedulers' queue. Pure.

use std::time::Duration;

use berth_proto::schedule::Problem;

use crate::http;

/// Why a scheduler refuses a client for whom it has a place in its queue.
const OVERLOADED: &str = "OVERLOADED";

/// The schedulers of one client, asked in turn.
#[derive(Debug)]
pub(crate) struct Schedulers {
    count: usize,
    at: usize,
    /// Asks in a row that no scheduler answered.
    unanswered: usize,
    /// Keeps this client's place in the queue; empty: it has none.
    queue_token: String,
}

impl Schedulers {
    /// So many of them, at least one, and which to ask first.
    pub fn new(count: usize, first: usize) -> Self {
        Self { count, at: first % count, unanswered: 0, queue_token: String::new() }
    }

    /// Whose turn it is.
    pub fn at(&self) -> usize {
        self.at
    }

    /// What to show of the place in the queue.
    pub fn queue_token(&self) -> &str {
        &self.queue_token
    }

    /// How long to wait for an answer. Where another scheduler can be asked, one that is slow is not worth waiting for, until
    /// all of them were: then it is the network.
    pub fn patience(&self) -> Duration {
        if self.none_answers() || self.count == 1 { http::DEADLINE } else { http::DEADLINE_OF_SEVERAL }
    }

    /// Whether each was asked and none answered.
    pub fn none_answers(&self) -> bool {
        self.unanswered >= self.count
    }

    /// There is no user token. Nobody can be asked, which is as good as no answer.
    pub fn cannot_ask(&mut self) {
        self.unanswered = self.unanswered.saturating_add(1);
    }

    /// No scheduler answered. Whether to ask the next one at once: a place in the queue is kept for seconds, and a wait or two
    /// would lose it.
    pub fn unanswered(&mut self) -> bool {
        self.unanswered = self.unanswered.saturating_add(1);
        self.pass();
        !self.queue_token.is_empty() && !self.none_answers()
    }

    /// A scheduler answered, or a session lived, which is long enough for them to have come back: the count begins anew.
    pub fn answered(&mut self) {
        self.unanswered = 0;
    }

    /// A scheduler has nothing for this client now. One that gave it a place is asked again, since it knows of it; whatever
    /// else one says, a place that another gave stays good.
    pub fn refused(&mut self, problem: &Problem) {
        self.answered();
        if problem.reason == OVERLOADED {
            self.queue_token.clone_from(&problem.queue_token);
            if !self.queue_token.is_empty() {
                return;
            }
        }
        self.pass();
    }

    /// A scheduler gave a schedule.
    pub fn scheduled(&mut self) {
        self.answered();
        self.queue_token.clear();
    }

    /// The next one's turn.
    pub fn pass(&mut self) {
        self.at = (self.at + 1) % self.count;
    }
}

/// How long a scheduler has the client stand in line, in milliseconds, if that is what it says.
pub(crate) fn in_line(problem: &Problem) -> Option<u32> {
    problem.retry_after_ms.filter(|wait_ms| *wait_ms > 0 && problem.reason == OVERLOADED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overloaded(queue_token: &str) -> Problem {
        Problem {
            reason: OVERLOADED.into(),
            retry_after_ms: Some(7),
            queue_token: queue_token.into(),
            ..Problem::default()
        }
    }

    #[test]
    fn a_network_too_slow_for_every_scheduler_is_waited_for() {
        assert_eq!(Schedulers::new(1, 0).patience(), http::DEADLINE);
        let mut three = Schedulers::new(3, 0);
        for (unanswered, within) in [
            (0, http::DEADLINE_OF_SEVERAL),
            (2, http::DEADLINE_OF_SEVERAL),
            (3, http::DEADLINE),
            (9, http::DEADLINE),
        ] {
            three.unanswered = unanswered;
            assert_eq!(three.patience(), within, "{unanswered} in a row");
        }
    }

    #[test]
    fn who_gave_a_place_is_asked_again_and_the_next_at_once_if_it_is_gone() {
        let mut schedulers = Schedulers::new(2, 0);
        assert!(!schedulers.unanswered(), "without a place there is time");
        schedulers.refused(&overloaded("place"));
        assert_eq!((schedulers.at(), schedulers.queue_token()), (1, "place"));
        assert!(schedulers.unanswered());
        assert_eq!(schedulers.at(), 0);
        assert!(!schedulers.unanswered(), "each was asked: the usual wait");
        assert!(schedulers.none_answers());
        assert_eq!(schedulers.queue_token(), "place");
        schedulers.refused(&Problem { reason: "NO_GATEWAY".into(), ..Problem::default() });
        assert_eq!(
            (schedulers.at(), schedulers.queue_token()),
            (0, "place"),
            "on to the next with the place"
        );
        schedulers.refused(&overloaded(""));
        assert_eq!(
            (schedulers.at(), schedulers.queue_token()),
            (1, ""),
            "no place: nobody knows this client"
        );
        schedulers.refused(&overloaded("another"));
        schedulers.scheduled();
        assert_eq!(schedulers.queue_token(), "", "it was let in on it");
    }

    #[test]
    fn only_a_wait_that_was_told_is_a_line() {
        assert_eq!(in_line(&overloaded("")), Some(7));
        assert_eq!(in_line(&Problem { retry_after_ms: Some(0), ..overloaded("place") }), None);
        assert_eq!(in_line(&Problem { reason: "NO_GATEWAY".into(), ..overloaded("") }), None);
    }
}
