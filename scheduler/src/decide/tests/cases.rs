//! Single decisions, and how load spreads over many of them.

use rand::{Rng, rngs::SmallRng};

use super::{
    super::{explain::explain, *},
    rng,
    world::{Asked, NOW, Spec, World, near_in_order},
};
use crate::fleet::{FORGET_AFTER_MS, Pending, Place};

/// The tier and the gateways, by id, that a world decides on.
fn decided(world: &World, asked: &Asked, seed: u64) -> (Reason, String, TierKind, Vec<String>) {
    let (fleet, policy) = (world.fleet(), world.policy());
    let decision = decide(&fleet, &policy, &asked.request(), NOW, &mut rng(seed)).expect("there is room");
    let ids = decision.ranked.as_slice().iter().map(|index| fleet.gateway(*index).profile.id.to_string());
    (decision.reason, decision.pool.to_owned(), decision.tier, ids.collect())
}

fn three_regions() -> Vec<Spec> {
    let mut gateways = Vec::new();
    for region in ["ap", "eu", "us"] {
        for zone in ["a", "b"] {
            for n in 1..=2 {
                gateways.push(Spec::at(&format!("{region}-{zone}{n}"), region, zone));
            }
        }
    }
    gateways
}

#[test]
fn nearest_first() {
    let mut world = World { gateways: three_regions(), ..World::default() };
    let at = |region: &str, zone: &str| Asked {
        region: region.to_owned(),
        zone: zone.to_owned(),
        ..Asked::default()
    };
    for seed in 0..50 {
        let (reason, pool, tier, ids) = decided(&world, &at("eu", "b"), seed);
        assert_eq!((reason, pool.as_str(), tier), (Reason::Default, "stable", TierKind::Zone));
        assert!(ids[0].starts_with("eu-b") && ids[1].starts_with("eu-a"), "{ids:?}");
        assert_eq!(decided(&world, &at("eu", ""), seed).2, TierKind::Region);
        assert_eq!(decided(&world, &at("mars", ""), seed).2, TierKind::Rest);
        let near = Asked { near: near_in_order(&["ap", "us"]), ..at("", "") };
        let (_, _, tier, ids) = decided(&world, &near, seed);
        assert_eq!(tier, TierKind::Near);
        assert!(ids[0].starts_with("ap") && ids[2].starts_with("us"), "{ids:?}");
    }
    world.policy = "version = 1\n[[home]]\nregion = \"us\"\nusers = [\"alice\"]".to_owned();
    let (_, _, tier, ids) = decided(&world, &at("eu", "b"), 1);
    assert_eq!(tier, TierKind::Home);
    assert!(ids[0].starts_with("us") && ids[2].starts_with("eu"), "then where the client is: {ids:?}");
    assert_eq!(decided(&world, &at("us", "b"), 1).2, TierKind::Zone);
}

#[test]
fn a_tier_at_spill_at_spills_into_the_next() {
    let mut gateways = three_regions();
    let asked = Asked { region: "eu".to_owned(), zone: "a".to_owned(), ..Asked::default() };
    let load = |gateways: &mut Vec<Spec>, prefix: &str, connections| {
        for spec in gateways.iter_mut().filter(|spec| spec.id.starts_with(prefix)) {
            spec.connections = connections;
        }
    };
    let tier =
        |gateways: &[Spec]| decided(&World { gateways: gateways.to_vec(), ..World::default() }, &asked, 3).2;
    load(&mut gateways, "eu-a", 84);
    assert_eq!(tier(&gateways), TierKind::Zone);
    load(&mut gateways, "eu-a", 85);
    assert_eq!(tier(&gateways), TierKind::Region, "85% is spill_at");
    load(&mut gateways, "eu-b", 90);
    assert_eq!(tier(&gateways), TierKind::Rest);
    let world = World { gateways: gateways.clone(), ..World::default() };
    for seed in 0..50 {
        let (_, _, _, ids) = decided(&world, &asked, seed);
        assert!(!ids[0].starts_with("eu"), "the rest is without the tiers before it: {ids:?}");
    }
    load(&mut gateways, "ap", 99);
    load(&mut gateways, "us", 99);
    assert_eq!(tier(&gateways), TierKind::Zone, "all spill: the nearest with room");
    load(&mut gateways, "eu-a", 100);
    assert_eq!(tier(&gateways), TierKind::Region);
}

#[test]
fn tiers_that_spill_are_left_in_the_order_of_their_distance() {
    // Not in the order of names, and the first of them is not where any gateway is.
    let near = near_in_order(&["mars", "us", "eu", "ap"]);
    let asked = Asked { near: near.clone(), ..Asked::default() };
    let mut gateways = three_regions();
    for expected in ["us", "eu", "ap"] {
        let world = World { gateways: gateways.clone(), ..World::default() };
        let (_, _, tier, ids) = decided(&world, &asked, 4);
        assert!(tier == TierKind::Near && ids[0].starts_with(expected), "{expected}: {ids:?}");
        gateways.iter_mut().filter(|spec| spec.region == expected).for_each(|spec| spec.connections = 90);
    }
    let world = World {
        gateways: three_regions(),
        policy: "version = 1\n[[home]]\nregion = \"ap\"\nusers = [\"alice\"]".to_owned(),
        ..World::default()
    };
    let at_home = Asked { region: "eu".to_owned(), near, ..Asked::default() };
    let (fleet, policy) = (world.fleet(), world.policy());
    let tiers = tiers(&fleet, fleet.pool("stable").expect("reported"), "ap", &at_home.request());
    let kinds: Vec<_> = tiers.as_slice().iter().flatten().map(|tier| tier.kind).collect();
    assert_eq!(kinds, [TierKind::Home, TierKind::Region, TierKind::Near, TierKind::Rest], "no region twice");
    let (_, seen) = explain(&fleet, &policy, &at_home.request(), NOW, &mut rng(1));
    assert_eq!((seen.tiers[0].distance_ms, seen.tiers[0].distance_by), (Some(4), Some("measured")));
}

#[test]
fn rules_decide_on_pool_and_reason() {
    let world = World {
        gateways: vec![Spec::of("g1", "stable"), Spec::of("c1", "canary"), Spec::of("n1", "next")],
        policy: "version = 7\n[[gray]]\nid = \"named\"\npool = \"next\"\nusers = [\"bob\"]\n\
                 [[gray]]\nid = \"ios\"\npool = \"canary\"\npercent = 89.65\nsalt = \"canary-ios\"\nmatch.platforms = [\"ios\"]\n\
                 [[gray]]\nid = \"web\"\npool = \"canary\"\npercent = 100\nmatch.platforms = [\"web\"]"
            .to_owned(),
        ..World::default()
    };
    let of = |user: &str, platform| Asked { user: user.to_owned(), platform, ..Asked::default() };
    let case = |asked: Asked| {
        let (reason, pool, _, ids) = decided(&world, &asked, 5);
        (reason, pool, ids.len())
    };
    assert_eq!(case(of("bob", None)), (Reason::TargetingMatch, "next".to_owned(), 1));
    assert_eq!(case(of("bob", Some(crate::policy::Platform::Web))).1, "next", "the first rule wins");
    // alice's bucket under canary-ios is 8964: in below 89.65%.
    assert_eq!(
        case(of("alice", Some(crate::policy::Platform::Ios))),
        (Reason::Split, "canary".to_owned(), 1)
    );
    assert_eq!(case(of("alice", Some(crate::policy::Platform::Web))).0, Reason::TargetingMatch);
    assert_eq!(case(of("alice", None)), (Reason::Default, "stable".to_owned(), 1));
    let narrower = World { policy: world.policy.replace("89.65", "89.64"), ..world.clone() };
    let ios = of("alice", Some(crate::policy::Platform::Ios));
    assert_eq!(decided(&narrower, &ios, 5).0, Reason::Default, "8964 is not below 8964");
}

#[test]
fn a_pool_without_room_falls_back_visibly() {
    let policy = "version = 1\n[[gray]]\nid = \"c\"\npool = \"canary\"\npercent = 100".to_owned();
    let with = |canary: Vec<Spec>| World {
        gateways: canary.into_iter().chain([Spec::of("g1", "stable")]).collect(),
        policy: policy.clone(),
        ..World::default()
    };
    let canary = Spec::of("c1", "canary");
    let cases = [
        vec![],
        vec![Spec { connections: 100, ..canary.clone() }],
        vec![Spec { pending: 100, ..canary.clone() }],
        vec![Spec { draining: true, ..canary.clone() }],
        vec![Spec { ready: false, ..canary.clone() }],
    ];
    for case in cases {
        let (reason, pool, _, ids) = decided(&with(case.clone()), &Asked::default(), 1);
        assert_eq!(
            (reason, pool.as_str(), ids),
            (Reason::Fallback, "stable", vec!["g1".to_owned()]),
            "{case:?}"
        );
    }
    let failed = Asked { failed: vec!["c1".to_owned()], ..Asked::default() };
    assert_eq!(decided(&with(vec![canary.clone()]), &failed, 1).0, Reason::Fallback);
    let all_failed = Asked { failed: vec!["c1".to_owned(), "g1".to_owned()], ..Asked::default() };
    assert_eq!(decided(&with(vec![canary]), &all_failed, 1).1, "canary", "nobody else is left");
}

#[test]
fn nobody_is_no_gateway() {
    let world = World::default();
    let (fleet, policy) = (world.fleet(), world.policy());
    let error = decide(&fleet, &policy, &Asked::default().request(), NOW, &mut rng(1)).expect_err("empty");
    assert_eq!(error, NoGateway { pool: "stable".to_owned(), home: String::new(), known: 0, assignable: 0 });
    let world = World { gateways: vec![Spec::of("c1", "canary")], ..World::default() };
    let (fleet, policy) = (world.fleet(), world.policy());
    let error =
        decide(&fleet, &policy, &Asked::default().request(), NOW, &mut rng(1)).expect_err("no stable");
    assert_eq!((error.known, error.assignable), (1, 1), "a gray pool takes nobody whom no rule sends there");
}

#[test]
fn old_load_is_said() {
    let all_silent = |age_ms| World {
        gateways: (0..4).map(|n| Spec { age_ms, ..Spec::of(&format!("g{n}"), "stable") }).collect(),
        ..World::default()
    };
    assert_eq!(decided(&all_silent(1_500), &Asked::default(), 1).0, Reason::Default);
    assert_eq!(decided(&all_silent(1_501), &Asked::default(), 1).0, Reason::Stale);
    assert_eq!(decided(&all_silent(FORGET_AFTER_MS), &Asked::default(), 1).0, Reason::Stale);
    let gone = all_silent(FORGET_AFTER_MS + 1);
    let (fleet, policy) = (gone.fleet(), gone.policy());
    let none = decide(&fleet, &policy, &Asked::default().request(), NOW, &mut rng(1));
    assert_eq!(none.expect_err("no load is that old").known, 0);
    // A snapshot that nobody renews is old, whatever its gateways were then.
    let world = all_silent(0);
    let (fleet, policy) = (world.fleet(), world.policy());
    let late = decide(&fleet, &policy, &Asked::default().request(), NOW + 1_501, &mut rng(1)).expect("room");
    assert_eq!(late.reason, Reason::Stale);
}

#[test]
fn an_explanation_tells_every_stage() {
    let world = World {
        gateways: vec![
            Spec::at("g1", "eu", "a"),
            Spec { draining: true, ..Spec::at("g2", "eu", "a") },
            Spec { connections: 50, cpu: Some(90), ..Spec::at("g3", "eu", "b") },
            Spec::of("c1", "canary"),
        ],
        policy:
            "version = 1\n[[gray]]\nid = \"r\"\npool = \"canary\"\npercent = 50\nmatch.platforms = [\"ios\"]"
                .to_owned(),
        ..World::default()
    };
    let (fleet, policy) = (world.fleet(), world.policy());
    let asked = Asked { region: "eu".to_owned(), failed: vec!["g1".to_owned()], ..Asked::default() };
    let (decision, seen) = explain(&fleet, &policy, &asked.request(), NOW, &mut rng(1));
    assert_eq!(decision.expect("g3").pool, "stable");
    assert_eq!((seen.admission.known, seen.admission.assignable), (4, 3));
    assert_eq!((seen.rules[0].verdict, seen.rules[0].mismatch), ("mismatch", Some("platforms")));
    assert_eq!(
        (seen.tiers[0].kind, seen.tiers[0].region.as_str(), seen.tiers[0].verdict),
        ("region", "eu", "chosen")
    );
    let dropped: Vec<_> = seen.gateways.iter().map(|g| (g.gateway_id.as_str(), g.dropped)).collect();
    let expected = [("g3", None), ("g1", Some("failed")), ("g2", Some("draining")), ("c1", Some("pool"))];
    assert_eq!(dropped, expected);
    let first = &seen.gateways[0];
    assert_eq!((first.score, first.load, first.worst), (0.76, 76, "cpu"));
    let told: Vec<_> =
        first.dimensions.iter().map(|seen| (seen.dimension, seen.utilisation, seen.pressure)).collect();
    assert_eq!(told, [("connections", 0.5, 0.5), ("cpu", 0.9, 0.8)]);
    let listed: Vec<_> = seen.ranked.iter().map(|r| (r.gateway_id.as_str(), r.domain)).collect();
    assert_eq!(listed, [("g3", "first")]);
}

#[test]
fn an_explanation_of_a_second_try_allows_what_failed() {
    let ids: Vec<_> = (0..7).map(|n| format!("g{n}")).collect();
    let gateways = ids.iter().map(|id| Spec::of(id, "stable")).collect();
    let world = World { gateways, ..World::default() };
    let (fleet, policy) = (world.fleet(), world.policy());
    let asked = Asked { failed: ids, ..Asked::default() };
    let (decision, seen) = explain(&fleet, &policy, &asked.request(), NOW, &mut rng(1));
    assert!(decision.is_ok() && seen.pools.last().expect("tried twice").allow_failed);
    let dropped: Vec<_> = seen.gateways.iter().map(|seen| seen.dropped).collect();
    assert_eq!(dropped, [None; 7], "five were taken, and the others could have been");
}

#[test]
fn an_explanation_of_a_large_fleet_lists_what_was_chosen() {
    let aside = (0..1_200).map(|n| Spec::of(&format!("a{n}"), "aside"));
    let world = World {
        gateways: aside
            .chain([Spec::at("s1", "eu", ""), Spec::at("s2", "us", ""), Spec::at("s3", "us", "")])
            .chain((4..12).map(|n| Spec::at(&format!("s{n}"), "us", "")))
            .collect(),
        ..World::default()
    };
    let (fleet, policy) = (world.fleet(), world.policy());
    let asked = Asked { region: "eu".to_owned(), ..Asked::default() };
    let (decision, seen) = explain(&fleet, &policy, &asked.request(), NOW, &mut rng(1));
    let ranked = decision.expect("room").ranked;
    assert_eq!((seen.gateways.len(), seen.gateways_not_listed), (1_000, 211));
    let ids = ranked.as_slice().iter().map(|index| fleet.gateway(*index).profile.id.to_string());
    let listed: Vec<_> = seen.gateways.iter().map(|seen| seen.gateway_id.clone()).collect();
    assert_eq!(listed[..5], ids.collect::<Vec<_>>(), "s1 of the client's region, then others for the list");
    assert_eq!(listed[0], "s1");
    for seen in &seen.gateways {
        let expected = match (listed[..5].contains(&seen.gateway_id), seen.pool.as_str()) {
            (true, _) => None,
            (false, "stable") => Some("tier"),
            (false, _) => Some("pool"),
        };
        assert_eq!(seen.dropped, expected, "{}", seen.gateway_id);
    }
}

/// Assigns `clients` one after another without any report in between, and says how many each gateway got.
fn assign_many(world: &World, clients: u64, rng: &mut SmallRng) -> Vec<u64> {
    let (fleet, policy) = (world.fleet(), world.policy());
    let mut pending = Pending::default();
    for id in 0..clients {
        let decision = decide(&fleet, &policy, &Asked::default().request(), NOW, rng).expect("room");
        pending.assign(&fleet, Place::at_once(decision.ranked.as_slice()[0], &format!("u{id}"), id), NOW);
    }
    fleet.gateways.iter().map(crate::fleet::Gateway::pending).collect()
}

#[test]
fn clients_between_two_reports_spread_evenly() {
    let spec = |n| Spec { capacity: 10_000, ..Spec::of(&format!("g{n}"), "stable") };
    let world = World { gateways: (0..100).map(spec).collect(), ..World::default() };
    let got = assign_many(&world, 20_000, &mut rng(7));
    let (least, most) = (got.iter().min().expect("100"), got.iter().max().expect("100"));
    assert!(*most <= 250 && *least >= 150, "mean 200, bound 25%: {least} to {most}");
}

#[test]
fn a_gateway_that_has_just_started_is_not_flooded() {
    let mut gateways: Vec<_> = (0..9)
        .map(|n| Spec { capacity: 10_000, connections: 1_000, ..Spec::of(&format!("g{n}"), "stable") })
        .collect();
    gateways.push(Spec { capacity: 10_000, uptime_ms: 0, ..Spec::of("new", "stable") });
    let got = assign_many(&World { gateways, ..World::default() }, 1_000, &mut rng(7));
    let new = got[9];
    assert!(new <= 150, "a tenth of what the others hold, not all of the thousand: {new}");
    assert!(new >= 50, "but not nothing: {new}");
}

#[test]
fn a_gateway_without_cpu_gets_less_and_is_not_refused() {
    let spec =
        |n: u64, cpu| Spec { capacity: 1_000, connections: 200, cpu, ..Spec::of(&format!("g{n}"), "stable") };
    let busy = spec(9, Some(80));
    let calm = (0..9).map(|n| spec(n, Some(10)));
    let got = assign_many(
        &World { gateways: calm.chain([busy.clone()]).collect(), ..World::default() },
        1_000,
        &mut rng(7),
    );
    assert_eq!(got[9], 0, "three times the mean: {got:?}");
    let alone = World { gateways: vec![Spec { cpu: Some(300), ..busy }], ..World::default() };
    assert_eq!(assign_many(&alone, 100, &mut rng(7)), [100], "only connections run out");
}

#[test]
fn one_sick_gateway_neither_moves_its_region_nor_loosens_the_bound() {
    // A hung worker makes a gateway count four times. Its nine neighbours are half full, one of them nearly.
    let spec = |n: u64, connections| Spec {
        capacity: 1_000,
        connections,
        cpu: Some(10),
        ..Spec::at(&format!("g{n}"), "eu", "")
    };
    let mut gateways: Vec<_> = (0..8).map(|n| spec(n, 500)).collect();
    gateways.push(spec(8, 760));
    gateways.push(Spec { cpu: Some(300), ..spec(9, 500) });
    let far = Spec { capacity: 10_000, ..Spec::at("z", "us", "") };
    let asked = Asked { region: "eu".to_owned(), ..Asked::default() };
    let sick_and_far =
        World { gateways: gateways.iter().cloned().chain([far]).collect(), ..World::default() };
    assert_eq!(decided(&sick_and_far, &asked, 3).2, TierKind::Region, "nine serve well");
    let got = assign_many(&World { gateways, ..World::default() }, 300, &mut rng(7));
    assert_eq!((got[8], got[9]), (0, 0), "above 1.25 x the mean, and the last choice: {got:?}");
}

#[test]
fn an_overloaded_tier_does_not_herd() {
    let gateways = (0..10)
        .map(|n| Spec { capacity: 1_000, cpu: Some(150 + n), ..Spec::of(&format!("g{n}"), "stable") })
        .collect();
    let got = assign_many(&World { gateways, ..World::default() }, 500, &mut rng(7));
    assert!(got.iter().all(|count| *count <= 250), "not all to the least overloaded: {got:?}");
}

#[test]
fn a_tier_short_of_cpu_spills_as_one_short_of_connections() {
    let tier = |cpu| {
        let gateways = vec![Spec { cpu: Some(cpu), ..Spec::at("near", "eu", "") }, Spec::at("far", "us", "")];
        let asked = Asked { region: "eu".to_owned(), ..Asked::default() };
        decided(&World { gateways, ..World::default() }, &asked, 3).2
    };
    assert_eq!((tier(92), tier(93)), (TierKind::Region, TierKind::Rest));
}

#[test]
fn when_most_fall_silent_they_go_on_and_are_no_better_than_the_rest() {
    // Seven of ten were empty when they were last heard of, a minute ago; who is heard of is half full.
    let gateways = (0..10)
        .map(|n| {
            let (age_ms, connections) = if n < 7 { (60_000, 0) } else { (0, 500) };
            Spec { capacity: 1_000, age_ms, connections, ..Spec::of(&format!("g{n}"), "stable") }
        })
        .collect();
    let world = World { gateways, ..World::default() };
    let got = assign_many(&world, 1_000, &mut rng(7));
    let silent: u64 = got[..7].iter().sum();
    assert!((600..=800).contains(&silent), "their share, not everybody: {got:?}");
    let reasons: std::collections::HashSet<_> = (0..50)
        .map(|seed| decided(&world, &Asked::default(), seed))
        .map(|found| (found.3[0].as_str() < "g7", found.0))
        .collect();
    assert_eq!(reasons, [(true, Reason::Stale), (false, Reason::Default)].into(), "and it is said of whom");
}

#[test]
fn capacity_is_what_counts_not_gateways() {
    let mut gateways: Vec<_> =
        (0..4).map(|n| Spec { capacity: 1_000, ..Spec::of(&format!("s{n}"), "stable") }).collect();
    gateways.push(Spec { capacity: 4_000, ..Spec::of("large", "stable") });
    let got = assign_many(&World { gateways, ..World::default() }, 4_000, &mut rng(7));
    assert!((1_500..=2_500).contains(&got[0]), "half of the capacity, about half of the clients: {got:?}");
}

#[test]
fn a_tier_in_which_most_are_no_choice_does_not_herd() {
    // One in ten offers TCP, so that four pairs often hold none; the one with the fewest connections must not get all.
    let spec = |n: u64| Spec {
        transports: if n.is_multiple_of(10) { vec!["ws", "tcp"] } else { vec!["ws"] },
        connections: n / 10,
        ..Spec::of(&format!("g{n}"), "stable")
    };
    let world = World {
        gateways: (0..100).map(spec).collect(),
        policy: "version = 1\n[load]\nbound = 100".to_owned(),
        ..World::default()
    };
    let (fleet, policy) = (world.fleet(), world.policy());
    let asked = Asked { transports: Transports::TCP, ..Asked::default() };
    let mut rng = rng(5);
    let mut got = [0; 100];
    for _ in 0..2_000 {
        let decision = decide(&fleet, &policy, &asked.request(), NOW, &mut rng).expect("ten can");
        got[decision.ranked.as_slice()[0] as usize] += 1;
    }
    let least = got[fleet.find("g0").expect("reported") as usize];
    assert!(least <= 600, "two of ten are drawn, so one in five, not {least} of 2,000");
    assert_eq!(got.iter().filter(|count| **count > 0).count(), 10, "everybody who can: {got:?}");
}

#[test]
fn stale_reports_do_not_herd() {
    // Three replicas, none of which knows the others' assignments; reports every 500 ms; 200 clients arrive in between.
    let spec = |n| Spec { capacity: 2_000, ..Spec::of(&format!("g{n}"), "stable") };
    let mut world = World { gateways: (0..20).map(spec).collect(), ..World::default() };
    let mut rng = rng(11);
    for _ in 0..40 {
        let mut got = [0; 20];
        for _ in 0..3 {
            let clients = rng.random_range(50..80);
            for (total, new) in got.iter_mut().zip(assign_many(&world, clients, &mut rng)) {
                *total += new;
            }
        }
        // The fleet lists gateways by id; the world does not.
        let fleet = world.fleet();
        for spec in &mut world.gateways {
            spec.connections += got[fleet.find(&spec.id).expect("reported") as usize];
        }
    }
    let most = world.gateways.iter().map(|spec| spec.connections).max().expect("20");
    let sum: u64 = world.gateways.iter().map(|spec| spec.connections).sum();
    assert!(most * 20 <= sum * 13 / 10, "the fullest has {most} of {sum}: more than 1.3 x the mean");
}
