//! Logic as gateways see it: an attached gateway gets a link whose messages go to lanes by user.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use berth_proto::{
    lateness::Lateness,
    link::{Link, LogicService, Refused, RefusedReason},
    wire::{self, to_logic::Message as Up},
};
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::{
    context::Clock,
    gateways::{Down, Gateways},
    lane::Arrived,
    metrics::Metrics,
    revoke::Untold,
    routes::GatewayKey,
};

/// Lanes: enough that a slow request of one user holds up a sixteenth of the others at most.
pub(crate) const LANES: usize = 16;

/// About gateways themselves, apart from users: attachments and leases, in order.
pub(crate) enum Control {
    /// It attached.
    Attached(GatewayKey),
    /// It is alive.
    Renew(GatewayKey, wire::RenewLease),
}

/// Control messages that may wait: a handful a second for each gateway.
pub(crate) const CONTROLS: usize = 1024;

/// The service that gateways attach to.
pub(crate) struct Service {
    pub(crate) lanes: Arc<[mpsc::Sender<Arrived>]>,
    pub(crate) control: mpsc::Sender<Control>,
    pub(crate) gateways: Arc<Gateways>,
    pub(crate) metrics: Metrics,
    /// The clock of leases and routes.
    pub(crate) steady: Clock,
    /// Told of each that attaches, whatever the control queue takes.
    pub(crate) revocations: Arc<Untold>,
}

impl LogicService for Service {
    fn attach(&self, gateway: wire::AttachGateway, down: Down) -> Arc<dyn Link<wire::ToLogic>> {
        let key = GatewayKey { id: gateway.gateway_id, boot: gateway.boot };
        let attachment = self.gateways.attach(key.clone(), down);
        tracing::info!(gateway = key.id, boot = key.boot, "a gateway attached");
        self.revocations.attached(key.clone());
        if self.control.try_send(Control::Attached(key.clone())).is_err() {
            // Its lease begins with its first session or renewal then, after that of an older boot that took its place;
            // otherwise older boots of it only live on until theirs end.
            tracing::warn!(
                gateway = key.id,
                "the attachment could not be noted: the control queue is full or closed"
            );
        }
        Arc::new(UpLink {
            key,
            attachment,
            lanes: self.lanes.clone(),
            control: self.control.clone(),
            gateways: self.gateways.clone(),
            metrics: self.metrics.clone(),
            turn: AtomicUsize::new(0),
            lateness: Mutex::new(Lateness::new((self.steady)())),
            steady: self.steady.clone(),
        })
    }
}

/// One gateway's way up. Dropping it detaches the gateway.
struct UpLink {
    key: GatewayKey,
    attachment: u64,
    lanes: Arc<[mpsc::Sender<Arrived>]>,
    control: mpsc::Sender<Control>,
    gateways: Arc<Gateways>,
    metrics: Metrics,
    /// Heartbeat batches are about many users and in no order: lanes take turns.
    turn: AtomicUsize,
    lateness: Mutex<Lateness>,
    steady: Clock,
}

impl UpLink {
    /// When something was said, on our clock, from the time on the gateway's; 0: it was not told.
    fn said(&self, said_ms: i64) -> i64 {
        if said_ms == 0 {
            return 0;
        }
        let now_ms = (self.steady)();
        now_ms - self.lateness.lock().unwrap_or_else(PoisonError::into_inner).heard(said_ms, now_ms)
    }

    fn lane(&self, message: &Up) -> usize {
        match message {
            Up::Open(open) => lane_of(&open.user_id),
            Up::Close(close) => lane_of(&close.user_id),
            Up::Request(request) => lane_of(&request.user_id),
            Up::Refresh(_) | Up::Renew(_) => self.turn.fetch_add(1, Ordering::Relaxed) % LANES,
        }
    }

    /// What was not taken, and why.
    fn pass(&self, message: Up) -> Option<(RefusedReason, Up)> {
        if let Up::Renew(renew) = message {
            self.said(renew.now_ms);
            return match self.control.try_send(Control::Renew(self.key.clone(), renew)) {
                Ok(()) => None,
                Err(TrySendError::Full(_)) => Some((RefusedReason::Full, Up::Renew(renew))),
                Err(TrySendError::Closed(_)) => Some((RefusedReason::Closed, Up::Renew(renew))),
            };
        }
        let lane = &self.lanes[self.lane(&message)];
        match lane.try_send(Arrived { gateway: self.key.clone(), message }) {
            Ok(()) => None,
            Err(TrySendError::Full(arrived)) => Some((RefusedReason::Full, arrived.message)),
            Err(TrySendError::Closed(arrived)) => Some((RefusedReason::Closed, arrived.message)),
        }
    }
}

fn lane_of(user: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    user.hash(&mut hasher);
    (hasher.finish() % LANES as u64) as usize
}

impl Link<wire::ToLogic> for UpLink {
    fn send(&self, batch: Vec<wire::ToLogic>) -> Result<(), Refused<wire::ToLogic>> {
        let mut rest = Vec::new();
        let mut reason = None;
        let mut full = [false; LANES];
        for wire::ToLogic { message } in batch {
            let Some(mut message) = message else { continue };
            // The gateway's clock ends here. What is handed back comes again: it must not be taken for ours then.
            let on_theirs = match &mut message {
                Up::Open(open) => {
                    let said_ms = self.said(open.said_ms);
                    std::mem::replace(&mut open.said_ms, said_ms)
                }
                _ => 0,
            };
            let about_user = !matches!(message, Up::Refresh(_) | Up::Renew(_));
            let lane = if about_user { Some(self.lane(&message)) } else { None };
            // Once a lane refused, what follows for it in this batch must not overtake.
            let refused = match lane {
                Some(lane) if full[lane] => Some((RefusedReason::Full, message)),
                _ => self.pass(message),
            };
            if let Some((why, mut message)) = refused {
                if let Up::Open(open) = &mut message {
                    open.said_ms = on_theirs;
                }
                if let Some(lane) = lane {
                    full[lane] = true;
                }
                // With one of the lanes gone the others may still have room later.
                if reason != Some(RefusedReason::Full) {
                    reason = Some(why);
                }
                rest.push(wire::ToLogic { message: Some(message) });
            }
        }
        match reason {
            None => Ok(()),
            Some(reason) => {
                if reason == RefusedReason::Full {
                    self.metrics.lane_full.increment(rest.len() as u64);
                }
                Err(Refused { rest, reason })
            }
        }
    }

    fn connected(&self) -> bool {
        !self.control.is_closed()
    }
}

impl Drop for UpLink {
    fn drop(&mut self) {
        self.gateways.detach(&self.key, self.attachment);
        tracing::info!(gateway = self.key.id, boot = self.key.boot, "a gateway detached");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::conformance::no_metrics;

    struct Nowhere;

    impl Link<wire::ToGateway> for Nowhere {
        fn send(&self, _: Vec<wire::ToGateway>) -> Result<(), Refused<wire::ToGateway>> {
            Ok(())
        }
    }

    fn close(user: &str, session_epoch: u64) -> wire::ToLogic {
        let close = wire::CloseSession {
            user_id: user.to_owned(),
            device_id: "d".to_owned(),
            session_epoch,
            handle: 0,
        };
        wire::ToLogic { message: Some(Up::Close(close)) }
    }

    #[test]
    fn a_gateway_that_the_control_queue_has_no_room_for_is_told_of_revocations_all_the_same() {
        let (control, mut controls) = mpsc::channel(1);
        let (metrics, revocations) = (no_metrics(), Arc::<Untold>::default());
        let gateways = Arc::new(Gateways::new(metrics.clone()));
        let (lanes, steady): (Arc<[_]>, Clock) = (Arc::new([]), Arc::new(|| 0));
        let service = Service { lanes, control, gateways, metrics, steady, revocations: revocations.clone() };
        let _links = ["g1", "g2"].map(|id| {
            service.attach(wire::AttachGateway { gateway_id: id.to_owned(), boot: 1 }, Arc::new(Nowhere))
        });
        assert!(controls.try_recv().is_ok() && controls.try_recv().is_err(), "only one had room");
        for id in ["g1", "g2"] {
            assert!(revocations.waits(&GatewayKey { id: id.to_owned(), boot: 1 }), "{id}");
        }
    }

    #[test]
    fn a_full_lane_hands_back_what_it_has_no_room_for_in_order() {
        let receivers = Mutex::new(Vec::new());
        let lane = |_| {
            let (sender, receiver) = mpsc::channel(3);
            receivers.lock().expect("not poisoned").push(receiver);
            sender
        };
        let lanes: Arc<[_]> = (0..LANES).map(lane).collect();
        let (control, _controls) = mpsc::channel(3);
        let metrics = no_metrics();
        let gateways = Arc::new(Gateways::new(metrics.clone()));
        let steady: Clock = Arc::new(|| 0);
        let revocations = Arc::default();
        let service = Service { lanes, control, gateways, metrics, steady, revocations };
        let attach = wire::AttachGateway { gateway_id: "g".to_owned(), boot: 1 };
        let link = service.attach(attach, Arc::new(Nowhere));

        let other = (0..).map(|n| format!("u{n}")).find(|u| lane_of(u) != lane_of("alice")).expect("one");
        let batch = [1, 2, 3, 4, 5].map(|epoch| close("alice", epoch)).into_iter().chain([close(&other, 9)]);
        let refused = link.send(batch.collect()).expect_err("two too many");
        assert_eq!(refused.reason, RefusedReason::Full);
        assert_eq!(
            refused.rest,
            [close("alice", 4), close("alice", 5)],
            "and the other lane took its message"
        );
        receivers.lock().expect("not poisoned").remove(lane_of(&other));
        let refused = link.send(vec![close(&other, 10), close("alice", 6)]).expect_err("one gone, one full");
        assert_eq!(refused.reason, RefusedReason::Full, "one of them may be taken later");
        receivers.lock().expect("not poisoned").clear();
        let refused = link.send(vec![close("alice", 6)]).expect_err("nobody is there");
        assert_eq!(refused.reason, RefusedReason::Closed);
    }
}
