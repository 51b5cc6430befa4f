//! Moving connections of this worker elsewhere: a scheduler is asked for each, and each is told where its place is.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use berth_proto::wire::RedirectAnswer;
use rand::{Rng, seq::SliceRandom};

use super::{Worker, pack};
use crate::{metrics::Moved, mover::Job, session::Goodbye, table::Place};

/// A job's part of this worker.
pub(super) struct Moving {
    job: Arc<Job>,
    /// To be asked about yet.
    left: VecDeque<Place>,
    /// Asked about, by handle. Bounded by what the pace lets out within the patience for an answer.
    asked: HashMap<u64, Asked>,
    /// Which scheduler to ask first: the next one after each that did not answer in time.
    from: usize,
}

struct Asked {
    since_ms: i64,
    /// The wait it will be told; its place is kept so much longer.
    retry_after_ms: u32,
}

impl Moving {
    /// One of them was told to go without a place.
    pub(super) fn unplaced(&self) {
        self.job.unplaced();
    }

    /// Whom to ask: schedulers by their bits, and the index of the first.
    pub(super) fn whom(&self) -> (u64, usize) {
        (self.job.among(), self.from)
    }

    /// Says how many are left, after each change.
    fn tell(&self, worker: u8) {
        self.job.open(worker, self.left.len(), self.asked.len());
    }
}

impl Worker {
    /// Lists whom the job is about, in random order. When it is the job under way, whoever came since is listed.
    pub(super) fn begin_moving(&mut self, job: Arc<Job>) {
        if self.moving.as_ref().is_none_or(|moving| !Arc::ptr_eq(&moving.job, &job)) {
            self.end_moving();
        }
        let (asked, from) = self.moving.take().map(|moving| (moving.asked, moving.from)).unwrap_or_default();
        let listed = self.table.iter().filter(|(place, connection)| {
            let session = &connection.session;
            let wanted = session.movable() && (!job.order.only_away || session.away());
            wanted && !asked.contains_key(&pack(self.index, *place))
        });
        let mut left: Vec<Place> = listed.map(|(place, _)| place).collect();
        left.shuffle(&mut self.rng);
        let moving = Moving { job, left: left.into(), asked, from };
        moving.tell(self.index);
        self.moving = Some(moving);
    }

    /// Asks about so many more.
    pub(super) fn move_some(&mut self, count: u64) {
        let Some(mut moving) = self.moving.take() else { return };
        let mut count = count;
        while count > 0
            && let Some(place) = moving.left.pop_front()
        {
            let retry_after_ms = self.rng.random_range(0..=moving.job.order.spread_ms);
            let handle = pack(self.index, place);
            // Whoever has gone meanwhile costs nothing.
            let Some(connection) = self.table.get(place) else { continue };
            let Some(peer) = connection.peer() else { continue };
            let session = &connection.session;
            if let Some(ask) = session.whereabouts(&moving.job.order, handle, peer, retry_after_ms, self.now)
            {
                self.ups.redirects.push(ask);
                moving.asked.insert(handle, Asked { since_ms: self.now.steady_ms, retry_after_ms });
                count -= 1;
            }
        }
        moving.tell(self.index);
        self.moving = Some(moving);
    }

    /// Whether a scheduler is asked where that connection is to be moved.
    pub(super) fn asks_about(&self, handle: u64) -> bool {
        self.moving.as_ref().is_some_and(|moving| moving.asked.contains_key(&handle))
    }

    /// The question was in vain: it is asked again later.
    pub(super) fn take_back(&mut self, handle: u64, why: &str) {
        let place = self.place(handle);
        let Some(moving) = &mut self.moving else { return };
        if moving.asked.remove(&handle).is_some() {
            moving.job.hold(why);
            moving.left.extend(place);
            moving.tell(self.index);
        }
    }

    /// Takes the answer to a question of this job; gives back one to another.
    pub(super) fn directed(&mut self, answer: RedirectAnswer) -> Option<RedirectAnswer> {
        if !self.asks_about(answer.handle) {
            return Some(answer);
        }
        if !answer.stay && answer.endpoints.is_empty() {
            let why = if answer.hold.is_empty() { "no gateway can take them" } else { &answer.hold };
            self.take_back(answer.handle, why);
            return None;
        }
        let place = self.place(answer.handle);
        let place = place
            .filter(|place| self.table.get(*place).is_some_and(|connection| connection.session.movable()));
        let moving = self.moving.as_mut()?;
        let Asked { retry_after_ms, .. } = moving.asked.remove(&answer.handle)?;
        let job = Arc::clone(&moving.job);
        // A scheduler that knows no sweeps sends a client where it is.
        let stays = answer.stay || answer.endpoints[0].gateway_id == self.env.gateway_id;
        match (stays, place) {
            (true, _) => {
                job.stayed();
                self.shared.metrics.moves.one(Moved::Stayed);
            }
            (false, Some(_)) => {
                job.moved();
                self.shared.metrics.moves.one(Moved::Placed);
            }
            (false, None) => {}
        }
        moving.tell(self.index);
        let place = place.filter(|_| !stays)?;
        let RedirectAnswer { endpoints, ticket, ticket_expires_at_ms, .. } = answer;
        let goodbye = Goodbye::new(job.order.code()).retry_after(retry_after_ms).redirect(
            endpoints,
            ticket,
            ticket_expires_at_ms,
        );
        self.with(place, |session, cx| session.evict(cx, goodbye));
        None
    }

    /// Questions that no scheduler answered in time are asked again.
    pub(super) fn give_up_questions(&mut self) {
        let Some(moving) = &self.moving else { return };
        let patience = i64::try_from(self.env.timeouts.redirect.as_millis()).unwrap_or(i64::MAX);
        let late = moving.asked.iter().filter(|(_, asked)| self.now.steady_ms - asked.since_ms >= patience);
        let late: Vec<u64> = late.map(|(handle, _)| *handle).collect();
        if let Some(moving) = self.moving.as_mut().filter(|_| !late.is_empty()) {
            moving.from = moving.from.wrapping_add(1);
        }
        for handle in late {
            self.take_back(handle, "no scheduler answers in time");
        }
    }

    /// Whoever was not told yet stays.
    pub(super) fn end_moving(&mut self) {
        if let Some(moving) = self.moving.take() {
            moving.job.open(self.index, 0, 0);
        }
    }
}
