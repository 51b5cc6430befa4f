//! Whether the gateways that connections are moved to bear it: how long handshakes take there and how many attempts fail. Pure.
//!
//! The limits are absolute, not compared with others: when logic is slow, handshakes are slow everywhere. What is not known is no
//! failure here: a gateway that does not say how clients fare, or had too few of them, is sent whoever is moved. Whoever comes newly
//! is still sent to a gateway that is judged to be bad, so a verdict lasts for as long as they fare badly there; where nobody comes,
//! there soon are too few to judge by. Who is moved goes to the others meanwhile.

use std::collections::{HashMap, VecDeque};

use berth_proto::wire::{GatewayHealth, GatewayReport};

use crate::{guard::Counts, policy::MoveLimits};

/// What is looked at, in milliseconds: as with arrivals.
const WINDOW_MS: i64 = 30_000;

/// Between two samples, in milliseconds: there may be 20,000 gateways, and each sample has a histogram.
const SAMPLE_MS: i64 = 5_000;

/// What gateways said of the handshakes at them.
#[derive(Debug, Default)]
pub(super) struct Targets {
    gateways: HashMap<String, Target>,
    tidied_ms: i64,
}

/// What one gateway counted lately.
#[derive(Debug)]
struct Target {
    boot: u64,
    heard_ms: i64,
    newest: Counts,
    /// When, and what had been counted by then; oldest first, never empty.
    samples: VecDeque<(i64, Counts)>,
}

impl Targets {
    /// Takes in a report that was believed.
    pub(super) fn take(&mut self, report: &GatewayReport, now_ms: i64) {
        // Without a ticket anybody can come and go: who has none could pause every move.
        let counts = |health: &GatewayHealth| Counts { failed: health.connects_lost, ..Counts::of(health) };
        let Some(counts) = report.health.as_ref().map(counts) else {
            self.gateways.remove(&report.gateway_id);
            return;
        };
        let known = self.gateways.get_mut(&report.gateway_id);
        if let Some(known) = known.filter(|known| known.goes_on(report.boot, now_ms)) {
            known.add(counts, now_ms);
            return;
        }
        // All that a new boot counted is of lately; what an older one counted was who knows when.
        let uptime_ms = i64::try_from(report.uptime_ms).unwrap_or(i64::MAX);
        let young = uptime_ms < WINDOW_MS;
        let (since_ms, before) =
            if young { (now_ms - uptime_ms, Counts::default()) } else { (now_ms, counts) };
        let samples = VecDeque::from([(since_ms, before)]);
        let target = Target { boot: report.boot, heard_ms: now_ms, newest: counts, samples };
        self.gateways.insert(report.gateway_id.clone(), target);
    }

    /// Forgets the others, now and then.
    pub(super) fn keep(&mut self, is_there: impl Fn(&str) -> bool, now_ms: i64) {
        if now_ms - self.tidied_ms >= SAMPLE_MS {
            self.tidied_ms = now_ms;
            self.gateways.retain(|gateway_id, _| is_there(gateway_id));
        }
    }

    /// The gateways that nobody should be sent to now, each with the reason.
    pub(super) fn strained(&mut self, limits: &MoveLimits, now_ms: i64) -> HashMap<String, String> {
        let judged = self.gateways.iter_mut().filter_map(|(gateway_id, target)| {
            target.forget(now_ms);
            let reason = target.strained(gateway_id, limits, now_ms)?;
            Some((gateway_id.clone(), reason))
        });
        judged.collect()
    }
}

impl Target {
    /// Whether a report continues what was heard. After a long silence nobody knows when it was that something was counted.
    fn goes_on(&self, boot: u64, now_ms: i64) -> bool {
        self.boot == boot && now_ms - self.heard_ms < WINDOW_MS
    }

    fn add(&mut self, counts: Counts, now_ms: i64) {
        (self.newest, self.heard_ms) = (counts, now_ms);
        if self.samples.back().is_none_or(|(at_ms, _)| now_ms - at_ms >= SAMPLE_MS) {
            self.samples.push_back((now_ms, counts));
        }
        self.forget(now_ms);
    }

    /// One sample that old stays: what has happened since.
    fn forget(&mut self, now_ms: i64) {
        while self.samples.get(1).is_some_and(|(at_ms, _)| now_ms - at_ms >= WINDOW_MS) {
            self.samples.pop_front();
        }
    }

    fn strained(&self, gateway_id: &str, limits: &MoveLimits, now_ms: i64) -> Option<String> {
        let (since_ms, before) = self.samples.front()?;
        // Most gateways had few handshakes of late.
        if self.newest.attempts().saturating_sub(before.attempts()) < limits.min_handshakes.into() {
            return None;
        }
        let (counts, seconds) = (self.newest.minus(before), (now_ms - since_ms) / 1_000);
        let (failed, attempts) = (counts.failed, counts.attempts());
        if failed as f64 > limits.connect_failures * attempts as f64 {
            let allowed = limits.connect_failures * 100.0;
            return Some(format!(
                "{failed} of {attempts} attempts to connect to {gateway_id} failed over {seconds} s; [move] connect_failures allows {allowed}%"
            ));
        }
        let enough = counts.welcomed >= limits.min_handshakes.into();
        let allowed = limits.handshake_p99_ms;
        let p99_ms = counts.handshake_p99_ms().filter(|p99_ms| enough && *p99_ms > f64::from(allowed))?;
        let welcomed = counts.welcomed;
        (allowed > 0).then(|| {
            format!(
                "{gateway_id}'s handshakes take {p99_ms:.0} ms at p99 over {seconds} s ({welcomed} of them); [move] handshake_p99_ms allows {allowed}"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of a gateway that has run for long: so many handshakes of up to 8,192 ms, and so many that failed, since its boot.
    fn told(boot: u64, slow: u64, failed: u64) -> GatewayReport {
        let mut handshake_ms = vec![0; 16];
        handshake_ms[13] = slow;
        let health = GatewayHealth {
            welcomed: slow,
            connects_failed: failed,
            connects_lost: failed,
            handshake_ms,
            ..GatewayHealth::default()
        };
        GatewayReport {
            gateway_id: "gw-2".to_owned(),
            boot,
            uptime_ms: 3_600_000,
            health: Some(health),
            ..GatewayReport::default()
        }
    }

    fn reason(targets: &mut Targets, now_ms: i64) -> Option<String> {
        targets.strained(&MoveLimits::default(), now_ms).remove("gw-2")
    }

    #[test]
    fn slow_handshakes_strain_until_the_window_has_passed() {
        let mut targets = Targets::default();
        targets.take(&told(1, 9_000, 0), 0);
        assert_eq!(reason(&mut targets, 0), None, "counted before this scheduler heard of it");
        targets.take(&told(1, 9_049, 0), 1_000);
        assert_eq!(reason(&mut targets, 1_000), None, "too few");
        targets.take(&told(1, 9_050, 0), 2_000);
        let expected = "gw-2's handshakes take 8151 ms at p99 over 2 s (50 of them); [move] handshake_p99_ms allows 5000";
        assert_eq!(reason(&mut targets, 2_000).as_deref(), Some(expected));
        let not_looked_at = MoveLimits { handshake_p99_ms: 0, ..MoveLimits::default() };
        assert!(targets.strained(&not_looked_at, 2_000).is_empty());
        for seconds in 3..32 {
            targets.take(&told(1, 9_050, 0), seconds * 1_000);
            assert!(reason(&mut targets, seconds * 1_000).is_some(), "{seconds} s");
        }
        for seconds in 32..40 {
            targets.take(&told(1, 9_050, 0), seconds * 1_000);
        }
        assert_eq!(reason(&mut targets, 40_000), None, "resumes by itself");
    }

    #[test]
    fn attempts_that_fail_strain() {
        let mut targets = Targets::default();
        targets.take(&told(1, 0, 0), 0);
        targets.take(&told(1, 0, 60), 1_000);
        let expected =
            "60 of 60 attempts to connect to gw-2 failed over 1 s; [move] connect_failures allows 10%";
        assert_eq!(reason(&mut targets, 1_000).as_deref(), Some(expected));
        let all = MoveLimits { connect_failures: 1.0, ..MoveLimits::default() };
        assert!(targets.strained(&all, 1_000).is_empty());
    }

    #[test]
    fn who_comes_and_goes_without_a_ticket_pauses_nothing() {
        let told = |welcomed, failed, lost| {
            let health = GatewayHealth {
                welcomed,
                connects_failed: failed,
                connects_lost: lost,
                ..GatewayHealth::default()
            };
            GatewayReport { health: Some(health), ..told(1, 0, 0) }
        };
        let mut targets = Targets::default();
        targets.take(&told(0, 0, 0), 0);
        targets.take(&told(100, 200, 0), 1_000);
        assert_eq!(reason(&mut targets, 1_000), None);
        targets.take(&told(100, 260, 60), 2_000);
        assert!(reason(&mut targets, 2_000).is_some(), "60 of 160");
    }

    #[test]
    fn another_boot_counts_from_nothing_and_who_does_not_tell_is_not_judged() {
        let mut targets = Targets::default();
        targets.take(&told(1, 500, 0), 0);
        let young = |uptime_ms, slow| GatewayReport { uptime_ms, ..told(2, slow, 0) };
        targets.take(&young(5_000, 60), 1_000);
        assert!(reason(&mut targets, 1_000).is_some(), "60 since its boot");
        targets.take(&GatewayReport { health: None, ..told(2, 0, 0) }, 2_000);
        assert_eq!(reason(&mut targets, 2_000), None);
        targets.take(&young(60_000, 500), 60_000);
        assert_eq!(reason(&mut targets, 60_000), None, "nobody knows when that was");
        targets.take(&young(61_000, 560), 61_000);
        assert!(reason(&mut targets, 61_000).is_some());
        targets.take(&young(100_000, 900), 100_000);
        assert_eq!(reason(&mut targets, 100_000), None, "it was not heard for long");
        targets.keep(|_| false, 100_000);
        assert!(targets.gateways.is_empty());
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_it_always_ends(steps in prop::collection::vec((0i64..8_000, 0u64..90, 0u64..90), 1..200)) {
            let mut targets = Targets::default();
            let (mut now_ms, mut slow, mut failed) = (0, 0, 0);
            for (pause_ms, more, fewer) in steps {
                (now_ms, slow, failed) = (now_ms + pause_ms, slow + more, failed + fewer);
                targets.take(&told(1, slow, failed), now_ms);
                prop_assert!(targets.gateways["gw-2"].samples.len() <= 7);
                let _ = reason(&mut targets, now_ms);
            }
            let silent_ms = now_ms + WINDOW_MS + SAMPLE_MS;
            let heard = targets.gateways["gw-2"].samples.back().expect("one").0;
            prop_assert!(now_ms - heard < SAMPLE_MS);
            for second in 1..=36 {
                targets.take(&told(1, slow, failed), now_ms + second * 1_000);
            }
            prop_assert_eq!(reason(&mut targets, silent_ms + 1_000), None);
        }
    }
}
