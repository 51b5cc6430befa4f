//! How the roles meet: a gateway attaches to every scheduler and every logic, and each pair talks over two one-way links.
//!
//! A role offers its service as [`LogicService`] or [`SchedulerService`]. In one process the role itself is the service
//! (a direct call); over the network a client of the same trait stands in for it. The caller cannot tell.

use std::{fmt, sync::Arc};

use crate::wire;

/// One direction of a conversation between two roles. Sending never waits.
pub trait Link<M>: Send + Sync {
    /// Hands over messages. Messages about one connection (or one user) stay in the order given.
    ///
    /// # Errors
    /// What was not taken comes back, because the receiver's queue for it is full or the link is down.
    fn send(&self, batch: Vec<M>) -> Result<(), Refused<M>>;

    /// Whether the other side is there now.
    fn connected(&self) -> bool {
        true
    }

    /// Said by whoever sends over this link, at the moment it happens: the network to it is there (`up`), again or for the
    /// first time, or it broke. What was said before a break and is not answered yet may be lost, in both directions.
    /// In one process nothing breaks, and nobody says so.
    fn network(&self, up: bool) {
        let _ = up;
    }
}

/// Messages that a link did not take.
pub struct Refused<M> {
    /// Not taken, in the order given.
    pub rest: Vec<M>,
    /// Why: [`RefusedReason::Full`] if that is so of any of them.
    pub reason: RefusedReason,
}

/// Why a link did not take a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusedReason {
    /// The receiver is behind; later may do.
    Full,
    /// Nobody is at the other end.
    Closed,
}

impl<M> fmt::Debug for Refused<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages refused: {:?}", self.rest.len(), self.reason)
    }
}

/// Logic, as a gateway sees it.
pub trait LogicService: Send + Sync {
    /// Attaches a gateway's boot: `down` is how logic reaches it. Dropping the returned link detaches it; its routes
    /// then live until their lease ends.
    fn attach(
        &self,
        gateway: wire::AttachGateway,
        down: Arc<dyn Link<wire::ToGateway>>,
    ) -> Arc<dyn Link<wire::ToLogic>>;
}

/// A scheduler, as a gateway sees it.
pub trait SchedulerService: Send + Sync {
    /// Attaches a gateway: `down` is how the scheduler answers it. The scheduler says its ticket keys at once.
    fn attach(
        &self,
        gateway: wire::AttachGateway,
        down: Arc<dyn Link<wire::FromScheduler>>,
    ) -> Arc<dyn Link<wire::ToScheduler>>;
}
