//! Keys while they are changed, and what was revoked.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use berth_proto::{
    carry::Record,
    ticket::{TicketSigner, key_tag},
    wire::{Carried, RedirectAnswer, RedirectAsk, Revocation, ToScheduler, from_scheduler, to_scheduler},
};

use super::{answer_to, redirect_ask};
use crate::{
    Config, JwksFile, JwtExpected, JwtKeys, sign_expected_token,
    testing::{self, Fixture, TICKET_KEY, config, eventually, report},
};

#[tokio::test]
async fn while_a_key_is_changed_gateways_are_told_each_that_any_scheduler_may_sign_with() {
    let other_ticket_keys =
        vec![b"the next key, which has 32 bytes".to_vec(), b"and the one before: 32 bytes too".to_vec()];
    let config = Config { other_ticket_keys: other_ticket_keys.clone(), ..config() };
    let fixture = Fixture::start(config).await;
    let gateway = fixture.attach(&report("gw-1"));
    let from_scheduler::Message::Keys(keys) = &gateway.heard()[0] else { panic!("the keys first") };
    let all = std::iter::once(TICKET_KEY).chain(other_ticket_keys.iter().map(Vec::as_slice));
    let all: Vec<_> = all.map(|key| TicketSigner::from_secret(key).public_key().to_vec()).collect();
    assert_eq!(keys.public_keys, all);
    assert_eq!(keys.ticket_ttl_ms, 300_000);
    let short =
        Fixture::try_start(Config { other_ticket_keys: vec![vec![1; 31]], ..testing::config() }).await.err();
    assert!(short.is_some_and(|error| error.to_string().contains("has 31 bytes")));
}

#[tokio::test]
async fn a_token_for_another_service_is_not_scheduled() {
    let jwt_expected = JwtExpected { audience: "chat".to_owned(), ..JwtExpected::default() };
    let fixture = Fixture::start(Config { jwt_expected: jwt_expected.clone(), ..config() }).await;
    let _gateway = fixture.gateway(report("gw-1")).await;
    let ask = async |expected: &JwtExpected| {
        let now_ms = fixture.scheduler.core.clock.wall_ms();
        let hour = std::time::Duration::from_secs(3_600);
        let token = sign_expected_token(testing::SECRET, expected, "alice", hour, now_ms);
        let bearer = format!("Bearer {token}");
        fixture.post("/v1/schedule", &[("authorization", &bearer)], r#"{"deviceId":"d"}"#).await.status
    };
    assert_eq!((ask(&jwt_expected).await, ask(&JwtExpected::default()).await), (200, 401));
}

#[tokio::test]
async fn a_key_that_leaked_is_told_and_whoever_came_with_it_gets_no_ticket_of_another() {
    let leaked = b"a key that leaked, it has 32 bytes".to_vec();
    let config = || Config { void_ticket_keys: vec![leaked.clone()], ..config() };
    let fixture = Fixture::start(config()).await;
    let gateway = fixture.gateway(report("gw-1")).await;
    let public_key = TicketSigner::from_secret(&leaked).public_key();
    let from_scheduler::Message::Keys(keys) = &gateway.heard()[0] else { panic!("the keys first") };
    assert_eq!(keys.void_keys, [public_key.to_vec()]);
    let tag = key_tag(&public_key);
    let question = |ticket_key| RedirectAsk { ticket_key, ..redirect_ask() };
    assert_eq!(answer_to(&gateway, question(tag)).await, RedirectAnswer { handle: 77, ..Default::default() });
    for other in [0, tag ^ 1] {
        assert!(!answer_to(&gateway, question(other)).await.ticket.is_empty());
    }
    let both = Fixture::try_start(Config { other_ticket_keys: vec![leaked.clone()], ..config() }).await.err();
    assert!(both.is_some_and(|error| error.to_string().contains("auth.ticket_key_void is")));
}

#[tokio::test]
async fn who_says_that_he_signed_in_tomorrow_gets_no_ticket() {
    let fixture = Fixture::start(config()).await;
    let gateway = fixture.gateway(report("gw-1")).await;
    let now_ms = fixture.scheduler.core.clock.wall_ms();
    for (ahead_ms, sent_on) in [(30_000, true), (86_400_000, false)] {
        let question = RedirectAsk { auth_issued_at_ms: now_ms + ahead_ms, ..redirect_ask() };
        assert_eq!(!answer_to(&gateway, question).await.ticket.is_empty(), sent_on, "{ahead_ms} ms ahead");
    }
}

#[tokio::test]
async fn what_was_revoked_is_not_scheduled() {
    let fixture = Fixture::start(config()).await;
    let gateway = fixture.gateway(report("gw-1")).await;
    let revoke = |device_id: &str, not_before_ms, version| {
        let (user_id, device_id) = ("alice".to_owned(), device_id.to_owned());
        let reason = "lost phone".to_owned();
        let revoked = Revocation { user_id, device_id, not_before_ms, reason };
        let records = vec![Record::Revocation(revoked).carried(version, 0)];
        let carried = to_scheduler::Message::Carried(Carried { records, ..Default::default() });
        gateway.up.send(vec![ToScheduler { message: Some(carried) }]).expect("taken");
    };
    revoke("d1", i64::MAX, 1);
    let refused = fixture.schedule(r#"{"deviceId":"d1"}"#).await;
    assert_eq!((refused.status, refused.body["reason"].as_str()), (401, Some("UNAUTHENTICATED")));
    assert!(refused.body["detail"].as_str().is_some_and(|text| text.contains("revoked (lost phone)")));
    assert_eq!(fixture.schedule(r#"{"deviceId":"d2"}"#).await.status, 200, "another device");
    let nowhere = answer_to(&gateway, redirect_ask()).await;
    assert_eq!(nowhere, RedirectAnswer { handle: 77, ..RedirectAnswer::default() });
    revoke("d1", 1, 2);
    assert_eq!(fixture.schedule(r#"{"deviceId":"d1"}"#).await.status, 200, "issued later than that");
}

#[tokio::test]
async fn a_token_of_one_device_is_no_good_for_another() {
    let fixture = Fixture::start(config()).await;
    let _gateway = fixture.gateway(report("gw-1")).await;
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let claims = encode(r#"{"sub":"alice","exp":9000000000,"device":"phone"}"#);
    let message = format!("{}.{claims}", encode(r#"{"alg":"HS256"}"#));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, testing::SECRET);
    let signature = URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, message.as_bytes()));
    let bearer = format!("Bearer {message}.{signature}");
    let ask = async |device: &str| {
        let body = format!(r#"{{"deviceId":{device:?}}}"#);
        fixture.post("/v1/schedule", &[("authorization", &bearer)], &body).await
    };
    assert_eq!(ask("phone").await.status, 200);
    let refused = ask("laptop").await;
    assert_eq!((refused.status, refused.body["reason"].as_str()), (403, Some("FORBIDDEN")));
    assert!(
        refused.body["detail"].as_str().is_some_and(|text| text.contains("laptop")),
        "{:?}",
        refused.body
    );
}

#[tokio::test]
async fn tokens_of_the_secret_before_are_good_while_it_is_changed() {
    let secrets: [&[u8]; 2] = [b"the new secret that has 32 bytes", testing::SECRET];
    let jwt = JwtKeys::from_secrets(&secrets).expect("32 bytes each");
    let fixture = Fixture::start(Config { jwt, ..config() }).await;
    let _gateway = fixture.gateway(report("gw-1")).await;
    assert_eq!(fixture.schedule(r#"{"deviceId":"d1"}"#).await.status, 200, "signed with the one before");
    let only_new = JwtKeys::from_secrets(&secrets[..1]).expect("32 bytes");
    let fixture = Fixture::start(Config { jwt: only_new, ..config() }).await;
    let _gateway = fixture.gateway(report("gw-1")).await;
    assert_eq!(fixture.schedule(r#"{"deviceId":"d1"}"#).await.status, 401);
}

#[tokio::test]
async fn a_changed_jwks_file_is_taken_up_and_a_broken_one_is_refused() {
    let key = |id: &str, byte: u8| {
        let x = URL_SAFE_NO_PAD.encode([byte; 32]);
        format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"{id}","x":"{x}"}}"#)
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("jwks.json");
    let write = |text: String| std::fs::write(&path, text).expect("written");
    write(format!(r#"{{"keys":[{}]}}"#, key("one", 1)));
    let (jwt, file) = JwksFile::load(path.clone()).expect("a key");
    let fixture = Fixture::start(Config { jwt, jwks_file: Some(file), ..config() }).await;
    // A key that is there is told from one that is not by what is wrong with the token.
    let knows = async |id: &str| {
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"EdDSA","kid":"{id}"}}"#));
        let bearer = format!("Bearer {header}.e30.AAAA");
        let answer = fixture.post("/v1/schedule", &[("authorization", &bearer)], "{}").await;
        answer.body["detail"].as_str().is_some_and(|detail| detail.contains("signature is wrong"))
    };
    assert!(knows("one").await && !knows("two").await);
    let loads = |outcome| fixture.metric(&format!("berth_scheduler_jwks_loads_total{{outcome={outcome:?}}}"));
    write(format!(r#"{{"keys":[{},{}]}}"#, key("one", 1), key("two", 2)));
    eventually("the second key", || loads("taken") >= 1.0).await;
    assert!(knows("one").await && knows("two").await);
    write("{}".to_owned());
    eventually("it is refused", || loads("broken") >= 1.0).await;
    assert!(knows("two").await, "the keys in force stay");
    std::fs::remove_file(&path).expect("there");
    eventually("it is gone", || loads("unreadable") >= 1.0).await;
    assert!(knows("one").await);
}
