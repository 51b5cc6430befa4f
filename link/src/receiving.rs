//! What comes up a link, handed to the role: what must not be lost and finds no room is kept and offered again, beside what
//! comes meanwhile.

use std::{sync::Arc, time::Duration};

use berth_proto::link::{Link, Refused, RefusedReason};

use crate::dialect::Dialect;

/// Between two offers of what is kept.
pub(crate) const RETRY: Duration = Duration::from_millis(10);

/// Messages kept for one link, some 4 MB. With so many nothing more is read, so that the gateway's own queue fills and its
/// senders are told; more than that only a role that stands still leaves behind.
const KEPT: usize = 16_384;

/// One link's way into the role.
pub(crate) struct Receiving<D: Dialect> {
    up: Arc<dyn Link<D::Up>>,
    down: Arc<dyn Link<D::Down>>,
    /// In the order in which they came.
    kept: Vec<D::Up>,
}

impl<D: Dialect> Receiving<D> {
    pub(crate) fn new(up: Arc<dyn Link<D::Up>>, down: Arc<dyn Link<D::Down>>) -> Self {
        Self { up, down, kept: Vec::new() }
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
        let kept = self.offer(batch);
        self.kept.extend(kept);
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
    use std::sync::{Mutex, PoisonError};

    use berth_proto::wire::{CloseSession, ToGateway, ToLogic, to_logic};

    use super::*;
    use crate::dialect::LogicDialect;

    /// A role that refuses everything for a reason, if it has one.
    #[derive(Default)]
    struct Role {
        refuses: Mutex<Option<RefusedReason>>,
    }

    impl Link<ToLogic> for Role {
        fn send(&self, batch: Vec<ToLogic>) -> Result<(), Refused<ToLogic>> {
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
