//! What the listening side keeps about all its links: one link a gateway at a time, and what it complained about lately.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// What a link is ended with when its gateway attached again; nothing else is.
pub(crate) const OVERTAKEN_CODE: Code = Code::Aborted;

/// The end of one link, as asked for by this side.
#[derive(Clone)]
pub(crate) struct End {
    asked: CancellationToken,
    overtaken: Arc<AtomicBool>,
}

impl End {
    /// Asked for with `parent` at the latest.
    pub(crate) fn under(parent: &CancellationToken) -> Self {
        Self { asked: parent.child_token(), overtaken: Arc::default() }
    }

    /// Cancelled when it is asked for.
    pub(crate) fn asked(&self) -> &CancellationToken {
        &self.asked
    }

    /// What the gateway is told, unless the link ends in good order.
    pub(crate) fn verdict(&self) -> Option<Status> {
        let why = "this gateway attached again over another link; is one process listed under two addresses?";
        self.overtaken.load(Ordering::Acquire).then(|| Status::new(OVERTAKEN_CODE, why))
    }

    fn overtake(&self) {
        self.overtaken.store(true, Ordering::Release);
        self.asked.cancel();
    }
}

/// A gateway's process: its id and its boot.
type Who = (String, u64);

/// Whose turn it is. A gateway that attaches again has given its earlier link up, though we may not know yet: what of that
/// still waits here must not be taken up after what the new one says.
#[derive(Default)]
pub(crate) struct Turns {
    links: Mutex<(u64, HashMap<Who, Current>)>,
}

struct Current {
    number: u64,
    end: End,
    /// It has ended.
    done: CancellationToken,
}

/// A link's turn, until it is dropped.
pub(crate) struct Turn {
    turns: Arc<Turns>,
    who: Who,
    number: u64,
    done: CancellationToken,
}

impl Turns {
    /// Ends the gateway's earlier link, if there is one, and waits until that is over. `end` is this one's.
    pub(crate) async fn take(self: &Arc<Self>, who: Who, end: End) -> Turn {
        let done = CancellationToken::new();
        let (turn, earlier) = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            links.0 += 1;
            let number = links.0;
            let current = Current { number, end, done: done.clone() };
            let earlier = links.1.insert(who.clone(), current);
            (Turn { turns: Arc::clone(self), who, number, done }, earlier)
        };
        if let Some(earlier) = earlier {
            earlier.end.overtake();
            earlier.done.cancelled().await;
        }
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut links = self.turns.links.lock().unwrap_or_else(PoisonError::into_inner);
        if links.1.get(&self.who).is_some_and(|current| current.number == self.number) {
            links.1.remove(&self.who);
        }
        self.done.cancel();
    }
}

/// Between two complaints about the same thing. Whoever is turned away dials twice a second.
const QUIET: Duration = Duration::from_secs(60);

/// What was complained about last.
#[derive(Default)]
pub(crate) struct Complaints {
    last: Mutex<Option<(Instant, String)>>,
}

impl Complaints {
    /// Tells the operator that somebody was turned away, unless that is no news.
    pub(crate) fn complain(&self, role: &str, from: Option<SocketAddr>, why: &str) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let known =
            last.as_ref().is_some_and(|(at, what)| what == why && now.saturating_duration_since(*at) < QUIET);
        if known {
            return;
        }
        *last = Some((now, why.to_owned()));
        let from = from.map(|address| address.to_string()).unwrap_or_default();
        tracing::warn!(role, from, why, "a gateway was turned away");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(boot: u64) -> Who {
        ("gw-1".to_owned(), boot)
    }

    #[tokio::test]
    async fn a_second_link_waits_for_the_end_of_the_first() {
        let turns = Arc::new(Turns::default());
        let stop = CancellationToken::new();
        let end = End::under(&stop);
        let first = turns.take(who(1), end.clone()).await;
        let other = turns.take(who(2), End::under(&stop)).await;
        assert!(!end.asked().is_cancelled(), "another boot is another gateway");

        let second = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { turns.take(who(1), End::under(&CancellationToken::new())).await }
        });
        end.asked().cancelled().await;
        assert_eq!(end.verdict().map(|status| status.code()), Some(OVERTAKEN_CODE));
        assert!(!second.is_finished());
        drop(first);
        let second = second.await.expect("no panic");
        assert_eq!(turns.links.lock().expect("no panic").1.len(), 2);
        drop((second, other));
        assert!(turns.links.lock().expect("no panic").1.is_empty(), "nothing is kept");
    }
}
