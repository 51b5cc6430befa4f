//! The scheduler as a whole: gateways attach and report, policies change under it, it becomes ready and stops.

mod credentials;

use std::sync::atomic::Ordering;

use berth_proto::{
    link::RefusedReason,
    ticket::{TicketSigner, TicketVerifier},
    wire::{GatewayReport, RedirectAnswer, RedirectAsk, ToScheduler, from_scheduler, to_scheduler},
};
use tokio::net::TcpStream;

use crate::{
    Config, StartError,
    admission::{Owner, Place},
    core::{Ask, Wait},
    locate::{LoadError, mmdb},
    testing::{ADMIN_KEY, FakeGateway, Fixture, TICKET_KEY, config, eventually, report},
};

pub(crate) fn redirect_ask() -> RedirectAsk {
    RedirectAsk {
        handle: 77,
        user_id: "alice".to_owned(),
        device_id: "d1".to_owned(),
        platform: "ios".to_owned(),
        app_version: "7.3.1".to_owned(),
        client_ip: "10.0.0.9".to_owned(),
        transport: "tcp".to_owned(),
        auth_expires_at_ms: crate::clock::Clock::start().wall_ms() + 1_000_000,
        auth_issued_at_ms: 1_234_567,
        ..RedirectAsk::default()
    }
}

fn ask(ask: RedirectAsk) -> ToScheduler {
    ToScheduler { message: Some(to_scheduler::Message::Redirect(ask)) }
}

pub(crate) async fn answer_to(gateway: &FakeGateway, question: RedirectAsk) -> RedirectAnswer {
    let answers = || {
        let heard = gateway.heard().into_iter();
        heard.filter_map(|message| match message {
            from_scheduler::Message::Redirect(answer) => Some(answer),
            _ => None,
        })
    };
    let before = answers().count();
    gateway.up.send(vec![ask(question)]).expect("taken");
    eventually("the redirect is answered", || answers().count() > before).await;
    answers().next_back().expect("one more")
}

#[tokio::test]
async fn a_gateway_is_told_keys_at_once_and_who_tells_once_all_could_say_what_they_carry() {
    let (fixture, _path, _directory) = Fixture::with_policy("version = 5").await;
    let gateway = fixture.attach(&report("gw-1"));
    let heard = gateway.heard();
    let from_scheduler::Message::Keys(keys) = &heard[0] else { panic!("the keys first: {heard:?}") };
    assert_eq!(keys.public_keys, [TicketSigner::from_secret(TICKET_KEY).public_key().to_vec()]);
    gateway.report(report("gw-1"));
    if !fixture.scheduler.core.caught_up() {
        assert_eq!(gateway.introduced(), None, "there may be rules that were stopped");
    }
    eventually("they could", || fixture.scheduler.core.caught_up()).await;
    gateway.report(report("gw-1"));
    assert_eq!(gateway.introduced().map(|word| word.policy_version), Some(5));
    gateway.report(report("gw-1"));
    let heard = gateway.heard();
    let kinds = |kind: fn(&from_scheduler::Message) -> bool| heard.iter().filter(|told| kind(told)).count();
    let keys = kinds(|told| matches!(told, from_scheduler::Message::Keys(_)));
    let introductions = kinds(|told| matches!(told, from_scheduler::Message::Introduction(_)));
    assert_eq!((keys, introductions), (1, 1), "each once: {heard:?}");
}

#[tokio::test]
async fn what_a_full_link_refused_is_said_at_the_next_report() {
    let (fixture, _path, _directory) = Fixture::with_policy("version = 5").await;
    let late = {
        let heard = std::sync::Arc::new(crate::testing::Heard::default());
        heard.full.store(true, Ordering::SeqCst);
        let attach = berth_proto::wire::AttachGateway { gateway_id: "gw-1".to_owned(), boot: 1 };
        let up = fixture.scheduler.service().attach(attach, std::sync::Arc::clone(&heard) as _);
        FakeGateway { up, heard, kept: std::sync::Arc::default() }
    };
    assert!(late.heard().is_empty());
    late.heard.full.store(false, Ordering::SeqCst);
    late.report(report("gw-1"));
    let heard = late.heard();
    assert!(matches!(heard[..1], [from_scheduler::Message::Keys(_)]), "{heard:?}");
    eventually("others could tell what they carry", || fixture.scheduler.core.caught_up()).await;
    late.heard.full.store(true, Ordering::SeqCst);
    late.report(report("gw-1"));
    assert_eq!(late.introduced(), None);
    late.heard.full.store(false, Ordering::SeqCst);
    late.report(report("gw-1"));
    assert_eq!(late.introduced().map(|word| word.policy_version), Some(5));
}

#[tokio::test]
async fn a_stray_client_is_sent_on_with_a_fresh_ticket() {
    let fixture = Fixture::start(config()).await;
    let gateway = fixture.gateway(report("gw-1")).await;
    let question = redirect_ask();
    let answer = answer_to(&gateway, question.clone()).await;
    assert_eq!(answer.handle, 77);
    assert_eq!(answer.endpoints.len(), 1, "one transport was asked for");
    assert_eq!(
        (answer.endpoints[0].gateway_id.as_str(), answer.endpoints[0].transport.as_str()),
        ("gw-1", "tcp")
    );
    let verifier = TicketVerifier::new(&[TicketSigner::from_secret(TICKET_KEY).public_key()]);
    let ticket = verifier.genuine(&answer.ticket).expect("genuine");
    assert_eq!((ticket.user_id.as_str(), ticket.device_id.as_str()), ("alice", "d1"));
    assert_eq!(ticket.auth_expires_at_ms, question.auth_expires_at_ms, "the user's token stays what it was");
    assert_eq!(ticket.auth_issued_at_ms, question.auth_issued_at_ms);
    let nowhere = [
        RedirectAsk { auth_expires_at_ms: 1, ..redirect_ask() },
        RedirectAsk { user_id: "no id".to_owned(), ..redirect_ask() },
        RedirectAsk { transport: "quic".to_owned(), ..redirect_ask() },
    ];
    for question in nowhere {
        let answer = answer_to(&gateway, question).await;
        assert_eq!(answer, RedirectAnswer { handle: 77, ..RedirectAnswer::default() });
    }
    eventually("counted", || fixture.metric(r#"berth_scheduler_redirects_total{outcome="nowhere"}"#) == 3.0)
        .await;
    assert_eq!(fixture.metric(r#"berth_scheduler_redirects_total{outcome="answered"}"#), 1.0);
}

// On the test's own thread, so that nothing is answered while the queue fills.
#[tokio::test(flavor = "current_thread")]
async fn redirects_beyond_the_queue_come_back() {
    let fixture = Fixture::start(config()).await;
    let gateway = fixture.attach(&report("gw-1"));
    let room = crate::service::REDIRECT_QUEUE;
    let question = redirect_ask();
    let numbered = |handle| ask(RedirectAsk { handle, ..question.clone() });
    let batch = (0..room as u64 + 3).map(numbered).collect();
    let refused = gateway.up.send(batch).expect_err("three too many");
    assert_eq!((refused.rest.len(), refused.reason), (3, RefusedReason::Full));
    assert_eq!(refused.rest[0], numbered(room as u64));
    let answered = |told: &_| matches!(told, from_scheduler::Message::Redirect(_));
    let answers = || gateway.heard().iter().filter(|told| answered(told)).count();
    eventually("the others are answered", || answers() == room).await;
}

#[tokio::test(flavor = "current_thread")]
async fn used_tickets_are_no_longer_pending() {
    let fixture = Fixture::start(config()).await;
    let gateway = fixture.gateway(report("gw-1")).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let answer = fixture.schedule(r#"{"deviceId":"d"}"#).await;
        let id = answer.body["scheduleId"].as_str().expect("16 hex digits");
        ids.push(u64::from_str_radix(id, 16).expect("16 hex digits"));
    }
    assert_eq!(fixture.scheduler.core.pending_len(), 3);
    eventually("shown", || fixture.metric("berth_scheduler_pending_assignments") == 3.0).await;
    gateway.report(GatewayReport { used_tickets: ids[..2].to_vec(), connections: 2, ..report("gw-1") });
    // The test's thread is the scheduler's: no snapshot is built between the report and this.
    let fleet = fixture.scheduler.core.fleet.load_full();
    let load = fleet.gateway(0).connections + fleet.gateway(0).pending();
    assert_eq!(load, 3, "what is not yet shown as connections is still pending");
    drop(fleet);
    eventually("a snapshot shows both", || {
        let fleet = fixture.scheduler.core.fleet.load();
        (fleet.gateway(0).connections, fleet.gateway(0).pending()) == (2, 1)
    })
    .await;
    eventually("counted", || fixture.metric(r#"berth_scheduler_pending_ended_total{how="used"}"#) == 2.0)
        .await;
}

#[tokio::test]
async fn a_pools_gateways_are_told_how_many_clients_are_wanted() {
    let fixture = Fixture::start(config()).await;
    let lease = |id: &str, pool: &str| GatewayReport {
        admit_per_second: Some(1),
        pool: pool.to_owned(),
        ..report(id)
    };
    let stable = fixture.gateway(lease("gw-1", "stable")).await;
    let canary = fixture.gateway(lease("gw-2", "canary")).await;
    let demands = |gateway: &FakeGateway| {
        let demand = |message| match message {
            from_scheduler::Message::Demand(demand) => Some(demand.wanted_per_second),
            _ => None,
        };
        gateway.heard().into_iter().filter_map(demand).collect::<Vec<_>>()
    };
    assert_eq!(demands(&stable), [0], "once, as long as it is the same");
    for _ in 0..20 {
        fixture.schedule(r#"{"deviceId":"d"}"#).await;
    }
    eventually("the demand is told", || demands(&stable).last().is_some_and(|wanted| *wanted > 0)).await;
    assert_eq!(demands(&canary), [0], "it is not of their pool");
}

#[tokio::test]
async fn who_is_early_gets_his_own_token_back_whoever_gave_it() {
    let (giver, other) = (Fixture::start(config()).await, Fixture::start(config()).await);
    let owner = Owner { pool: "stable", user: "alice", device: "d" };
    let wall_ms = 1_795_000_000_000;
    let place = Place { due_ms: wall_ms + 9_000, issued_ms: wall_ms };
    let token = giver.scheduler.core.queue_tokens.make(place, owner);
    other
        .gateway(GatewayReport {
            admit_per_second: Some(1),
            handshakes_per_second_capacity: 1,
            ..report("gw-1")
        })
        .await;
    let core = &other.scheduler.core;
    let full = || core.admit(owner, Ask::LetIn { queue_token: "" }, wall_ms).is_err();
    eventually("there is a queue", || full() && full()).await;
    let shown = core.admit(owner, Ask::LetIn { queue_token: &token }, wall_ms);
    assert_eq!(shown, Err(Wait { ms: 9_000, queue_token: token }));
}

#[tokio::test]
async fn a_link_speaks_only_for_its_own_gateway() {
    let fixture = Fixture::start(config()).await;
    let gateway = fixture.attach(&report("gw-1"));
    gateway.report(report("gw-1"));
    gateway.report(report("gw-2"));
    gateway.report(GatewayReport { boot: 9, ..report("gw-1") });
    assert_eq!(fixture.metric("berth_scheduler_reports_refused_total"), 2.0);
    let newer = fixture.attach(&report("gw-1"));
    newer.report(report("gw-1"));
    gateway.report(report("gw-1"));
    assert_eq!(fixture.metric("berth_scheduler_reports_refused_total"), 3.0, "the older link was superseded");
    assert!(!fixture.fleet_has("gw-2"));
}

#[tokio::test]
async fn ready_once_a_gateway_can_be_assigned_and_everybody_had_time_to_report() {
    let fixture = Fixture::start(config()).await;
    let core = &fixture.scheduler.core;
    assert_eq!(fixture.scheduler.ready(), Err("no assignable gateway (0 known)".to_owned()));
    let gateway = fixture.attach(&report("gw-1"));
    gateway.report(report("gw-1"));
    eventually("it is known", || fixture.fleet_has("gw-1")).await;
    let early = fixture.schedule(r#"{"deviceId":"d"}"#).await;
    let ready = fixture.scheduler.ready();
    // On a slow machine the interval may be over by now; while it is not, nobody was sent to the first that came.
    if core.settled().is_err() {
        assert_eq!((early.status, &early.body["reason"]), (503, &"NO_GATEWAY".into()), "{early:?}");
        assert!(early.body["retryAfterMs"].as_u64().is_some_and(|wait| wait <= 1_000), "{early:?}");
        assert!(ready.expect_err("not yet").starts_with("starting"));
    }
    eventually("the interval is over", || core.settled().is_ok()).await;
    drop(gateway);
    let gateway = fixture.gateway(report("gw-1")).await;
    assert_eq!(fixture.schedule(r#"{"deviceId":"d"}"#).await.status, 200);
    assert_eq!(fixture.scheduler.ready(), Ok(()));
    gateway.report(GatewayReport { draining: true, ..report("gw-1") });
    eventually("drained", || fixture.scheduler.ready().is_err()).await;
    eventually("shown", || fixture.metric(r#"berth_scheduler_gateways{state="draining"}"#) == 1.0).await;
}

#[tokio::test]
async fn a_changed_policy_is_taken_up_and_told() {
    let (fixture, path, _directory) = Fixture::with_policy("version = 1").await;
    let gateway = fixture.gateway(report("gw-1")).await;
    std::fs::write(&path, "version = 2").expect("written");
    let version = || fixture.scheduler.core.policy.load().version;
    eventually("taken up by itself", || version() == 2).await;
    assert_eq!(fixture.metric("berth_scheduler_policy_version"), 2.0);
    std::fs::write(&path, "version = 3").expect("written");
    fixture.scheduler.reload();
    eventually("taken up on demand", || version() == 3).await;
    gateway.report(report("gw-1"));
    assert_eq!(gateway.introduced().map(|word| word.policy_version), Some(3), "with the next report");
}

#[tokio::test]
async fn a_policy_that_is_refused_leaves_the_old_one() {
    let (fixture, path, _directory) = Fixture::with_policy("version = 5").await;
    let loads = |outcome: &str| {
        fixture.metric(&format!("berth_scheduler_policy_loads_total{{outcome=\"{outcome}\"}}"))
    };
    let refusals = [
        ("version = 6\n[load]\nbound = 'x'", "broken"),
        ("version = 4", "older"),
        ("version = 5 # changed", "other_text"),
    ];
    for (text, outcome) in refusals {
        std::fs::write(&path, text).expect("written");
        fixture.scheduler.reload();
        eventually(outcome, || loads(outcome) == 1.0).await;
        assert_eq!(fixture.metric("berth_scheduler_policy_file_refused"), 1.0);
    }
    std::fs::remove_file(&path).expect("removed");
    eventually("unreadable", || loads("unreadable") >= 1.0).await;
    let policy = fixture.scheduler.core.policy.load();
    assert_eq!(policy.text, "version = 5");
    std::fs::write(&path, "version = 7").expect("written");
    eventually("mended", || fixture.metric("berth_scheduler_policy_file_refused") == 0.0).await;
    assert_eq!(fixture.metric("berth_scheduler_policy_version"), 7.0);
}

/// What `:explain` says of a client at an address: its region, and the first gateway.
async fn explained(fixture: &Fixture, address: &str) -> (String, String) {
    let body = format!(r#"{{"deviceId":"d","userId":"alice","clientIp":"{address}"}}"#);
    let bearer = format!("Bearer {ADMIN_KEY}");
    let answer = fixture.post("/v1/schedule:explain", &[("authorization", &bearer)], &body).await;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    (text(&answer.body["client"]["region"]), text(&answer.body["endpoints"][0]["gatewayId"]))
}

#[tokio::test]
async fn an_address_database_is_followed_and_a_broken_one_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (policy, geoip) = (directory.path().join("policy.toml"), directory.path().join("places.mmdb"));
    let place = |region: &str, country: &str| {
        format!("[[proximity.place]]\nregion = \"{region}\"\ncountries = [\"{country}\"]\n")
    };
    let text = format!("version = 1\n{}{}", place("eu", "DE"), place("ap", "JP"));
    std::fs::write(&policy, text).expect("written");
    let country = |country, built_at_s| {
        mmdb::database(&[("203.0.113.0/24", mmdb::Field::city(country, "", 0))], built_at_s)
    };
    // In one step, as an operator's tool would.
    let replace = |bytes: Vec<u8>| {
        std::fs::write(directory.path().join("new"), bytes).expect("written");
        std::fs::rename(directory.path().join("new"), &geoip).expect("renamed");
    };
    replace(country("DE", 1_000));
    let config = Config { policy_file: Some(policy), geoip_file: Some(geoip.clone()), ..config() };
    let fixture = Fixture::start(config).await;
    fixture.gateway(report("gw-eu")).await;
    fixture.gateway(GatewayReport { region: "ap".to_owned(), ..report("gw-ap") }).await;
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(explained(&fixture, "203.0.113.7").await, pair("eu", "gw-eu"));
    assert_eq!(explained(&fixture, "203.0.114.7").await.0, "", "not in the database");

    let built = || fixture.metric("berth_scheduler_geoip_build_time_seconds");
    let loads = |outcome: &str| {
        fixture.metric(&format!("berth_scheduler_geoip_loads_total{{outcome=\"{outcome}\"}}"))
    };
    replace(country("JP", 2_000));
    eventually("taken up by itself", || built() == 2_000.0).await;
    assert_eq!(explained(&fixture, "203.0.113.7").await, pair("ap", "gw-ap"));

    let mut cut = country("DE", 3_000);
    cut.truncate(cut.len() - 40);
    replace(cut);
    fixture.scheduler.reload();
    eventually("refused", || loads("broken") >= 1.0).await;
    assert_eq!(fixture.metric("berth_scheduler_geoip_file_refused"), 1.0);
    std::fs::remove_file(&geoip).expect("removed");
    eventually("missed", || loads("unreadable") >= 1.0).await;
    assert_eq!(explained(&fixture, "203.0.113.7").await, pair("ap", "gw-ap"), "the old one stays");
    replace(country("DE", 4_000));
    fixture.scheduler.reload();
    eventually("mended", || built() == 4_000.0).await;
    assert_eq!(fixture.metric("berth_scheduler_geoip_file_refused"), 0.0);
    fixture.scheduler.stop().await;
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("policy.toml");
    let with_policy = || Config { policy_file: Some(path.clone()), ..config() };
    let missing = Fixture::try_start(with_policy()).await.err().expect("no such file");
    assert!(matches!(missing, StartError::PolicyFile { .. }), "{missing:?}");
    std::fs::write(&path, "version = 0").expect("written");
    let broken = Fixture::try_start(with_policy()).await.err().expect("broken");
    let source = std::error::Error::source(&broken).expect("the policy error").to_string();
    assert_eq!(source, "line 1, version: 0 is not above 0");
    let geoip = directory.path().join("places.mmdb");
    let with_geoip = || Config { geoip_file: Some(geoip.clone()), ..config() };
    let missing = Fixture::try_start(with_geoip()).await.err().expect("no such file");
    assert!(matches!(&missing, StartError::Geoip { path, .. } if *path == geoip), "{missing:?}");
    std::fs::write(&geoip, "no database").expect("written");
    let broken = Fixture::try_start(with_geoip()).await.err().expect("broken");
    assert!(matches!(broken, StartError::Geoip { source: LoadError::Broken(_), .. }), "{broken:?}");
    let short = Fixture::try_start(Config { ticket_key: vec![1; 31], ..config() }).await.err();
    assert!(matches!(short, Some(StartError::TicketKey(31))));
    let first = Fixture::start(config()).await;
    let taken = Config { listen: first.scheduler.local_addr(), ..config() };
    let taken = Fixture::try_start(taken).await.err().expect("in use");
    assert!(matches!(taken, StartError::Listen { .. }), "{taken:?}");
}

#[tokio::test]
async fn stopping_closes_the_port_and_idle_connections() {
    let fixture = Fixture::start(config()).await;
    let address = fixture.scheduler.local_addr();
    let gateway = fixture.attach(&report("gw-1"));
    let idle = TcpStream::connect(address).await.expect("listening");
    eventually("served", || fixture.metric("berth_scheduler_http_connections") == 1.0).await;
    fixture.scheduler.stop().await;
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
    idle.readable().await.expect("closed");
    assert_eq!(idle.try_read(&mut [0; 8]).expect("end of stream"), 0);
    assert!(!gateway.up.connected(), "gateways notice");
    let refused = gateway.up.send(vec![ask(redirect_ask())]).expect_err("nobody answers");
    assert_eq!(refused.reason, RefusedReason::Closed);
}
