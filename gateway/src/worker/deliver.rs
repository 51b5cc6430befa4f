//! What other threads sent: to the connection it is about, if that is still there.

use berth_proto::{
    code::CloseCode,
    handle::Handle,
    wire::{SessionOpened, ToLogic, to_gateway, to_logic},
};

use super::{Worker, pack};
use crate::{inlet::Delivery, session::Session, table::Place};

/// Messages of a batch whose memory is used again for the next one. That of a larger one is not kept: it would count for
/// every connection for ever.
const BATCH_KEPT: usize = 1_024;

impl Worker {
    pub(super) fn take_deliveries(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        self.more_waits = self.inlet.take(&mut waiting);
        for delivery in waiting.deliveries.drain(..) {
            self.deliver(delivery);
        }
        waiting.deliveries.shrink_to(BATCH_KEPT);
        self.waiting = waiting;
    }

    pub(super) fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Logic(handle, message) => self.deliver_logic(handle, message),
            Delivery::Redirect(answer) => {
                if let Some(answer) = self.directed(answer)
                    && let Some(place) = self.place(answer.handle)
                {
                    self.with(place, |session, cx| session.redirected(cx, answer));
                }
            }
            Delivery::Evict(spread_ms) => self.begin_eviction(spread_ms, |_| true),
            Delivery::TellRest(spread_ms) => self.begin_eviction(spread_ms, Session::movable),
            Delivery::Move(job) => self.begin_moving(job),
            Delivery::Grant(count) => self.move_some(count),
            Delivery::MovedEnough => self.end_moving(),
            Delivery::Stop => self.begin_stop(),
            Delivery::Reannounce(logic) => self.begin_reannouncing(logic),
            Delivery::Unanswered(logic) => self.give_up_on(logic),
            Delivery::Revoked(revocation) => self.revoking.add(revocation),
            Delivery::KeysVoid(tags) => {
                // What follows in this same turn is let in by what is good now, not by what was when the turn began: nobody is looked
                // for again.
                self.refresh_env();
                self.list_let_in_by(&tags);
            }
        }
    }

    fn deliver_logic(&mut self, handle: u64, message: to_gateway::Message) {
        let late = matches!(message, to_gateway::Message::Response(_));
        let place = self.place(handle);
        if let to_gateway::Message::Opened(opened) = &message
            && let Some(place) = place.filter(|_| will_pass(opened))
            && let Some((logic, _)) = self.table.get(place).and_then(|connection| connection.session.held())
        {
            // Nothing is wrong with the session: only logic could not take it up again yet.
            return self.outlet.announce_after_a_rest(logic, place, self.now.steady_ms);
        }
        let found = place.is_some_and(|place| self.with(place, |session, cx| session.deliver(cx, message)));
        if !found && late {
            self.shared.metrics.requests.late_responses.increment(1);
        }
    }

    /// The link to that logic broke: whoever waits for its answer is told at once.
    fn give_up_on(&mut self, logic: u8) {
        let waiting: Vec<Place> = self
            .table
            .iter()
            .filter(|(_, connection)| connection.session.waits_for(logic))
            .map(|(place, _)| place)
            .collect();
        for place in waiting {
            self.with(place, |session, cx| session.unanswered(cx));
        }
    }

    /// What a link did not take: the session it was for is told, or it is kept for later.
    pub(super) fn returned(&mut self, logic: u8, message: ToLogic) {
        match message.message {
            Some(to_logic::Message::Open(open)) if open.session_epoch == 0 => {
                if let Some(place) = self.place(open.handle) {
                    self.with(place, |session, cx| session.open_refused(cx));
                }
            }
            Some(to_logic::Message::Open(open)) => {
                if let Some(place) = self.place(open.handle) {
                    self.outlet.reannounce_later(logic, place);
                }
            }
            Some(to_logic::Message::Close(close)) => self.outlet.close_later(logic, close),
            Some(to_logic::Message::Request(request)) => {
                let number = request.request.map_or(0, |request| request.id);
                if let Some(place) = self.place(request.handle) {
                    self.with(place, |session, cx| session.request_refused(cx, number));
                }
            }
            // The next heartbeat asks again.
            Some(to_logic::Message::Refresh(_) | to_logic::Message::Renew(_)) | None => {}
        }
    }

    /// The place of a packed handle, if it is one of this worker's.
    pub(super) fn place(&self, packed: u64) -> Option<Place> {
        let handle = Handle::unpack(packed);
        let place = Place { slot: handle.slot, generation: handle.generation };
        (pack(self.index, place) == packed).then_some(place)
    }
}

/// Whether logic could not open a session for a reason that has nothing to do with it.
fn will_pass(opened: &SessionOpened) -> bool {
    let code = CloseCode::from_number(opened.close_code);
    opened.error.is_some() && matches!(code, None | Some(CloseCode::Internal | CloseCode::Overloaded))
}
