//! The gateways attached now, and messages gathered for them.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard},
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

/// Messages kept for a gateway whose link is full. Above it they are lost, until the link breaks.
const UNSAID: usize = 4_096;

/// Detached gateways for which messages are kept, some 32 MB at the very worst; the oldest go first.
const LEFT: usize = 64;

/// What a full link did not take and nothing else repairs: see [`must_be_said`]. It is said before anything else, at the
/// latest with the answer to the next renewal.
type Unsaid = Arc<Mutex<Vec<wire::ToGateway>>>;

struct Attached {
    down: Down,
    unsaid: Unsaid,
    /// Tells one attachment of a boot from the next: a late detach must not end the newer one.
    number: u64,
    sessions: u64,
}

#[derive(Default)]
struct Table {
    attached: HashMap<GatewayKey, Attached>,
    /// What is unsaid to boots that are not attached now, until they or another boot of their id attach.
    left: VecDeque<(GatewayKey, Unsaid)>,
    number: u64,
}

/// What a gateway was not told.
#[derive(Default)]
struct Untold {
    /// Lost.
    lost: Vec<wire::ToGateway>,
    /// Kept to be said later: so many.
    kept: usize,
}

/// Every gateway attached now.
pub(crate) struct Gateways {
    table: RwLock<Table>,
    metrics: Metrics,
}

impl Gateways {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { table: RwLock::default(), metrics }
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches a boot, in place of an earlier attachment of it, whose unsaid messages it inherits; gives the number to
    /// detach by.
    pub(crate) fn attach(&self, key: GatewayKey, down: Down) -> u64 {
        let mut table = self.write();
        table.number += 1;
        let number = table.number;
        let left = table.left.iter().find(|(boot, _)| *boot == key).map(|(_, unsaid)| Arc::clone(unsaid));
        let earlier = table.attached.get(&key).map(|earlier| Arc::clone(&earlier.unsaid));
        let unsaid = earlier.or(left).unwrap_or_default();
        table.left.retain(|(boot, _)| boot.id != key.id);
        table.attached.insert(key, Attached { down, unsaid, number, sessions: 0 });
        self.show(&table);
        number
    }

    /// Detaches, unless the boot attached again since. What is unsaid waits for its next attachment.
    pub(crate) fn detach(&self, key: &GatewayKey, number: u64) {
        let mut table = self.write();
        if table.attached.get(key).is_some_and(|a| a.number == number)
            && let Some(Attached { unsaid, .. }) = table.attached.remove(key)
        {
            table.left.push_back((key.clone(), unsaid));
            // Whoever still sends may leave something there.
            table.left.retain(|(_, unsaid)| Arc::strong_count(unsaid) > 1 || !lock(unsaid).is_empty());
            if table.left.len() > LEFT {
                table.left.pop_front();
            }
        }
        self.show(&table);
    }

    /// Those attached now.
    pub(crate) fn attached(&self) -> Vec<GatewayKey> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).attached.keys().cloned().collect()
    }

    /// A gateway said how many sessions it holds.
    pub(crate) fn holds(&self, key: &GatewayKey, sessions: u64) {
        let mut table = self.write();
        if let Some(gateway) = table.attached.get_mut(key) {
            gateway.sessions = sessions;
        }
        self.show(&table);
    }

    /// Lets go of every link.
    pub(crate) fn clear(&self) {
        let mut table = self.write();
        table.attached.clear();
        self.show(&table);
    }

    fn show(&self, table: &Table) {
        let sessions: u64 = table.attached.values().map(|a| a.sessions).sum();
        self.metrics.gateways.set(table.attached.len() as f64);
        self.metrics.gateway_sessions.set(sessions as f64);
    }

    /// Says what is still unsaid, then these; what of these was not taken.
    fn send(&self, key: &GatewayKey, batch: Vec<wire::ToGateway>) -> Untold {
        let (down, unsaid) = {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            let Some(gateway) = table.attached.get(key) else { return Untold { lost: batch, kept: 0 } };
            (gateway.down.clone(), Arc::clone(&gateway.unsaid))
        };
        say_earlier(&*down, &mut lock(&unsaid));
        let Err(mut refused) = down.send(batch) else { return Untold::default() };
        let mut kept = 0;
        if refused.reason == RefusedReason::Full {
            let mut unsaid = lock(&unsaid);
            let before = unsaid.len();
            let room = UNSAID.saturating_sub(before);
            unsaid.extend(refused.rest.extract_if(.., |one| must_be_said(one)).take(room));
            kept = unsaid.len() - before;
        }
        Untold { lost: refused.rest, kept }
    }
}

/// Under the lock, which is short since no link waits: of two who would say it at once, one does, and no more is kept than may.
fn say_earlier(down: &dyn Link<wire::ToGateway>, unsaid: &mut Vec<wire::ToGateway>) {
    if !unsaid.is_empty()
        && let Err(refused) = down.send(std::mem::take(unsaid))
    {
        *unsaid = refused.rest;
    }
}

fn lock(unsaid: &Unsaid) -> MutexGuard<'_, Vec<wire::ToGateway>> {
    unsaid.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What nobody asks for again. Without a close, two clients would have one device; without a revocation, who was revoked would stay
/// connected. And a session that its gateway announced
/// and that was not taken up would stay without a route, or beside a newer one; to a new session whose client has gone
/// meanwhile the same words mean nothing.
fn must_be_said(message: &wire::ToGateway) -> bool {
    match &message.message {
        Some(Message::Close(_) | Message::Revoked(_)) => true,
        Some(Message::Opened(opened)) => opened.error.is_some(),
        _ => false,
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

    /// Hands everything over. What a link does not take is lost and counted, but for what is kept to be said later: a notify
    /// is repaired by the next heartbeat, whoever waits for an answer runs into his deadline and asks again. How many
    /// messages no gateway has now, kept ones included.
    pub(crate) fn flush(&mut self, gateways: &Gateways) -> usize {
        let mut count = 0;
        self.bytes = 0;
        for (key, batch) in self.batches.drain() {
            let Untold { lost, kept } = gateways.send(&key, batch);
            count += lost.len() + kept;
            for message in lost {
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

    fn key(boot: u64) -> GatewayKey {
        GatewayKey { id: "g".to_owned(), boot }
    }

    fn close(downs: &mut Downs, handle: u64) {
        let (device, platform) = ("d".to_owned(), String::new());
        let route = Route { device, platform, gateway: key(1), handle, epoch: 7, auth_issued_at_ms: 0 };
        downs.close(&route, CloseCode::SessionReplaced, "replaced");
    }

    fn lease() -> Message {
        Message::Lease(wire::LeaseRenewed::default())
    }

    fn full() -> Arc<Narrow> {
        Arc::new(Narrow { full: AtomicBool::new(true), ..Narrow::default() })
    }

    /// What a new link of that boot is told, up to the answer to its renewal.
    fn told_next(gateways: &Gateways, boot: u64) -> Vec<Message> {
        let next = Arc::new(Narrow::default());
        gateways.attach(key(boot), next.clone());
        let mut downs = Downs::default();
        downs.push(&key(boot), lease());
        assert_eq!(downs.flush(gateways), 0);
        let heard = std::mem::take(&mut *next.heard.lock().expect("not poisoned"));
        downs.push(&key(boot), lease());
        downs.flush(gateways);
        assert_eq!(*next.heard.lock().expect("not poisoned"), [lease()], "once");
        heard
    }

    #[test]
    fn a_close_that_met_a_full_link_is_said_before_what_comes_next() {
        let gateways = Gateways::new(no_metrics());
        gateways.attach(key(1), full());
        let mut downs = Downs::default();
        (0..UNSAID as u64).for_each(|handle| close(&mut downs, handle));
        downs.push(&key(1), lease());
        assert_eq!(downs.flush(&gateways), UNSAID + 1, "an answer is lost, and nobody is told anything yet");
        close(&mut downs, u64::MAX);
        assert_eq!(downs.flush(&gateways), 1, "one too many; the earlier ones do not count again");

        // The next link of the same boot: its connections are the same.
        let heard = told_next(&gateways, 1);
        assert_eq!(heard.len(), UNSAID + 1);
        assert!(heard.iter().zip(0..).all(|(said, handle)| match said {
            Message::Close(close) => close.handle == handle && handle < UNSAID as u64,
            other => *other == lease() && handle == UNSAID as u64,
        }));
    }

    #[test]
    fn what_is_unsaid_outlives_the_link() {
        let gateways = Gateways::new(no_metrics());
        let opened =
            |handle, error| Message::Opened(wire::SessionOpened { handle, error, ..Default::default() });
        let stale = opened(2, Some(client::Error::default()));
        let leave_unsaid = || {
            let link = gateways.attach(key(1), full());
            let mut downs = Downs::default();
            close(&mut downs, 1);
            downs.push(&key(1), stale.clone());
            downs.push(&key(1), opened(3, None));
            assert_eq!(downs.flush(&gateways), 3);
            gateways.detach(&key(1), link);
        };
        leave_unsaid();
        let heard = told_next(&gateways, 1);
        let [Message::Close(said), said_stale, last] = heard.as_slice() else { panic!("{heard:?}") };
        assert_eq!((said.handle, said_stale, last), (1, &stale, &lease()));

        // The connections of a boot end with it.
        leave_unsaid();
        assert_eq!(told_next(&gateways, 2), [lease()]);
        assert_eq!(told_next(&gateways, 1), [lease()]);
    }

    #[test]
    fn of_a_user_who_moved_often_the_furthest_is_told() {
        let one = |user: &str, inbox_seq| Moved { user: user.to_owned(), inbox_seq };
        let mut moved = vec![one("b", 2), one("a", 7), one("b", 9), one("a", 1), one("c", 1), one("b", 3)];
        newest(&mut moved);
        assert_eq!(moved, [one("a", 7), one("b", 9), one("c", 1)]);
    }
}
