//! What the sessions of one wake-up want sent: one batch for each link, and what became of what was not taken.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
};

use berth_proto::{
    client,
    link::Refused,
    wire::{CloseSession, RedirectAsk, RefreshInboxes, ToLogic, ToScheduler, to_logic, to_scheduler},
};

use super::{Worker, moving::Moving};
use crate::{
    asking::Whom,
    metrics::{LinkRefused, Metrics},
    session::Ups,
    shared::Rare,
    table::Place,
};

/// Sessions announced again at a time, and the pause between, in milliseconds: 2,000 a second from each worker, so that a
/// logic which just came back is not buried.
const REANNOUNCE_BATCH: usize = 100;
const REANNOUNCE_PAUSE_MS: i64 = 50;

/// The pause, in milliseconds, after a logic could not take up what it was told: its store fails, say.
const REANNOUNCE_REST_MS: i64 = 1_000;

/// A worker's side of its links.
#[derive(Default)]
pub(super) struct Outlet {
    links: Option<Rare>,
    /// Session ends that logic must still learn: at most one for each connection that was.
    closes: VecDeque<(u8, CloseSession)>,
    retry_closes: bool,
    /// Sessions that a logic forgot.
    forgotten: VecDeque<(u8, Place)>,
    reannounce_ms: i64,
}

impl Ups {
    pub(crate) fn is_empty(&self) -> bool {
        self.logic.is_empty()
            && self.refresh.is_empty()
            && self.redirects.is_empty()
            && self.silent.is_empty()
            && self.used_tickets.is_empty()
    }

    /// One batch for each logic: what sessions said, in order, then the heartbeat batch.
    fn take_batches(&mut self) -> HashMap<u8, Vec<ToLogic>> {
        let mut batches: HashMap<u8, Vec<ToLogic>> = HashMap::new();
        for (logic, message) in self.logic.drain(..) {
            batches.entry(logic).or_default().push(ToLogic { message: Some(message) });
        }
        let mut refresh: HashMap<u8, RefreshInboxes> = HashMap::new();
        let all = self.refresh.len();
        for (logic, query) in self.refresh.drain(..) {
            let new = || RefreshInboxes { inboxes: Vec::with_capacity(all) };
            refresh.entry(logic).or_insert_with(new).inboxes.push(query);
        }
        for (logic, queries) in refresh {
            let message = Some(to_logic::Message::Refresh(queries));
            batches.entry(logic).or_default().push(ToLogic { message });
        }
        batches
    }
}

impl Outlet {
    pub(super) fn set_links(&mut self, links: Rare) {
        self.links = Some(links);
    }

    /// Which logics are up, by index.
    pub(super) fn connected(&self, into: &mut Vec<bool>) {
        into.clear();
        into.extend(self.links.iter().flat_map(|rare| rare.logics.iter()).map(|link| link.connected()));
    }

    /// Whether any scheduler is up.
    pub(super) fn scheduled(&self) -> bool {
        self.links.iter().flat_map(|rare| rare.schedulers.iter()).any(|link| link.connected())
    }

    pub(super) fn close_later(&mut self, logic: u8, close: CloseSession) {
        self.closes.push_back((logic, close));
    }

    pub(super) fn reannounce_later(&mut self, logic: u8, place: Place) {
        self.forgotten.push_back((logic, place));
    }

    /// Logic is in trouble: everybody who waits is announced when it has had a rest.
    pub(super) fn announce_after_a_rest(&mut self, logic: u8, place: Place, now_ms: i64) {
        self.reannounce_later(logic, place);
        self.reannounce_ms = self.reannounce_ms.max(now_ms + REANNOUNCE_REST_MS);
    }

    pub(super) fn retry_closes(&mut self) {
        self.retry_closes = !self.closes.is_empty();
    }

    pub(super) fn next_reannouncement_ms(&self) -> Option<i64> {
        (!self.forgotten.is_empty()).then_some(self.reannounce_ms)
    }

    /// Sends to the logic with that index; returns what was not taken.
    fn send(&self, logic: u8, batch: Vec<ToLogic>) -> Vec<ToLogic> {
        let link = self.links.as_ref().and_then(|rare| rare.logics.get(usize::from(logic)));
        match link.map(|link| link.send(batch)) {
            Some(Ok(())) | None => Vec::new(),
            Some(Err(Refused { rest, .. })) => rest,
        }
    }

    /// Asks the first of these schedulers that takes the question; which one that was.
    fn ask(&self, ask: &RedirectAsk, (among, from): Whom) -> Option<usize> {
        let schedulers = &self.links.as_ref()?.schedulers;
        turns(schedulers.len(), among, from).find(|index| {
            let link = &schedulers[*index];
            let message = || Some(to_scheduler::Message::Redirect(ask.clone()));
            link.connected() && link.send(vec![ToScheduler { message: message() }]).is_ok()
        })
    }
}

/// Of so many, those of `among` (a bit each; beyond 64 all) in the order in which they are asked: from one on, around.
fn turns(count: usize, among: u64, from: usize) -> impl Iterator<Item = usize> {
    let around = (0..count).map(move |step| (from % count + step) % count);
    around.filter(move |index| *index >= 64 || among >> index & 1 == 1)
}

impl Worker {
    /// Sends what was collected. What comes back may cause more: that goes with the next wake-up, which follows at once.
    pub(super) fn flush_ups(&mut self) {
        if std::mem::take(&mut self.outlet.retry_closes) {
            let closes = std::mem::take(&mut self.outlet.closes);
            let messages = closes.into_iter().map(|(logic, close)| (logic, to_logic::Message::Close(close)));
            self.ups.logic.splice(0..0, messages);
        }
        if self.ups.is_empty() {
            return;
        }
        if !self.ups.used_tickets.is_empty() {
            self.shared.ticket_used(&mut self.ups.used_tickets);
        }
        self.ups.silent.drain(..).for_each(|silent| self.shared.asking.silent(silent));
        for ask in std::mem::take(&mut self.ups.redirects) {
            match self.moving.as_ref().filter(|_| self.asks_about(ask.handle)).map(Moving::whom) {
                Some(whom) => self.ask_of_moved(&ask, whom),
                None => self.ask_of_arriving(&ask),
            }
        }
        for (logic, batch) in self.ups.take_batches() {
            for message in self.outlet.send(logic, batch) {
                count(&self.shared.metrics, &message);
                self.returned(logic, message);
            }
        }
    }

    fn ask_of_moved(&mut self, ask: &RedirectAsk, whom: Whom) {
        if self.outlet.ask(ask, whom).is_none() {
            self.shared.metrics.links.refused.one(LinkRefused::Redirect);
            self.take_back(ask.handle, "no scheduler takes questions");
        }
    }

    fn ask_of_arriving(&mut self, ask: &RedirectAsk) {
        let whom = self.shared.asking.whom(ask.purpose());
        let asked = self.outlet.ask(ask, whom);
        match asked {
            Some(scheduler) => self.shared.asking.took(whom, scheduler),
            None => self.shared.metrics.links.refused.one(LinkRefused::Redirect),
        }
        if let Some(place) = self.place(ask.handle) {
            self.with(place, |session, cx| match asked {
                Some(scheduler) => session.redirect_asked(scheduler),
                None => session.redirect_refused(cx),
            });
        }
    }

    /// A logic forgot this gateway: lists its sessions to be announced again, those first who gave a sign of life last. They
    /// are the likeliest to be written to. Sorting costs less than the walk over the table.
    pub(super) fn begin_reannouncing(&mut self, logic: u8) {
        // It may have forgotten again what it was told since: everybody is listed anew, nobody twice.
        self.outlet.forgotten.retain(|(listed, _)| *listed != logic);
        let theirs = self.table.iter().filter_map(|(place, connection)| {
            let (of, life_ms) = connection.session.held()?;
            (of == logic).then_some((life_ms, place))
        });
        let mut theirs: Vec<_> = theirs.collect();
        theirs.sort_unstable_by_key(|(life_ms, _)| Reverse(*life_ms));
        self.outlet.forgotten.extend(theirs.into_iter().map(|(_, place)| (logic, place)));
        self.outlet.reannounce_ms = self.now.steady_ms;
    }

    pub(super) fn reannounce_some(&mut self) {
        if self.outlet.forgotten.is_empty() || self.now.steady_ms < self.outlet.reannounce_ms {
            return;
        }
        self.outlet.reannounce_ms = self.now.steady_ms + REANNOUNCE_PAUSE_MS;
        for _ in 0..REANNOUNCE_BATCH {
            let Some((logic, place)) = self.outlet.forgotten.pop_front() else { return };
            let handle = super::pack(self.index, place);
            let Some(connection) = self.table.take(place) else { continue };
            if let Some(open) = connection.session.reannounce(logic, handle) {
                self.shared.metrics.links.reannounced.increment(1);
                self.ups.logic.push((logic, open));
            }
            self.table.put_back(place, connection);
        }
    }
}

fn count(metrics: &Metrics, message: &ToLogic) {
    let kind = match &message.message {
        Some(to_logic::Message::Open(_)) => LinkRefused::Open,
        Some(to_logic::Message::Close(_)) => LinkRefused::Close,
        Some(to_logic::Message::Request(client_request)) => {
            debug_assert!(client_request.request.as_ref().is_none_or(|r: &client::Request| r.id > 0));
            LinkRefused::Request
        }
        Some(to_logic::Message::Refresh(_)) | None => LinkRefused::Refresh,
        Some(to_logic::Message::Renew(_)) => LinkRefused::Renew,
    };
    metrics.links.refused.one(kind);
}

#[cfg(test)]
mod tests {
    use super::turns;

    #[test]
    fn who_does_not_answer_is_asked_last_and_who_would_say_something_old_never() {
        let order = |count, among, from| turns(count, among, from).collect::<Vec<_>>();
        assert_eq!(order(3, u64::MAX, 0), [0, 1, 2]);
        assert_eq!(order(3, u64::MAX, usize::MAX), order(3, u64::MAX, usize::MAX % 3));
        assert_eq!(order(3, 0b110, 2), [2, 1]);
        assert_eq!(order(3, 0b110, 3), [1, 2]);
        assert!(order(3, 0, 1).is_empty() && order(0, u64::MAX, 5).is_empty());
    }
}
