//! What comes up a link, handed to the role: what must not be lost and finds no room is kept and offered again, beside what
//! comes meanwhile.

use std::{sync::Arc, time::Duration};

use berth_proto::link::{Link, Refused, RefusedReason};

use crate::dialect::Dialect;

/// Between two offers of what is kept.
pub(crate) const RETRY: Duration = Duration::from_millis(10);

/// Messages kept for one link, some 4 MB. With so many nothing more is read, so that the gateway's own queue fills and its
/// senders are told; more than that only a role that stands still leaves behind. One batch, of 4 MiB at the most, may go above.
const KEPT: usize = 16_384;

/// One link's way into the role.
pub(crate) struct Receiving<D: Dialect> {
    up: Arc<dyn Link<D::Up>>,
    down: Arc<dyn Link<D::Down>>,
    /// In the order in which they came.
    kept: Vec<D::Up>,
    /// The time of the last message asking for proof before which the role had taken everything; 0: of none.
    proven_ms: i64,
}

impl<D: Dialect> Receiving<D> {
    pub(crate) fn new(up: Arc<dyn Link<D::Up>>, down: Arc<dyn Link<D::Down>>) -> Self {
        Self { up, down, kept: Vec::new(), proven_ms: 0 }
    }

    /// Whether something is kept.
    pub(crate) fn keeps(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Whether nothing more may be read.
    pub(crate) fn is_full(&self) -> bool {
        self.kept.len() >= KEPT
    }

    /// Hands over what came.
    pub(crate) fn take(&mut self, mut batch: Vec<D::Up>) {
        if self.keeps() {
            self.kept.extend(batch.extract_if(.., |message| D::keeps_its_turn(message)));
        }
        // Apart from the rest and behind it: what they ask for depends on what the role takes.
        let asking: Vec<_> = batch.extract_if(.., |message| D::asks_for_proof(message).is_some()).collect();
        let kept = self.offer(batch);
        self.kept.extend(kept);
        let kept = self.ask(asking);
        self.kept.extend(kept);
    }

    /// Offers what asks for proof. A role that has yet to take something proves nothing about it.
    fn ask(&mut self, mut asking: Vec<D::Up>) -> Vec<D::Up> {
        for message in &mut asking {
            if self.keeps() {
                D::prove_only(message, self.proven_ms);
            } else if let Some(said_ms) = D::asks_for_proof(message) {
                self.proven_ms = said_ms;
            }
        }
        self.offer(asking)
    }

    /// Offers what is kept again.
    pub(crate) fn retry(&mut self) {
        let kept = std::mem::take(&mut self.kept);
        self.kept = self.offer(kept);
    }

    /// The link has ended: of what is kept, its gateway says the rest again.
    pub(crate) async fn finish(mut self) {
        self.kept.retain(D::outlives_the_link);
        while self.keeps() {
            tokio::time::sleep(RETRY).await;
            self.retry();
        }
    }

    /// What the role has no room for is answered, or given back where it must not be lost.
    fn offer(&self, batch: Vec<D::Up>) -> Vec<D::Up> {
        if batch.is_empty() {
            return batch;
        }
        let Err(Refused { rest, reason }) = self.up.send(batch) else { return Vec::new() };
        let (mut answers, mut kept) = (Vec::new(), Vec::new());
        for message in rest {
            match D::refused(message, reason) {
                Ok(answer) => answers.extend(answer),
                // With nobody there, nobody will take it later.
                Err(message) if reason == RefusedReason::Full => kept.push(message),
                Err(_) => {}
            }
        }
        if !answers.is_empty() {
            // No room to say so either: the senders' own deadlines tell them.
            drop(self.down.send(answers));
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    };

    use berth_proto::wire::{CloseSession, RenewLease, ToGateway, ToLogic, to_logic};

    use super::*;
    use crate::dialect::LogicDialect;

    /// A role that refuses everything for a reason, if it has one.
    #[derive(Default)]
    struct Role {
        refuses: Mutex<Option<RefusedReason>>,
        /// It has no room for closes.
        refuses_closes: AtomicBool,
        /// The times of the renewals it took.
        asked: Mutex<Vec<i64>>,
    }

    impl Link<ToLogic> for Role {
        fn send(&self, mut batch: Vec<ToLogic>) -> Result<(), Refused<ToLogic>> {
            let asked = batch.iter().filter_map(LogicDialect::asks_for_proof);
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).extend(asked);
            if self.refuses_closes.load(Ordering::Relaxed) {
                batch.retain(LogicDialect::outlives_the_link);
                return Err(Refused { rest: batch, reason: RefusedReason::Full });
            }
            match *self.refuses.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(reason) => Err(Refused { rest: batch, reason }),
                None => Ok(()),
            }
        }
    }

    impl Link<ToGateway> for Role {
        fn send(&self, _: Vec<ToGateway>) -> Result<(), Refused<ToGateway>> {
            Ok(())
        }
    }

    #[test]
    fn what_is_kept_is_not_proven() {
        let role = Arc::new(Role::default());
        let close = || ToLogic { message: Some(to_logic::Message::Close(CloseSession::default())) };
        let renew = |now_ms| {
            let renew = RenewLease { sessions: 1, now_ms };
            ToLogic { message: Some(to_logic::Message::Renew(renew)) }
        };
        let refuse = |closes| role.refuses_closes.store(closes, Ordering::Relaxed);
        let asked = || std::mem::take(&mut *role.asked.lock().expect("no panic"));
        let mut receiving = Receiving::<LogicDialect>::new(role.clone(), role.clone());
        receiving.take(vec![close(), renew(10)]);
        assert_eq!(asked(), [10]);
        refuse(true);
        receiving.take(vec![close(), renew(20)]);
        receiving.take(vec![renew(30)]);
        receiving.retry();
        assert_eq!(asked(), [10, 10], "the close is not done");
        refuse(false);
        receiving.retry();
        receiving.take(vec![renew(40)]);
        assert_eq!(asked(), [40]);
    }

    #[test]
    fn nothing_is_kept_for_a_role_that_has_gone() {
        let role = Arc::new(Role::default());
        let refuses = |reason| *role.refuses.lock().expect("no panic") = Some(reason);
        let close = ToLogic { message: Some(to_logic::Message::Close(CloseSession::default())) };
        let mut receiving = Receiving::<LogicDialect>::new(role.clone(), role.clone());
        receiving.take(vec![close.clone()]);
        assert!(!receiving.keeps(), "taken");
        refuses(RefusedReason::Full);
        receiving.take(vec![close.clone(); KEPT - 1]);
        receiving.retry();
        assert!(receiving.keeps() && !receiving.is_full());
        receiving.take(vec![close]);
        assert!(receiving.is_full());
        refuses(RefusedReason::Closed);
        receiving.retry();
        assert!(!receiving.keeps());
    }
}
