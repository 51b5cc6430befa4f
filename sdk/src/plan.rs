//! Where a client goes next and when: the list, the parameters that came with it, and what of them is kept between runs.

use berth_proto::schedule::{HeartbeatParameters, ScheduleAnswer};
use tokio::sync::watch;

use crate::{bootstrap, endpoints::Endpoints, options::Options, reconnect::Reconnect, store::StoredSchedule};

/// What one client knows of where to go.
pub(crate) struct Plan {
    pub endpoints: Endpoints,
    pub reconnect: Reconnect,
    pub heartbeat: HeartbeatParameters,
    /// Whom the gateways welcomed, or whose tokens there were before; empty: that is not known.
    pub user_id: String,
    device_id: String,
    /// Of an earlier run, until it is known whose it is.
    stored: Option<StoredSchedule>,
    /// What is to be stored.
    kept: watch::Sender<Option<StoredSchedule>>,
}

impl Plan {
    /// Nothing but what an earlier run kept.
    pub fn new(options: &Options, stored: Option<StoredSchedule>) -> Self {
        Self {
            endpoints: Endpoints::new(options.transports.clone()),
            reconnect: Reconnect::default(),
            heartbeat: HeartbeatParameters::default(),
            user_id: String::new(),
            device_id: options.device_id.clone(),
            kept: watch::Sender::new(stored.clone()),
            stored,
        }
    }

    /// What is to be stored, whenever it is another.
    pub fn to_store(&self) -> watch::Receiver<Option<StoredSchedule>> {
        self.kept.subscribe()
    }

    /// Goes on with the schedule of an earlier run, if it is this user's and device's; nobody else's is looked at again. Whether
    /// that makes asking a scheduler needless.
    pub fn restore(&mut self, user_id: Option<&str>, now_ms: i64) -> bool {
        let Some(stored) = self.stored.take() else { return false };
        if user_id != Some(&*stored.user_id) || stored.device_id != self.device_id {
            return false;
        }
        self.user_id.clone_from(&stored.user_id);
        self.reconnect.set_parameters(stored.reconnect);
        self.heartbeat = stored.heartbeat;
        self.endpoints.restored(&stored, now_ms)
    }

    /// Whether a token of this user is this client's, which is so where nobody knows whose it is. The first one decides.
    pub fn is_of(&mut self, user_id: Option<String>) -> bool {
        let Some(user_id) = user_id else { return true };
        if self.user_id.is_empty() {
            self.user_id = user_id;
            return true;
        }
        self.user_id == user_id
    }

    /// Has the schedule stored, if it is another one than before: once a gateway has welcomed its user, or refused it.
    pub fn keep(&self) {
        let (user_id, device_id) = (&self.user_id, &self.device_id);
        let stored = self.endpoints.stored(user_id, device_id, self.reconnect.parameters(), self.heartbeat);
        self.kept.send_if_modified(|kept| {
            let changed = *kept != stored;
            *kept = stored;
            changed
        });
    }

    /// The ticket is of no use anywhere, now or in a later run.
    pub fn forget_ticket(&mut self) {
        self.endpoints.forget_ticket();
        self.keep();
    }

    /// Takes a scheduler's answer, which is a place at the gateways: nobody waits for the spread after it. Whether any of its
    /// endpoints can be used.
    pub fn scheduled(&mut self, answer: &ScheduleAnswer, now_ms: i64) -> bool {
        self.reconnect.no_spread();
        self.reconnect.set_parameters(answer.reconnect);
        self.heartbeat = answer.heartbeat;
        self.endpoints.scheduled(answer, now_ms)
    }

    /// Takes what a scheduler said while there is a connection: for when that is lost, and for a later run.
    pub fn renewed(&mut self, answer: &ScheduleAnswer, now_ms: i64) {
        if self.endpoints.renewed(answer, now_ms) {
            self.reconnect.set_parameters(answer.reconnect);
            self.heartbeat = answer.heartbeat;
            self.keep();
        }
    }

    /// Goes to the next gateway while no scheduler answers: of those configured, then of the last list. `false`: there is
    /// nothing to go there with.
    pub fn bootstrap(&mut self, options: &Options) -> bool {
        let mine = |gateways| bootstrap::order(gateways, &options.transports, &self.user_id, &self.device_id);
        let configured = options.bootstrap_gateways.iter().flat_map(|url| bootstrap::endpoint(url));
        let mut order = mine(configured.collect());
        for told in mine(self.endpoints.told().to_vec()) {
            if order.iter().all(|endpoint| endpoint.url != told.url) {
                order.push(told);
            }
        }
        self.endpoints.bootstrap(&order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::StaticToken;

    #[test]
    fn the_first_token_that_says_whose_it_is_decides() {
        let mut plan = Plan::new(&Options::new("http://h:1", "d", StaticToken::new("jwt")), None);
        assert!(plan.is_of(None) && plan.user_id.is_empty(), "a token may say nothing");
        assert!(plan.is_of(Some("alice".into())));
        assert_eq!(plan.user_id, "alice", "the order of bootstrap gateways depends on it, welcomed or not");
        assert!(plan.is_of(Some("alice".into())) && plan.is_of(None) && !plan.is_of(Some("bob".into())));
    }
}
