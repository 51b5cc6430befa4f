//! The gateways attached now, and messages gathered for them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use berth_proto::{
    client,
    code::CloseCode,
    link::{Link, RefusedReason},
    wire::{self, NotifyConnections, to_gateway::Message},
};

use prost::Message as _;

use crate::{
    metrics::{Lost, Metrics},
    routes::{Connection, GatewayKey, Route, Routes},
    store::Moved,
};

/// How logic reaches a gateway.
pub(crate) type Down = Arc<dyn Link<wire::ToGateway>>;

/// Closes kept for a gateway whose link is full. Above it they are lost, until the link breaks.
const UNSAID: usize = 4_096;

/// What a full link did not take and nothing else repairs: nobody would close a session that was replaced, and two clients
/// would have one device. It is said before anything else, at the latest with the answer to the next renewal.
type Unsaid = Arc<Mutex<Vec<wire::ToGateway>>>;

struct Attached {
    down: Down,
    unsaid: Unsaid,
    /// Tells one attachment of a boot from the next: a late detach must not end the newer one.
    number: u64,
    sessions: u64,
}

/// Every gateway attached now.
pub(crate) struct Gateways {
    attached: RwLock<(u64, HashMap<GatewayKey, Attached>)>,
    metrics: Metrics,
}

impl Gateways {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { attached: RwLock::default(), metrics }
    }

    /// Attaches a boot, in place of an earlier attachment of it, whose closes it inherits; gives the number to detach by.
    pub(crate) fn attach(&self, key: GatewayKey, down: Down) -> u64 {
        let mut attached = self.attached.write().unwrap_or_else(PoisonError::into_inner);
        attached.0 += 1;
        let number = attached.0;
        let unsaid = attached.1.get(&key).map(|earlier| Arc::clone(&earlier.unsaid)).unwrap_or_default();
        attached.1.insert(key, Attached { down, unsaid, number, sessions: 0 });
        self.show(&attached.1);
        number
    }

    /// Detaches, unless the boot attached again since.
    pub(crate) fn detach(&self, key: &GatewayKey, number: u64) {
        let mut attached = self.attached.write().unwrap_or_else(PoisonError::into_inner);
        if attached.1.get(key).is_some_and(|a| a.number == number) {
            attached.1.remove(key);
        }
        self.show(&attached.1);
    }

    /// A gateway said how many sessions it holds.
    pub(crate) fn holds(&self, key: &GatewayKey, sessions: u64) {
        let mut attached = self.attached.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(gateway) = attached.1.get_mut(key) {
            gateway.sessions = sessions;
        }
        self.show(&attached.1);
    }

    /// Lets go of every link.
    pub(crate) fn clear(&self) {
        let mut attached = self.attached.write().unwrap_or_else(PoisonError::into_inner);
        attached.1.clear();
        self.show(&attached.1);
    }

    fn show(&self, attached: &HashMap<GatewayKey, Attached>) {
        let sessions: u64 = attached.values().map(|a| a.sessions).sum();
        self.metrics.gateways.set(attached.len() as f64);
        self.metrics.gateway_sessions.set(sessions as f64);
    }

    /// Says what is still unsaid, then these; what was not taken.
    fn send(&self, key: &GatewayKey, mut batch: Vec<wire::ToGateway>) -> Vec<wire::ToGateway> {
        let (down, unsaid) = {
            let attached = self.attached.read().unwrap_or_else(PoisonError::into_inner);
            let Some(gateway) = attached.1.get(key) else { return batch };
            (gateway.down.clone(), Arc::clone(&gateway.unsaid))
        };
        let earlier = std::mem::take(&mut *unsaid.lock().unwrap_or_else(PoisonError::into_inner));
        batch.splice(0..0, earlier);
        let Err(mut refused) = down.send(batch) else { return Vec::new() };
        if refused.reason == RefusedReason::Full {
            let mut unsaid = unsaid.lock().unwrap_or_else(PoisonError::into_inner);
            let room = UNSAID.saturating_sub(unsaid.len());
            let closes = refused.rest.extract_if(.., |one| matches!(one.message, Some(Message::Close(_))));
            unsaid.extend(closes.take(room));
        }
        refused.rest
    }
}

/// Messages to gateways, gathered so that each gateway is woken once.
#[derive(Default)]
pub(crate) struct Downs {
    batches: HashMap<GatewayKey, Vec<wire::ToGateway>>,
    bytes: usize,
}

impl Downs {
    pub(crate) fn push(&mut self, gateway: &GatewayKey, message: Message) {
        let message = wire::ToGateway { message: Some(message) };
        match self.batches.get_mut(gateway) {
            Some(batch) => batch.push(message),
            None => drop(self.batches.insert(gateway.clone(), vec![message])),
        }
    }

    pub(crate) fn respond(
        &mut self,
        gateway: &GatewayKey,
        handle: u64,
        id: u32,
        result: client::response::Result,
    ) {
        let response = client::Response { id, result: Some(result) };
        self.bytes += response.encoded_len();
        self.push(gateway, Message::Response(wire::ClientResponse { handle, response: Some(response) }));
    }

    /// Bytes of the answers gathered; everything else is small.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Tells the gateway of `route` to close that session and no other.
    pub(crate) fn close(&mut self, route: &Route, code: CloseCode, reason: &str) {
        let close = wire::CloseConnection {
            handle: route.handle,
            session_epoch: route.epoch,
            code: code.number().into(),
            reason: reason.to_owned(),
        };
        self.push(&route.gateway, Message::Close(close));
    }

    /// Hands everything over. What a link does not take is lost and counted, but for closes: a notify is repaired by the
    /// next heartbeat, whoever waits for an answer runs into his deadline and asks again. How many were lost.
    pub(crate) fn flush(&mut self, gateways: &Gateways) -> usize {
        let mut count = 0;
        self.bytes = 0;
        for (key, batch) in self.batches.drain() {
            let rest = gateways.send(&key, batch);
            count += rest.len();
            for message in rest {
                match message.message {
                    Some(Message::Notify(batch)) => gateways.metrics.lost(Lost::Notify, batch.len() as u64),
                    _ => gateways.metrics.lost(Lost::Answer, 1),
                }
            }
        }
        count
    }
}

/// Notifies every connected device of users whose inboxes moved: routes are read now, after the rows were written. One
/// message for each gateway, however many users it is about.
pub(crate) async fn notify(routes: &dyn Routes, gateways: &Gateways, mut moved: Vec<Moved>) {
    if moved.is_empty() {
        return;
    }
    newest(&mut moved);
    let users: Vec<&str> = moved.iter().map(|one| one.user.as_str()).collect();
    let found = match routes.locate(&users).await {
        Ok(found) => found,
        Err(error) => {
            gateways.metrics.store_failures.increment(1);
            tracing::warn!(%error, "routes cannot be read: notifies are lost until they can, heartbeats repair them");
            return;
        }
    };
    let mut batches: Vec<NotifyConnections> =
        found.gateways.iter().map(|_| NotifyConnections::default()).collect();
    for Connection { user, gateway, handle } in &found.connections {
        if let (Some(batch), Some(moved)) = (batches.get_mut(*gateway), moved.get(*user)) {
            batch.push(*handle, moved.inbox_seq);
        }
    }
    gateways.metrics.notifies.increment(found.connections.len() as u64);
    let mut downs = Downs::default();
    for (gateway, batch) in found.gateways.iter().zip(batches) {
        if !batch.is_empty() {
            downs.push(gateway, Message::Notify(batch));
        }
    }
    downs.flush(gateways);
}

/// Leaves each user once, where his inbox is furthest, in the order that routes are kept in.
fn newest(moved: &mut Vec<Moved>) {
    moved.sort_unstable_by(|a, b| a.user.cmp(&b.user).then(b.inbox_seq.cmp(&a.inbox_seq)));
    moved.dedup_by(|later, first| later.user == first.user);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use berth_proto::link::Refused;

    use super::*;
    use crate::conformance::no_metrics;

    /// A link that may be full.
    #[derive(Default)]
    struct Narrow {
        full: AtomicBool,
        heard: Mutex<Vec<Message>>,
    }

    impl Link<wire::ToGateway> for Narrow {
        fn send(&self, batch: Vec<wire::ToGateway>) -> Result<(), Refused<wire::ToGateway>> {
            if self.full.load(Ordering::Relaxed) {
                return Err(Refused { rest: batch, reason: RefusedReason::Full });
            }
            self.heard.lock().expect("not poisoned").extend(batch.into_iter().filter_map(|one| one.message));
            Ok(())
        }
    }

    #[test]
    fn a_close_that_met_a_full_link_is_said_before_what_comes_next() {
        let gateways = Gateways::new(no_metrics());
        let key = GatewayKey { id: "g".to_owned(), boot: 1 };
        let close = |handle| {
            let (gateway, handle) = (key.clone(), handle);
            Route { device: "d".to_owned(), platform: String::new(), gateway, handle, epoch: 7 }
        };
        let lease = || Message::Lease(wire::LeaseRenewed::default());
        let full = Arc::new(Narrow { full: AtomicBool::new(true), ..Narrow::default() });
        gateways.attach(key.clone(), full);
        let mut downs = Downs::default();
        for handle in 0..UNSAID as u64 {
            downs.close(&close(handle), CloseCode::SessionReplaced, "replaced");
        }
        downs.push(&key, lease());
        assert_eq!(downs.flush(&gateways), 1, "an answer is lost: it is asked for again");
        downs.close(&close(u64::MAX), CloseCode::SessionReplaced, "one too many");
        assert_eq!(downs.flush(&gateways), 1);

        // The next link of the same boot: its connections are the same.
        let next = Arc::new(Narrow::default());
        gateways.attach(key.clone(), next.clone());
        downs.push(&key, lease());
        assert_eq!(downs.flush(&gateways), 0);
        let heard = std::mem::take(&mut *next.heard.lock().expect("not poisoned"));
        assert_eq!(heard.len(), UNSAID + 1);
        assert!(heard.iter().zip(0..).all(|(said, handle)| match said {
            Message::Close(close) => close.handle == handle && handle < UNSAID as u64,
            other => *other == lease() && handle == UNSAID as u64,
        }));
        downs.push(&key, lease());
        downs.flush(&gateways);
        assert_eq!(*next.heard.lock().expect("not poisoned"), [lease()], "once");
    }

    #[test]
    fn of_a_user_who_moved_often_the_furthest_is_told() {
        let one = |user: &str, inbox_seq| Moved { user: user.to_owned(), inbox_seq };
        let mut moved = vec![one("b", 2), one("a", 7), one("b", 9), one("a", 1), one("c", 1), one("b", 3)];
        newest(&mut moved);
        assert_eq!(moved, [one("a", 7), one("b", 9), one("c", 1)]);
    }
}
