//! The gateways attached now, and messages gathered for them.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use berth_proto::{
    client,
    code::CloseCode,
    link::Link,
    wire::{self, to_gateway::Message},
};

use prost::Message as _;

use crate::{
    metrics::{Lost, Metrics},
    routes::{GatewayKey, Route, Routes},
    store::Moved,
};

/// How logic reaches a gateway.
pub(crate) type Down = Arc<dyn Link<wire::ToGateway>>;

struct Attached {
    down: Down,
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

    /// Attaches a boot, in place of an earlier attachment of it; gives the number to detach by.
    pub(crate) fn attach(&self, key: GatewayKey, down: Down) -> u64 {
        let mut attached = self.attached.write().unwrap_or_else(PoisonError::into_inner);
        attached.0 += 1;
        let number = attached.0;
        attached.1.insert(key, Attached { down, number, sessions: 0 });
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

    fn down(&self, key: &GatewayKey) -> Option<Down> {
        let attached = self.attached.read().unwrap_or_else(PoisonError::into_inner);
        attached.1.get(key).map(|gateway| gateway.down.clone())
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

    /// Hands everything over. What a link does not take is lost and counted: a notify is repaired by the next
    /// heartbeat, whoever waits for an answer runs into his deadline and asks again. How many were lost.
    pub(crate) fn flush(&mut self, gateways: &Gateways) -> usize {
        let mut count = 0;
        self.bytes = 0;
        for (key, batch) in self.batches.drain() {
            let rest = match gateways.down(&key) {
                Some(down) => down.send(batch).err().map(|refused| refused.rest).unwrap_or_default(),
                None => batch,
            };
            count += rest.len();
            for message in rest {
                let lost = match message.message {
                    Some(Message::Notify(_)) => Lost::Notify,
                    _ => Lost::Answer,
                };
                gateways.metrics.lost(lost, 1);
            }
        }
        count
    }
}

/// Notifies every connected device of users whose inboxes moved: routes are read now, after the rows were written.
pub(crate) async fn notify(routes: &dyn Routes, gateways: &Gateways, moved: Vec<Moved>) {
    let mut newest: HashMap<String, u64> = HashMap::with_capacity(moved.len());
    for Moved { user, inbox_seq } in moved {
        let seq = newest.entry(user).or_default();
        *seq = inbox_seq.max(*seq);
    }
    if newest.is_empty() {
        return;
    }
    let (users, seqs): (Vec<_>, Vec<_>) = newest.into_iter().unzip();
    let found = match routes.lookup(&users).await {
        Ok(found) => found,
        Err(error) => {
            gateways.metrics.store_failures.increment(1);
            tracing::warn!(%error, "routes cannot be read: notifies are lost until they can, heartbeats repair them");
            return;
        }
    };
    let mut downs = Downs::default();
    for (routes, inbox_seq) in found.iter().zip(seqs) {
        for route in routes {
            let notify =
                wire::NotifyConnection { handle: route.handle, inbox_seq, conversations: Vec::new() };
            gateways.metrics.notifies.increment(1);
            downs.push(&route.gateway, Message::Notify(notify));
        }
    }
    downs.flush(gateways);
}
