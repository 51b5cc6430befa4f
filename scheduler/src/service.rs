//! The gateways' side: each attaches by a link, reports over it, and asks where a stray client belongs.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use berth_proto::{
    link::{Link, Refused, RefusedReason, SchedulerService},
    ticket::PUBLIC_KEY,
    wire::{
        AttachGateway, Demand, FromScheduler, GatewayReport, Introduction, RedirectAsk, TicketKeys,
        ToScheduler, from_scheduler, to_scheduler,
    },
};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::{admission::Now, carried, core::Core, metrics::Redirect, redirect::redirect};

/// Redirects that may wait for the task that answers them: at about 50 µs each, the last waits 50 ms, far below the
/// gateways' patience. Those beyond are refused as full.
pub(crate) const REDIRECT_QUEUE: usize = 1_024;

type Down = Arc<dyn Link<FromScheduler>>;

/// A question and the link to answer it on.
pub(crate) struct RedirectJob {
    gateway_id: String,
    ask: RedirectAsk,
    down: Down,
}

/// The scheduler, as gateways see it.
pub(crate) struct Service {
    core: Arc<Core>,
    redirects: mpsc::Sender<RedirectJob>,
    attached: AtomicU64,
}

impl Service {
    pub fn new(core: Arc<Core>, redirects: mpsc::Sender<RedirectJob>) -> Self {
        Self { core, redirects, attached: AtomicU64::new(0) }
    }
}

impl SchedulerService for Service {
    fn attach(&self, gateway: AttachGateway, down: Down) -> Arc<dyn Link<ToScheduler>> {
        let number = self.attached.fetch_add(1, Ordering::Relaxed) + 1;
        info!(gateway = %gateway.gateway_id, boot = %format_args!("{:016x}", gateway.boot), "gateway attached");
        let link = GatewayLink {
            core: Arc::clone(&self.core),
            redirects: self.redirects.clone(),
            number,
            gateway,
            down,
            told: Mutex::default(),
            carried: Mutex::default(),
            complained: AtomicBool::new(false),
        };
        link.tell();
        Arc::new(link)
    }
}

/// What a gateway was told already.
#[derive(Default)]
struct Told {
    keys: bool,
    /// How many clients a second are wanted.
    demand: Option<u64>,
    introduction: Option<Introduction>,
    /// The id of the order.
    order: u64,
}

/// A gateway's link to this scheduler. That it ends says nothing: the gateway lives as long as it reports.
struct GatewayLink {
    core: Arc<Core>,
    redirects: mpsc::Sender<RedirectJob>,
    number: u64,
    gateway: AttachGateway,
    down: Down,
    told: Mutex<Told>,
    carried: Mutex<carried::Told>,
    /// The newest report was refused, and somebody was told.
    complained: AtomicBool,
}

impl Link<ToScheduler> for GatewayLink {
    fn send(&self, batch: Vec<ToScheduler>) -> Result<(), Refused<ToScheduler>> {
        let mut rest = Vec::new();
        let mut reason = None;
        for message in batch {
            match message.message {
                Some(to_scheduler::Message::Report(report)) => self.report(report),
                Some(to_scheduler::Message::Redirect(ask)) => {
                    if let Some((ask, why)) = self.redirect(ask) {
                        reason.get_or_insert(why);
                        rest.push(ToScheduler { message: Some(to_scheduler::Message::Redirect(ask)) });
                    }
                }
                Some(to_scheduler::Message::Carried(carried)) => self.core.carry(carried.records),
                // A newer gateway may say more than this scheduler knows.
                None => {}
            }
        }
        match reason {
            Some(reason) => Err(Refused { rest, reason }),
            None => Ok(()),
        }
    }

    fn connected(&self) -> bool {
        !self.redirects.is_closed()
    }
}

impl GatewayLink {
    fn report(&self, report: GatewayReport) {
        let own = report.gateway_id == self.gateway.gateway_id && report.boot == self.gateway.boot;
        let problem = if own {
            self.core.report(self.number, &report).err().map(|e| e.to_string())
        } else {
            self.core.metrics.reports_refused.increment(1);
            Some("it is of another gateway or boot than its link".to_owned())
        };
        match problem {
            None => {
                self.complained.store(false, Ordering::Relaxed);
                self.tell();
                self.tell_demand(&report.pool);
                self.tell_carried(&report.carried_digests);
            }
            // Twice a second for as long as it lasts: once is enough, until it is good again.
            Some(problem) if !self.complained.swap(true, Ordering::Relaxed) => {
                warn!(gateway = %self.gateway.gateway_id, %problem, "a gateway's reports are refused");
            }
            Some(_) => {}
        }
    }

    /// Says what the gateway lacks of the records that outlive schedulers; what the link does not take now is said again.
    fn tell_carried(&self, digests: &[u64]) {
        let mut told = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Now { monotonic_ms: self.core.clock.monotonic_ms(), wall_ms: self.core.clock.wall_ms() };
        let mut telling = self.core.carried.tell(&told, digests, now);
        let say = |carried| {
            let message = Some(from_scheduler::Message::Carried(carried));
            self.down.send(vec![FromScheduler { message }]).is_ok()
        };
        if std::mem::take(&mut telling.carried).into_iter().all(say) {
            *told = telling.done();
        }
    }

    /// Queues the question, or gives it back.
    fn redirect(&self, ask: RedirectAsk) -> Option<(RedirectAsk, RefusedReason)> {
        let gateway_id = self.gateway.gateway_id.clone();
        let job = RedirectJob { gateway_id, ask, down: Arc::clone(&self.down) };
        let refused = self.redirects.try_send(job).err()?;
        self.core.metrics.redirect(Redirect::Lost);
        Some(match refused {
            mpsc::error::TrySendError::Full(job) => (job.ask, RefusedReason::Full),
            mpsc::error::TrySendError::Closed(job) => (job.ask, RefusedReason::Closed),
        })
    }

    /// Says how many clients are wanted of the gateway's pool, if that has changed: the gateway leases its share by it.
    fn tell_demand(&self, pool: &str) {
        let wanted_per_second = self.core.wanted(pool);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.demand.is_some_and(|told| !differs(told, wanted_per_second)) {
            return;
        }
        let demand = from_scheduler::Message::Demand(Demand { wanted_per_second });
        if self.down.send(vec![FromScheduler { message: Some(demand) }]).is_ok() {
            told.demand = Some(wanted_per_second);
        }
    }

    /// Says the ticket keys, who this scheduler is and its orders, each once until it changes; what the link does not take now is said
    /// at the next report.
    fn tell(&self) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.keys {
            let list = |keys: &[[u8; PUBLIC_KEY]]| keys.iter().map(|key| key.to_vec()).collect();
            let (public_keys, void_keys) = (list(&self.core.ticket_keys), list(&self.core.void_ticket_keys));
            let ticket_ttl_ms = u32::try_from(self.core.ticket_ttl_ms).unwrap_or(u32::MAX);
            let keys = from_scheduler::Message::Keys(TicketKeys { public_keys, ticket_ttl_ms, void_keys });
            told.keys = self.down.send(vec![FromScheduler { message: Some(keys) }]).is_ok();
        }
        let say = |message| self.down.send(vec![FromScheduler { message: Some(message) }]).is_ok();
        let introduction = self.core.introduction();
        // Gateways move connections by it: not by rules that were stopped, and are not yet here.
        if self.core.caught_up()
            && told.introduction.as_ref() != Some(&introduction)
            && say(from_scheduler::Message::Introduction(introduction.clone()))
        {
            told.introduction = Some(introduction);
        }
        let AttachGateway { gateway_id, boot } = &self.gateway;
        let order = self.core.moving.order_of(gateway_id, *boot, self.core.clock.wall_ms());
        if let Some(order) = order.filter(|order| order.id != told.order)
            && say(from_scheduler::Message::Order(order))
        {
            told.order = order.id;
        }
    }
}

impl Drop for GatewayLink {
    fn drop(&mut self) {
        info!(gateway = %self.gateway.gateway_id, "gateway detached");
    }
}

/// Whether another demand is worth a message: one that differs by more than an eighth.
fn differs(told: u64, wanted: u64) -> bool {
    wanted.abs_diff(told) > told / 8
}

/// Answers redirects until every sender is gone or the task is dropped.
pub(crate) async fn answer_redirects(core: Arc<Core>, mut jobs: mpsc::Receiver<RedirectJob>) {
    while let Some(RedirectJob { gateway_id, ask, down }) = jobs.recv().await {
        let answer = redirect(&core, &gateway_id, &ask);
        let outcome = Redirect::of(&answer);
        let message = FromScheduler { message: Some(from_scheduler::Message::Redirect(answer)) };
        match down.send(vec![message]) {
            Ok(()) => core.metrics.redirect(outcome),
            Err(refused) => {
                // The gateway's own deadline closes the connection with 4005.
                debug!(?refused, "a redirect's answer was not taken");
                core.metrics.redirect(Redirect::Lost);
            }
        }
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixture, Heard, config, report};

    #[tokio::test]
    async fn each_time_that_reports_begin_to_be_refused_is_told() {
        let fixture = Fixture::start(config()).await;
        let (redirects, _jobs) = mpsc::channel(1);
        let link = GatewayLink {
            core: Arc::clone(&fixture.scheduler.core),
            redirects,
            number: 1,
            gateway: AttachGateway { gateway_id: "gw-1".to_owned(), boot: 1 },
            down: Arc::new(Heard::default()),
            told: Mutex::default(),
            carried: Mutex::default(),
            complained: AtomicBool::new(false),
        };
        let complained = |id: &str| {
            link.report(report(id));
            link.complained.load(Ordering::Relaxed)
        };
        assert_eq!(
            ["gw-1", "gw-2", "gw-2", "gw-1", "gw-2"].map(complained),
            [false, true, true, false, true]
        );
    }
}
