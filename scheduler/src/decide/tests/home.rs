//! Homes that cannot take their users: some are served elsewhere, some wait.

use super::{
    super::{TierKind, decide},
    rng,
    world::{Asked, NOW, Spec, World},
};

fn world(when_down: &str, home: Spec) -> World {
    World {
        gateways: vec![home, Spec::at("eu1", "eu", "a")],
        policy: format!(
            "version = 1\n[[home]]\nregion = \"us\"\nusers = [\"alice\"]\nwhen_down = \"{when_down}\""
        ),
        ..World::default()
    }
}

fn good() -> Spec {
    Spec::at("us1", "us", "a")
}

/// Ways in which a home is down.
fn down() -> [Spec; 4] {
    [
        Spec { ready: false, ..good() },
        Spec { draining: true, ..good() },
        Spec { connections: 100, ..good() },
        Spec { pending: 100, ..good() },
    ]
}

#[test]
fn who_is_served_elsewhere_is_told_so() {
    for (home, elsewhere, first) in
        down().map(|home| (home, true, "eu1")).into_iter().chain([(good(), false, "us1")])
    {
        let world = world("elsewhere", home.clone());
        let (fleet, policy) = (world.fleet(), world.policy());
        let asked = Asked { region: "eu".to_owned(), ..Asked::default() };
        let decision = decide(&fleet, &policy, &asked.request(), NOW, &mut rng(1)).expect("somewhere");
        let id = &*fleet.gateway(decision.ranked.as_slice()[0]).profile.id;
        assert_eq!((decision.home, decision.elsewhere, id), ("us", elsewhere, first), "{home:?}");
    }
}

#[test]
fn who_waits_for_his_home_is_sent_nowhere_else() {
    let asked = Asked { region: "eu".to_owned(), ..Asked::default() };
    for home in down() {
        let world = world("wait", home.clone());
        let error = decide(&world.fleet(), &world.policy(), &asked.request(), NOW, &mut rng(1))
            .map(|decision| decision.pool.to_owned())
            .expect_err("he waits");
        assert_eq!((error.home.as_str(), error.known), ("us", 2), "{home:?}");
        assert!(error.to_string().contains("home region \"us\""), "{error}");
        let others = Asked { user: "bob".to_owned(), ..asked.clone() };
        let bob = decide(&world.fleet(), &world.policy(), &others.request(), NOW, &mut rng(1)).map(|_| ());
        assert_eq!(bob, Ok(()), "nobody else waits");
    }
    let world = world("wait", good());
    let (fleet, policy) = (world.fleet(), world.policy());
    let decision = decide(&fleet, &policy, &asked.request(), NOW, &mut rng(1)).expect("home is there");
    assert_eq!(
        (decision.tier, decision.ranked.as_slice().len()),
        (TierKind::Home, 1),
        "nor is he told of others"
    );
}

#[test]
fn an_operators_pool_stands_before_the_policys() {
    let mut world = world("elsewhere", good());
    world.gateways.push(Spec { pool: "other".to_owned(), ..Spec::at("o1", "us", "a") });
    world.policy.push_str("\n[[gray]]\nid = \"all\"\npool = \"stable\"\npercent = 100");
    let (fleet, policy) = (world.fleet(), world.policy());
    let asked = Asked::default();
    let request = crate::decide::Request { pool: Some("other"), ..asked.request() };
    let decision = decide(&fleet, &policy, &request, NOW, &mut rng(1)).expect("it has room");
    assert_eq!((decision.pool, decision.rule.is_none()), ("other", true));
}
