//! What a genuine ticket is worth at this gateway: also one that is past its time or of other gateways, while no scheduler
//! can be asked for a better one. Pure.

use berth_proto::wire::Ticket;

use super::Env;
use crate::metrics::Grace;

/// What becomes of a client with a genuine ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Worth {
    /// It is served: the ticket is of this gateway and in time.
    Good,
    /// It is served though the ticket is not, since no scheduler is linked.
    Grace(Grace),
    /// A scheduler is asked where it belongs.
    Ask,
    /// It is to ask a scheduler itself.
    Expired {
        /// How long ago, in milliseconds.
        late_ms: i64,
    },
}

/// `no_scheduler`: the client says that no scheduler answers it. While this gateway has one, it is asked on the client's behalf
/// rather than believed.
pub(super) fn worth(ticket: &Ticket, env: &Env, now_ms: i64, no_scheduler: bool) -> Worth {
    let late_ms = now_ms.saturating_sub(ticket.expires_at_ms);
    let expired = late_ms >= 0;
    let here = ticket.gateway_ids.contains(&env.gateway_id);
    let graced = env.grace_ms > 0 && late_ms < env.grace_ms;
    match (expired, here) {
        (false, true) => Worth::Good,
        (true, _) if graced && !env.scheduled => Worth::Grace(Grace::Expired),
        (false, false) if graced && !env.scheduled => Worth::Grace(Grace::Elsewhere),
        (true, _) if graced && no_scheduler => Worth::Ask,
        (false, false) => Worth::Ask,
        (true, _) => Worth::Expired { late_ms },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::session::simulation::Harness;

    const NOW: i64 = 1_000_000;
    const GRACE_MS: i64 = 60_000;

    fn env(grace_ms: i64, scheduled: bool) -> Env {
        Env { grace_ms, scheduled, ..Harness::new(1).env }
    }

    fn ticket(gateway: &str, late_ms: i64) -> Ticket {
        Ticket {
            gateway_ids: vec![gateway.to_owned()],
            expires_at_ms: NOW.saturating_sub(late_ms),
            ..Ticket::default()
        }
    }

    #[test]
    fn without_a_scheduler_a_genuine_ticket_is_good_for_the_grace_anywhere() {
        let (alone, linked) = (env(GRACE_MS, false), env(GRACE_MS, true));
        let (expired, ask) = (Worth::Grace(Grace::Expired), Worth::Ask);
        let late = |late_ms| Worth::Expired { late_ms };
        for (gateway, late_ms, without, told, untold) in [
            ("gw-1", -1, Worth::Good, Worth::Good, Worth::Good),
            ("gw-2", -1, Worth::Grace(Grace::Elsewhere), ask, ask),
            ("gw-1", 0, expired, ask, late(0)),
            ("gw-1", GRACE_MS - 1, expired, ask, late(GRACE_MS - 1)),
            ("gw-2", GRACE_MS - 1, expired, ask, late(GRACE_MS - 1)),
            ("gw-1", GRACE_MS, late(GRACE_MS), late(GRACE_MS), late(GRACE_MS)),
            ("gw-2", GRACE_MS, late(GRACE_MS), late(GRACE_MS), late(GRACE_MS)),
        ] {
            let ticket = ticket(gateway, late_ms);
            let what = format!("{gateway}, {late_ms} ms late");
            assert_eq!(worth(&ticket, &alone, NOW, true), without, "{what}, alone and told");
            assert_eq!(worth(&ticket, &alone, NOW, false), without, "{what}, alone");
            assert_eq!(worth(&ticket, &linked, NOW, true), told, "{what}, told");
            assert_eq!(worth(&ticket, &linked, NOW, false), untold, "{what}");
        }
    }

    proptest! {
        #[test]
        fn without_a_grace_only_time_and_place_count(late_ms: i64, here: bool, scheduled: bool, told: bool) {
            let ticket = ticket(if here { "gw-1" } else { "gw-2" }, late_ms);
            let worth = worth(&ticket, &env(0, scheduled), NOW, told);
            let late_ms = NOW.saturating_sub(ticket.expires_at_ms);
            let expected = match (late_ms >= 0, here) {
                (true, _) => Worth::Expired { late_ms },
                (false, true) => Worth::Good,
                (false, false) => Worth::Ask,
            };
            prop_assert_eq!(worth, expected);
        }
    }
}
