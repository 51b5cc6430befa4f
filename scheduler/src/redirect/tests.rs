//! What gateways are answered about clients that they are to move, or that came to the wrong place.

use berth_proto::{
    carry::Record,
    ticket::{TicketSigner, TicketVerifier},
    wire::{Drain, GatewayHealth, GatewayLoad, GatewayReport, MovePurpose, RedirectAnswer, RedirectAsk},
};

use super::redirect;
use crate::{
    testing::{FakeGateway, Fixture, TICKET_KEY, config, eventually, report},
    tests::{answer_to, redirect_ask},
};

fn at(id: &str, pool: &str, region: &str) -> GatewayReport {
    GatewayReport { pool: pool.to_owned(), region: region.to_owned(), ..report(id) }
}

fn asks(purpose: MovePurpose) -> RedirectAsk {
    RedirectAsk { purpose: purpose.into(), ..redirect_ask() }
}

fn first(answer: &RedirectAnswer) -> &str {
    answer.endpoints.first().map_or("", |endpoint| &endpoint.gateway_id)
}

#[tokio::test]
async fn whoever_belongs_elsewhere_is_moved_and_the_others_stay() {
    let policy = r#"
version = 1
[[home]]
region = "us"
users = ["uma"]
[[gray]]
id = "canary"
pool = "canary"
users = ["alice"]
"#;
    let (fixture, _path, _directory) = Fixture::with_policy(policy).await;
    let eu = fixture.gateway(at("eu", "stable", "eu")).await;
    let us = fixture.gateway(at("us", "stable", "us")).await;
    let canary = fixture.gateway(at("canary", "canary", "eu")).await;
    let answer = async |gateway: &FakeGateway, purpose, user: &str| {
        let question = RedirectAsk { user_id: user.to_owned(), ..asks(purpose) };
        answer_to(gateway, question).await
    };
    for purpose in [MovePurpose::Sweep, MovePurpose::Home] {
        for (gateway, user, expected) in [
            (&eu, "alice", "canary"),
            (&canary, "alice", ""),
            (&eu, "uma", "us"),
            (&us, "uma", ""),
            (&eu, "bob", ""),
            (&us, "bob", ""),
            (&canary, "bob", "eu"),
        ] {
            let answer = answer(gateway, purpose, user).await;
            assert_eq!((first(&answer), answer.stay), (expected, expected.is_empty()), "{user} {purpose:?}");
        }
    }
    // Where home is down, nobody is sent to and fro; where the canary has no room, whoever is there stays.
    us.report(GatewayReport { ready: false, ..at("us", "stable", "us") });
    canary.report(GatewayReport { connections: 1_000, ..at("canary", "canary", "eu") });
    eventually("both are known", || {
        let fleet = fixture.scheduler.core.fleet.load();
        fleet.candidates.len() == 1
    })
    .await;
    assert!(answer(&eu, MovePurpose::Sweep, "uma").await.stay);
    assert!(answer(&eu, MovePurpose::Sweep, "alice").await.stay, "she would be sent back here");
    assert!(answer(&canary, MovePurpose::Sweep, "alice").await.stay);
}

#[tokio::test]
async fn who_is_in_a_pool_by_the_region_that_he_named_stays_until_its_rule_takes_him_no_more() {
    let policy = r#"
version = 1
[[gray]]
id = "canary"
pool = "canary"
percent = 100
match = { regions = ["eu"], platforms = ["ios"] }
"#;
    let (fixture, _path, _directory) = Fixture::with_policy(policy).await;
    fixture.gateway(at("stable", "stable", "")).await;
    let canary = fixture.gateway(at("canary", "canary", "")).await;
    for (platform, moved) in [("ios", false), ("android", true)] {
        let question = RedirectAsk { platform: platform.to_owned(), ..asks(MovePurpose::Sweep) };
        let answer = answer_to(&canary, question).await;
        assert_eq!((first(&answer), answer.stay), (if moved { "stable" } else { "" }, !moved), "{platform}");
    }
}

#[tokio::test]
async fn whom_an_earlier_rule_takes_out_of_his_pool_is_moved() {
    let rule = |id: &str, pool: &str, whom: &str| format!("[[gray]]\nid = {id:?}\npool = {pool:?}\n{whom}\n");
    let canary = rule("canary", "canary", "percent = 100");
    let out = rule("out", "stable", "users = [\"alice\"]");
    let out_of_eu = rule("out", "stable", "percent = 100\nmatch = { regions = [\"eu\"] }");
    let of_eu = rule("canary", "canary", "percent = 100\nmatch = { regions = [\"eu\"] }");
    let all = rule("rest", "stable", "percent = 100");
    let ios = rule("ios", "canary", "percent = 100\nmatch = { platforms = [\"ios\"] }");
    for (rules, at, moved_to) in [
        ([&out, &canary], "canary", "stable"),
        ([&canary, &out], "canary", ""),
        ([&out_of_eu, &canary], "canary", ""),
        ([&out, &of_eu], "canary", "stable"),
        ([&out_of_eu, &of_eu], "canary", "stable"),
        ([&of_eu, &out_of_eu], "canary", ""),
        ([&ios, &all], "stable", "canary"),
    ] {
        let policy = format!("version = 1\n{}{}", rules[0], rules[1]);
        let (fixture, _path, _directory) = Fixture::with_policy(&policy).await;
        let stable = fixture.gateway(self::at("stable", "stable", "")).await;
        let canary = fixture.gateway(self::at("canary", "canary", "")).await;
        let gateway = if at == "canary" { &canary } else { &stable };
        for purpose in [MovePurpose::Sweep, MovePurpose::Home] {
            let answer = answer_to(gateway, asks(purpose)).await;
            assert_eq!(
                (first(&answer), answer.stay),
                (moved_to, moved_to.is_empty()),
                "{policy} {purpose:?}"
            );
        }
    }
}

#[tokio::test]
async fn what_is_one_clients_own_trouble_pauses_no_drain() {
    let fixture = Fixture::start(config()).await;
    let leaving = fixture.gateway(report("gw-1")).await;
    leaving.report(GatewayReport { draining: true, ..report("gw-1") });
    let mut only_ws = report("gw-2");
    only_ws.endpoints.retain(|endpoint| endpoint.transport == "ws");
    let other = fixture.gateway(only_ws.clone()).await;
    eventually("it drains", || fixture.scheduler.core.fleet.load().candidates.len() == 1).await;
    for purpose in [MovePurpose::Drain, MovePurpose::Rebalance, MovePurpose::Sweep] {
        let expired = RedirectAsk { auth_expires_at_ms: 1, ..asks(purpose) };
        assert!(answer_to(&leaving, expired).await.stay, "his gateway closes him, {purpose:?}");
    }
    let over = |transport: &str| RedirectAsk { transport: transport.to_owned(), ..asks(MovePurpose::Drain) };
    assert_eq!(first(&answer_to(&leaving, over("ws")).await), "gw-2");
    let answer = answer_to(&leaving, over("tcp")).await;
    assert!(answer.stay && answer.hold.is_empty(), "{answer:?}");
    other.report(GatewayReport { connections: 1_000, ..only_ws });
    eventually("it is full", || fixture.scheduler.core.fleet.load().candidates.is_empty()).await;
    assert!(answer_to(&leaving, over("tcp")).await.hold.contains("no gateway"));
}

#[tokio::test]
async fn a_place_is_kept_for_who_is_moved_and_a_busy_gateway_gets_nobody() {
    let fixture = Fixture::start(config()).await;
    let leaving = fixture.gateway(report("gw-1")).await;
    let other = fixture.gateway(report("gw-2")).await;
    let question = RedirectAsk { retry_after_ms: 60_000, ..asks(MovePurpose::Drain) };
    let asked_ms = fixture.scheduler.core.clock.wall_ms();
    let answer = answer_to(&leaving, question.clone()).await;
    assert_eq!(first(&answer), "gw-2", "not back to where it leaves");
    let lives_ms = answer.ticket_expires_at_ms - asked_ms;
    assert!(lives_ms >= fixture.scheduler.core.ticket_ttl_ms + 60_000, "he is told to wait: {lives_ms}");
    let verifier = TicketVerifier::new(&[TicketSigner::from_secret(TICKET_KEY).public_key()]);
    let ticket = verifier.genuine(&answer.ticket).expect("genuine");
    assert!(!ticket.gateway_ids.is_empty() && !ticket.elsewhere);
    assert_eq!((ticket.platform.as_str(), ticket.app_version.as_str()), ("ios", "7.3.1"));
    assert_eq!(fixture.scheduler.core.pending_len(), 1);

    let busy = GatewayLoad { handshakes_per_second: 95, ..GatewayLoad::default() };
    other.report(GatewayReport { handshakes_per_second_capacity: 100, load: Some(busy), ..report("gw-2") });
    eventually("its load is known", || {
        let fleet = fixture.scheduler.core.fleet.load();
        fleet.find("gw-2").is_some_and(|index| super::busy(&fleet, index).is_some())
    })
    .await;
    let answer = answer_to(&leaving, question).await;
    assert!(
        answer.endpoints.is_empty() && answer.hold.contains("gw-2 is at 95% of the handshakes"),
        "{answer:?}"
    );
    assert_eq!(fixture.metric(r#"berth_scheduler_redirects_total{outcome="held"}"#), 1.0);
}

#[tokio::test]
async fn nobody_is_moved_to_where_handshakes_are_slow() {
    let fixture = Fixture::start(config()).await;
    let leaving = fixture.gateway(report("gw-1")).await;
    let other = fixture.gateway(report("gw-2")).await;
    let strained = || fixture.scheduler.core.moving.strained("gw-2").is_some();
    assert_eq!(first(&answer_to(&leaving, asks(MovePurpose::Drain)).await), "gw-2", "it does not tell");
    for welcomed in [7, 207] {
        let mut handshake_ms = vec![0; 16];
        handshake_ms[13] = welcomed;
        let health = GatewayHealth { welcomed, handshake_ms, ..GatewayHealth::default() };
        other.report(GatewayReport { health: Some(health), ..report("gw-2") });
    }
    eventually("its health is known", strained).await;
    for purpose in [MovePurpose::Drain, MovePurpose::Sweep] {
        // A sweep takes him to the pool that is his.
        if purpose == MovePurpose::Sweep {
            leaving.report(at("gw-1", "canary", "eu"));
            let fleet = || fixture.scheduler.core.fleet.load();
            let pool = || fleet().find("gw-1").map(|index| fleet().gateway(index).profile.pool.to_string());
            eventually("it is of another pool", || pool().as_deref() == Some("canary")).await;
        }
        let answer = answer_to(&leaving, asks(purpose)).await;
        let says = answer.hold.contains("gw-2's handshakes take") && answer.hold.contains("at p99");
        assert!(answer.endpoints.is_empty() && says, "{purpose:?} {answer:?}");
    }
    assert_eq!(fixture.metric("berth_scheduler_move_targets_strained"), 1.0);
    for purpose in [MovePurpose::Stray, MovePurpose::Home] {
        assert_eq!(first(&answer_to(&leaving, asks(purpose)).await), "gw-2", "{purpose:?}");
    }
    other.report(report("gw-2"));
    eventually("it does not tell", || !strained()).await;
    assert_eq!(first(&answer_to(&leaving, asks(MovePurpose::Drain)).await), "gw-2");
}

/// Of a gateway where all of so many attempts failed.
fn failing(id: &str, attempts: u64) -> GatewayReport {
    let health = GatewayHealth { connects_lost: attempts, ..GatewayHealth::default() };
    GatewayReport { health: Some(health), ..report(id) }
}

/// Gateways of which the first ones are known to fail everybody.
async fn with_sick(fixture: &Fixture, ids: &[&str], sick: usize) -> Vec<FakeGateway> {
    let mut gateways = vec![];
    for (number, id) in ids.iter().enumerate() {
        let full = GatewayReport { connections: if number < sick { 0 } else { 100 }, ..failing(id, 0) };
        gateways.push(fixture.gateway(full.clone()).await);
        if number < sick {
            gateways[number].report(GatewayReport { health: failing(id, 60).health, ..full });
        }
    }
    let strained = |id: &&str| fixture.scheduler.core.moving.strained(id).is_some();
    eventually("they are known to be sick", || ids[..sick].iter().all(strained)).await;
    gateways
}

fn of_user(number: usize, ask: RedirectAsk) -> RedirectAsk {
    RedirectAsk { user_id: format!("user-{number}"), ..ask }
}

#[tokio::test]
async fn one_sick_gateway_holds_nobody_for_whom_others_have_room() {
    let fixture = Fixture::start(config()).await;
    let ids = ["gw-1", "gw-2", "gw-3"];
    let gateways = with_sick(&fixture, &ids, 1).await;
    fixture.gateway(report("gw-0")).await;
    let core = &fixture.scheduler.core;
    // Their places are kept for longer than a slow machine takes: that nobody comes is not what this is about.
    let answers = |asks: RedirectAsk| {
        let asks = RedirectAsk { retry_after_ms: 600_000, ..asks };
        let answers = (0..1_000).map(move |number| redirect(core, "gw-0", &of_user(number, asks.clone())));
        answers.collect::<Vec<_>>()
    };
    for answer in answers(asks(MovePurpose::Drain)) {
        assert!(answer.hold.is_empty() && ["gw-2", "gw-3"].contains(&first(&answer)), "{answer:?}");
    }
    for (gateway, id) in gateways.iter().zip(&ids) {
        gateway.report(failing(id, 120));
    }
    eventually("all are sick", || ids.iter().all(|id| core.moving.strained(id).is_some())).await;
    for answer in answers(asks(MovePurpose::Drain)) {
        assert!(answer.endpoints.is_empty() && answer.hold.contains("attempts to connect"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_rebalance_passes_over_the_sick_and_holds_where_only_they_lack_connections() {
    let fixture = Fixture::start(config()).await;
    with_sick(&fixture, &["gw-1", "gw-2", "gw-3"], 1).await;
    let full = fixture.gateway(GatewayReport { connections: 400, ..report("gw-0") }).await;
    let core = &fixture.scheduler.core;
    let question = RedirectAsk { within_permille: 0, ..asks(MovePurpose::Rebalance) };
    let mut moved = 0;
    for number in 0..1_000 {
        let answer = redirect(core, "gw-0", &of_user(number, question.clone()));
        match first(&answer) {
            "gw-2" | "gw-3" => moved += 1,
            "" if answer.hold.contains("attempts to connect to gw-1") => break,
            _ => assert!(answer.stay, "{answer:?}"),
        }
    }
    // Each may come to the mean of 150, and those on their way raise that.
    assert!((100..600).contains(&moved), "{moved}");
    drop(full);
}

#[tokio::test]
async fn for_a_sick_gateway_s_sake_nobody_is_moved_to_another_pool() {
    let policy = "version = 1\n[[gray]]\nid = \"canary\"\npool = \"canary\"\npercent = 100\n";
    let (fixture, _path, _directory) = Fixture::with_policy(policy).await;
    for id in ["gw-0", "gw-2"] {
        fixture.gateway(report(id)).await;
    }
    let sick = |attempts| GatewayReport { pool: "canary".to_owned(), ..failing("gw-1", attempts) };
    let canary = fixture.gateway(sick(0)).await;
    let core = &fixture.scheduler.core;
    assert_eq!(first(&redirect(core, "gw-0", &asks(MovePurpose::Sweep))), "gw-1");
    canary.report(sick(60));
    eventually("it is sick", || core.moving.strained("gw-1").is_some()).await;
    for (purpose, pool) in
        [(MovePurpose::Sweep, ""), (MovePurpose::Drain, ""), (MovePurpose::Drain, "canary")]
    {
        let answer = redirect(core, "gw-0", &RedirectAsk { pool: pool.to_owned(), ..asks(purpose) });
        assert!(answer.endpoints.is_empty() && answer.hold.contains("gw-1"), "{purpose:?} {answer:?}");
    }
}

#[tokio::test]
async fn for_a_sick_gateway_s_sake_nobody_is_moved_to_another_region() {
    let fixture = Fixture::start(config()).await;
    fixture.gateway(report("gw-0")).await;
    fixture.gateway(GatewayReport { region: "us".to_owned(), ..report("gw-9") }).await;
    let gateways = with_sick(&fixture, &["gw-1"], 1).await;
    let core = &fixture.scheduler.core;
    for _ in 0..100 {
        let answer = redirect(core, "gw-0", &asks(MovePurpose::Drain));
        assert!(answer.endpoints.is_empty() && answer.hold.contains("gw-1"), "{answer:?}");
    }
    drop(gateways);
}

#[tokio::test]
async fn a_busy_gateway_holds_nobody_for_whom_others_have_room() {
    let fixture = Fixture::start(config()).await;
    fixture.gateway(report("gw-0")).await;
    let busy = GatewayLoad { handshakes_per_second: 95, ..GatewayLoad::default() };
    let rate = GatewayReport { handshakes_per_second_capacity: 100, ..GatewayReport::default() };
    let of = |id: &str, load| GatewayReport {
        load,
        ..GatewayReport { handshakes_per_second_capacity: rate.handshakes_per_second_capacity, ..report(id) }
    };
    fixture.gateway(of("gw-1", Some(busy))).await;
    fixture.gateway(of("gw-2", Some(GatewayLoad::default()))).await;
    let core = &fixture.scheduler.core;
    for number in 0..200 {
        let answer = redirect(core, "gw-0", &of_user(number, asks(MovePurpose::Drain)));
        assert_eq!(first(&answer), "gw-2", "{answer:?}");
    }
}

#[tokio::test]
async fn a_gateway_that_the_scheduler_does_not_know_yet_is_not_emptied_by_its_own_questions() {
    let fixture = Fixture::start(config()).await;
    fixture.gateway(report("gw-1")).await;
    let answer = |purpose| redirect(&fixture.scheduler.core, "unknown", &asks(purpose));
    assert!(answer(MovePurpose::Home).stay);
    let swept = answer(MovePurpose::Sweep);
    assert!(swept.endpoints.is_empty() && swept.hold.contains("does not know"), "asked again: {swept:?}");
    assert_eq!(first(&answer(MovePurpose::Stray)), "gw-1");
}

#[tokio::test]
async fn with_nowhere_to_go_a_drain_holds_and_the_rest_stays() {
    let fixture = Fixture::start(config()).await;
    let only = fixture.gateway(report("gw-1")).await;
    only.report(GatewayReport { draining: true, ..report("gw-1") });
    eventually("it drains", || fixture.scheduler.core.fleet.load().candidates.is_empty()).await;
    let answer = answer_to(&only, asks(MovePurpose::Drain)).await;
    assert!(answer.hold.contains("no gateway"), "{answer:?}");
    only.report(GatewayReport { draining: false, ..report("gw-1") });
    eventually("it serves", || !fixture.scheduler.core.fleet.load().candidates.is_empty()).await;
    let answer = answer_to(&only, asks(MovePurpose::Drain)).await;
    assert!(answer.endpoints.is_empty() && answer.hold.contains("no other gateway"), "{answer:?}");
    only.report(GatewayReport { draining: true, ..report("gw-1") });
    eventually("it drains", || fixture.scheduler.core.fleet.load().candidates.is_empty()).await;
    for purpose in [MovePurpose::Rebalance, MovePurpose::Sweep] {
        assert!(answer_to(&only, asks(purpose)).await.stay);
    }
    assert_eq!(
        answer_to(&only, asks(MovePurpose::Stray)).await,
        RedirectAnswer { handle: 77, ..Default::default() }
    );
}

#[tokio::test]
async fn a_rebalance_makes_nobody_fuller_than_the_share() {
    let fixture = Fixture::start(config()).await;
    let full = fixture.gateway(GatewayReport { connections: 600, ..report("gw-1") }).await;
    let empty = fixture.gateway(GatewayReport { connections: 437, ..report("gw-2") }).await;
    let question = RedirectAsk { within_permille: 0, ..asks(MovePurpose::Rebalance) };
    // Whoever is on the way counts at gw-2 already, and goes on counting at gw-1 until that reports.
    let mut moved = 0;
    loop {
        let user_id = format!("user-{moved}");
        let answer = answer_to(&full, RedirectAsk { user_id, ..question.clone() }).await;
        if answer.stay {
            break;
        }
        assert_eq!(first(&answer), "gw-2");
        moved += 1;
    }
    assert!((82..=200).contains(&moved), "{moved}");
    assert!(answer_to(&empty, question).await.stay, "the fuller one takes nobody");
}

#[tokio::test]
async fn a_drained_gateway_is_given_nobody_whatever_it_says() {
    let fixture = Fixture::start(config()).await;
    let gateway = fixture.gateway(report("gw-1")).await;
    fixture.gateway(report("gw-2")).await;
    let drain = |active| Drain { gateway_id: "gw-1".to_owned(), active, ..Drain::default() };
    let core = &fixture.scheduler.core;
    let assignable = || core.fleet.load().candidates.len();
    core.carry(vec![Record::Drain(drain(true)).carried(1, 0)]);
    eventually("it is drained", || assignable() == 1).await;
    gateway.report(GatewayReport { connections: 5, ..report("gw-1") });
    eventually("its report came", || {
        let fleet = core.fleet.load();
        fleet.find("gw-1").is_some_and(|index| fleet.gateway(index).connections == 5)
    })
    .await;
    assert_eq!(assignable(), 1, "it has not heard of its drain yet");
    core.carry(vec![Record::Drain(drain(false)).carried(2, 0)]);
    eventually("it serves again", || assignable() == 2).await;
}
