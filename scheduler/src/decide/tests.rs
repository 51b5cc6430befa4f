//! What every decision keeps to, whatever the fleet, the policy and the request.

mod cases;
mod home;
mod world;

use std::collections::HashSet;

use proptest::prelude::*;
use rand::{SeedableRng, rngs::SmallRng};

use self::world::{Asked, NOW, Spec, World, arb_asked, arb_spec, arb_world};
use super::{explain::explain, *};
use crate::fleet::{FORGET_AFTER_MS, Pending, Place, STALE_AFTER_MS, State, TOGETHER_MS};

fn rng(seed: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed)
}

/// Whether the gateway could be assigned, found out the slow way.
fn eligible(fleet: &Fleet, asked: &Asked, index: u32, allow_failed: bool) -> bool {
    let gateway = fleet.gateway(index);
    gateway.state == State::Assignable
        && gateway.connections + gateway.pending() < gateway.capacity
        && gateway.profile.transports.meets(asked.transports)
        && (allow_failed || !asked.failed.iter().any(|id| **id == *gateway.profile.id))
}

fn all_eligible(fleet: &Fleet, asked: &Asked, pool: &str, allow_failed: bool) -> Vec<u32> {
    let all = 0..fleet.gateways.len() as u32;
    all.filter(|index| {
        *fleet.gateway(*index).profile.pool == *pool && eligible(fleet, asked, *index, allow_failed)
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn the_list_has_only_gateways_that_can_take_the_client(world in arb_world(), asked in arb_asked(), seed: u64) {
        let (fleet, policy) = (world.fleet(), world.policy());
        let decided = decide(&fleet, &policy, &asked.request(), NOW, &mut rng(seed));
        let wanted = gray::rule(&policy, &asked.request(), &mut Silent).map_or(STABLE, |(rule, _)| &rule.pool);
        let reachable = |allow_failed| {
            let pools = [wanted, STABLE];
            pools.iter().any(|pool| !all_eligible(&fleet, &asked, pool, allow_failed).is_empty())
        };
        let Ok(decision) = decided else {
            prop_assert!(!reachable(true), "a gateway was left");
            return Ok(());
        };
        let ranked = decision.ranked.as_slice();
        prop_assert!((1..=5).contains(&ranked.len()));
        let distinct: HashSet<_> = ranked.iter().collect();
        prop_assert_eq!(distinct.len(), ranked.len());
        for index in ranked {
            let gateway = fleet.gateway(*index);
            prop_assert_eq!(&*gateway.profile.pool, decision.pool);
            // While anybody else can be reached, nobody whom the client could not reach.
            prop_assert!(eligible(&fleet, &asked, *index, !reachable(false)), "{:?}", gateway);
            let spec = world.spec(&gateway.profile.id);
            prop_assert!(!spec.draining && spec.ready);
            // Whoever is silent is listed only as one of three or more that fell silent together, not for ever.
            let silent = |age_ms: i64| age_ms > STALE_AFTER_MS;
            prop_assert_eq!(gateway.old_load, silent(spec.age_ms));
            let together = |other: &&Spec| {
                silent(other.age_ms) && !other.draining && (other.age_ms - spec.age_ms).abs() <= TOGETHER_MS
            };
            if gateway.old_load {
                prop_assert!(world.gateways.iter().filter(together).count() >= 3);
                prop_assert!(spec.age_ms <= FORGET_AFTER_MS + TOGETHER_MS);
            }
        }
        let fallback = decision.pool != wanted;
        prop_assert_eq!(decision.reason == Reason::Fallback, fallback);
        if fallback {
            prop_assert!(all_eligible(&fleet, &asked, wanted, false).is_empty(), "the pool had room");
        }
    }

    #[test]
    fn the_list_covers_failure_domains(world in arb_world(), asked in arb_asked(), seed: u64) {
        let (fleet, policy) = (world.fleet(), world.policy());
        let Ok(decision) = decide(&fleet, &policy, &asked.request(), NOW, &mut rng(seed)) else { return Ok(()) };
        let ranked = decision.ranked.as_slice();
        let allow_failed = !eligible(&fleet, &asked, ranked[0], false);
        let possible = all_eligible(&fleet, &asked, decision.pool, allow_failed);
        prop_assert_eq!(ranked.len(), possible.len().min(5));
        let region = |index: &u32| fleet.gateway(*index).profile.region.clone();
        let zone = |index: &u32| (region(index), fleet.gateway(*index).profile.zone.clone());
        let home = region(&ranked[0]);
        let zones = |list: &[u32]| {
            list.iter().filter(|index| region(index) == home).map(zone).collect::<HashSet<_>>().len()
        };
        prop_assert!(zones(ranked) >= zones(&possible).min(4), "zones of the first one's region");
        let elsewhere = possible.iter().any(|index| region(index) != home);
        prop_assert_eq!(ranked.iter().any(|index| region(index) != home), elsewhere, "another region");
    }

    #[test]
    fn a_pool_s_tiers_are_a_partition(world in arb_world(), asked in arb_asked(), home in "(eu|us|ap|)") {
        let fleet = world.fleet();
        for pool in &fleet.pools {
            let tiers = tiers(&fleet, pool, &home, &asked.request());
            let mut seen = Vec::new();
            let mut capacity = 0;
            for tier in tiers.as_slice().iter().flatten() {
                seen.extend((0..tier.len()).map(|position| tier.candidate(&fleet, position)));
                capacity += tier.sums().capacity;
            }
            seen.sort_unstable();
            let all = &fleet.candidates[pool.candidates.start as usize..pool.candidates.end as usize];
            prop_assert_eq!(&seen, all, "every candidate in one tier");
            prop_assert_eq!(capacity, pool.sums().capacity);
        }
    }

    #[test]
    fn home_pool_and_tier_are_the_same_on_every_replica(
        mut world in arb_world(), asked in arb_asked(), seeds in any::<[u64; 2]>(), shares in prop::collection::vec(0.0..1.0f64, 30)
    ) {
        for spec in &mut world.gateways {
            spec.pending = 0;
        }
        let (fleet, policy) = (world.fleet(), world.policy());
        let request = asked.request();
        let one = decide(&fleet, &policy, &request, NOW, &mut rng(seeds[0]));
        // Another replica has run for longer, and has assigned much, though it has filled nobody: that is what it would be
        // sent off for.
        world.heard_before = true;
        for (spec, share) in world.gateways.iter_mut().zip(shares) {
            let room = spec.capacity.saturating_sub(spec.connections + 1);
            spec.pending = (room as f64 * share) as u64;
        }
        let elsewhere = world.fleet();
        let other = decide(&elsewhere, &policy, &request, NOW, &mut rng(seeds[1]));
        let what = |decided: &Result<Decision<'_>, NoGateway>| {
            decided.as_ref().ok().map(|d| {
                (d.home.to_owned(), d.pool.to_owned(), d.tier, d.rule.map(|rule| rule.id.clone()), d.reason)
            })
        };
        // STALE depends on which gateway of the tier was drawn, unless all or none of them are.
        let without_stale = |decided| match what(decided) {
            Some((home, pool, tier, rule, _)) if fleet.distrusted => Some((home, pool, tier, rule, Reason::Stale)),
            other => other,
        };
        prop_assert_eq!(without_stale(&one), without_stale(&other));
    }

    #[test]
    fn the_first_is_within_the_bound_if_any_can_be(
        specs in prop::collection::vec(arb_spec(), 1..20), bound in 0.0..1.0f64, seed: u64, rounds in 1..120u64
    ) {
        // One tier: whatever region the gateways are in, the client gives none.
        let world = World { gateways: specs, policy: format!("version = 1\n[load]\nbound = {bound:.3}"), ..World::default() };
        let (fleet, policy) = (world.fleet(), world.policy());
        let asked = Asked::default();
        let (mut rng, mut pending) = (rng(seed), Pending::default());
        for id in 0..rounds {
            let Ok(decision) = decide(&fleet, &policy, &asked.request(), NOW, &mut rng) else { break };
            let first = decision.ranked.as_slice()[0];
            let mean = fleet.pool(STABLE).expect("decided on").sums().mean_score();
            let (score, bounded) = (fleet.gateway(first).score(), fleet.gateway(first).tier_score());
            let least = all_eligible(&fleet, &asked, STABLE, true)
                .iter()
                .map(|index| fleet.gateway(*index).score())
                .fold(f64::INFINITY, f64::min);
            let limit = (1.0 + policy.bound) * mean;
            prop_assert!(bounded <= limit || score <= least, "{} > {} while one has {}", bounded, limit, least);
            pending.assign(&fleet, Place::at_once(first, &format!("u{id}"), id), NOW);
        }
    }

    #[test]
    fn an_explanation_is_of_the_same_decision(world in arb_world(), asked in arb_asked(), seed: u64) {
        let (fleet, policy) = (world.fleet(), world.policy());
        let plain = decide(&fleet, &policy, &asked.request(), NOW, &mut rng(seed));
        let (explained, stages) = explain(&fleet, &policy, &asked.request(), NOW, &mut rng(seed));
        prop_assert_eq!(plain.as_ref().err(), explained.as_ref().err());
        if let (Ok(plain), Ok(explained)) = (plain, explained) {
            prop_assert_eq!(plain.ranked, explained.ranked);
            prop_assert_eq!((plain.pool, plain.tier, plain.reason), (explained.pool, explained.tier, explained.reason));
            let ids: Vec<_> = plain.ranked.as_slice().iter().map(|i| fleet.gateway(*i).profile.id.to_string()).collect();
            let seen: Vec<_> = stages.ranked.iter().map(|seen| seen.gateway_id.clone()).collect();
            prop_assert_eq!(ids, seen);
        }
        prop_assert_eq!(stages.gateways.len(), fleet.gateways.len());
        let allow_failed = stages.pools.last().is_some_and(|pool| pool.allow_failed);
        for seen in &stages.gateways {
            let index = fleet.find(&seen.gateway_id).expect("listed");
            let possible = eligible(&fleet, &asked, index, allow_failed)
                && stages.pools.iter().any(|pool| pool.pool == seen.pool);
            prop_assert_eq!(matches!(seen.dropped, None | Some("tier")), possible, "{:?}", seen);
        }
        for (seen, ranked) in stages.gateways.iter().zip(&stages.ranked) {
            prop_assert_eq!((&seen.gateway_id, seen.dropped), (&ranked.gateway_id, None));
        }
    }

    #[test]
    fn a_growing_percentage_moves_nobody_back(user in "[a-z0-9]{1,12}", low in 0.0..100.0f64, more in 0.0..100.0f64) {
        let world = |percent: f64| World {
            gateways: vec![Spec::of("g1", STABLE), Spec::of("c1", "canary")],
            policy: format!("version = 1\n[[gray]]\nid = \"c\"\npool = \"canary\"\npercent = {percent:.4}"),
            ..World::default()
        };
        let asked = Asked { user, ..Asked::default() };
        let pool = |percent: f64| {
            let world = world(percent);
            let (fleet, policy) = (world.fleet(), world.policy());
            let decision = decide(&fleet, &policy, &asked.request(), NOW, &mut rng(1)).expect("both have room");
            let again = decide(&fleet, &policy, &asked.request(), NOW, &mut rng(2)).expect("both have room");
            assert_eq!(decision.pool, again.pool, "sticky");
            let expected = if decision.pool == STABLE { Reason::Default } else { Reason::Split };
            assert_eq!(decision.reason, if percent >= 100.0 { Reason::TargetingMatch } else { expected });
            decision.pool.to_owned()
        };
        let high = (low + more).min(100.0);
        prop_assert!(pool(low) == STABLE || pool(high) == "canary");
    }

    #[test]
    fn a_stopped_rule_takes_nobody_and_leaves_the_others_as_they_are(mut world in arb_world(), asked in arb_asked()) {
        world.stopped = true;
        let policy = world.policy();
        let (request, mut without) = (asked.request(), policy.clone());
        let stopped = without.gray.pop().expect("two rules");
        prop_assert!(!stopped.sends());
        let taken = |policy: &Policy| gray::rule(policy, &request, &mut Silent).map(|(rule, reason)| (rule.id.clone(), reason));
        prop_assert_eq!(taken(&policy), taken(&without));
    }

    #[test]
    fn a_ramp_takes_whom_its_percentage_takes(mut world in arb_world(), asked in arb_asked(), wall_ms in 0..3_000i64) {
        (world.stopped, world.wall_ms) = (false, wall_ms);
        let policy = world.policy();
        let rule = policy.gray.last().expect("two rules");
        let by_step = match wall_ms { 0..1_000 => rule.percent, 1_000..2_000 => rule.ramp[0].percent, _ => 0.0 };
        let mut plain = policy.clone();
        plain.gray.pop();
        plain.gray.push(GrayRule::splitting(&rule.id, &rule.pool, by_step));
        let pool_by = |policy: &Policy| pool(policy, &asked.request()).to_owned();
        prop_assert_eq!(pool_by(&policy), pool_by(&plain));
    }
}
