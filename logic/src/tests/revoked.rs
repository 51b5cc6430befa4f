//! What a user identified himself with is revoked: gateways are told, and who opens a session is asked.

use berth_proto::{
    carry::Record,
    wire::{self, to_gateway::Message as Down},
};
use serde_json::json;

use super::{gateway::Gateway, http::ask, in_memory};

fn opening(device: &str, handle: u64, auth_issued_at_ms: i64) -> wire::OpenSession {
    wire::OpenSession {
        handle,
        user_id: "alice".to_owned(),
        device_id: device.to_owned(),
        auth_issued_at_ms,
        ..Default::default()
    }
}

/// The next revocation that a gateway is told: of which device, and from when on.
async fn told(gateway: &Gateway) -> (String, i64) {
    let revocation = |message: &Down| match message {
        Down::Revoked(carried) => Some(carried.records.clone()),
        _ => None,
    };
    let records = gateway.hear("a revocation", revocation).await;
    assert_eq!(records.len(), 1);
    match Record::read(&records[0]) {
        Some(Record::Revocation(one)) => (one.device_id, one.not_before_ms),
        other => panic!("{other:?}"),
    }
}

/// A power cut may take a revocation from the store that gateways and schedulers go on carrying.
#[tokio::test]
async fn a_restoration_by_name_reaches_gateways_that_know_of_what_the_store_lacks() {
    let logic = in_memory().await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let lost = logic.context().now();
    for (asked, device) in [(json!({}), ""), (json!({"deviceId": "phone"}), "phone")] {
        assert_eq!(ask(&logic, "/v1/users/alice:restore", asked).await, (200, json!({"restored": 0})));
        let carried = |message: &Down| match message {
            Down::Revoked(carried) => carried.records.first().cloned(),
            _ => None,
        };
        let record = gateway.hear("a restoration", carried).await;
        assert!(i64::try_from(record.version).is_ok_and(|version| version >= lost), "it wins: {record:?}");
        let Some(Record::Revocation(one)) = Record::read(&record) else { panic!("{record:?}") };
        assert_eq!((one.user_id.as_str(), one.device_id.as_str(), one.not_before_ms), ("alice", device, 0));
    }
    logic.stop().await;
}

#[tokio::test]
async fn what_was_issued_before_opens_no_session_and_is_told_to_every_gateway() {
    let logic = in_memory().await;
    let (one, two) = (Gateway::attach(&logic, "g1", 1), Gateway::attach(&logic, "g2", 1));
    for (handle, device) in [(1, "phone"), (2, "laptop")] {
        assert!(one.ask_to_open(opening(device, handle, 5_000)).await.session_epoch > 0);
    }
    let newer = two.ask_to_open(opening("tablet", 3, 9_000)).await;
    let path = "/v1/users/alice:revoke";
    let phone = json!({"deviceId": "phone", "notBeforeMs": 9_000, "reason": "lost"});
    assert_eq!(ask(&logic, path, phone).await, (200, json!({"notBeforeMs": "9000", "closed": 1})));
    for gateway in [&one, &two] {
        assert_eq!(told(gateway).await, ("phone".to_owned(), 9_000));
    }
    let refused = one.ask_to_open(opening("phone", 4, 8_999)).await;
    let error = refused.error.expect("refused");
    assert_eq!((refused.close_code, error.code.as_str()), (4500, "UNAUTHENTICATED"));
    assert!(error.message.contains("lost"), "{error:?}");
    // The older session of the device was not replaced by the refused one.
    assert!(one.ask_to_open(opening("phone", 5, 9_000)).await.session_epoch > 0, "a later login is good");
    assert!(one.ask_to_open(opening("laptop", 6, 0)).await.session_epoch > 0, "and so is another device");

    // All of the user: the tablet's login is as late as that, and stays.
    let all = json!({"notBeforeMs": "9000"});
    assert_eq!(ask(&logic, path, all).await, (200, json!({"notBeforeMs": "9000", "closed": 1})));
    let again = wire::OpenSession { session_epoch: newer.session_epoch, ..opening("tablet", 3, 8_000) };
    assert_eq!(two.ask_to_open(again).await.close_code, 4500, "one that is announced again, too");
    assert!(two.ask_to_open(opening("tablet", 7, 9_000)).await.session_epoch > 0);

    // A gateway that comes later is told both.
    let three = Gateway::attach(&logic, "g3", 1);
    let revoked = |message: &Down| match message {
        Down::Revoked(carried) => Some(carried.records.len()),
        _ => None,
    };
    assert_eq!(three.hear("what was revoked", revoked).await, 2);

    let path = "/v1/users/alice:restore";
    assert_eq!(ask(&logic, path, json!({})).await, (200, json!({"restored": 1})), "the user's own");
    assert_eq!(one.ask_to_open(opening("phone", 8, 0)).await.close_code, 4500, "his device stays revoked");
    assert!(one.ask_to_open(opening("laptop", 9, 0)).await.session_epoch > 0);
    assert_eq!(ask(&logic, path, json!({"devices": true})).await, (200, json!({"restored": 1})));
    assert!(one.ask_to_open(opening("phone", 10, 0)).await.session_epoch > 0);
    logic.stop().await;
}

#[tokio::test]
async fn a_gateway_that_knows_of_no_revocations_is_told_to_close_whom_they_void() {
    let logic = in_memory().await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let phone = gateway.ask_to_open(opening("phone", 1, 5_000)).await;
    assert!(gateway.ask_to_open(opening("laptop", 2, 9_000)).await.session_epoch > 0);
    let body = json!({"notBeforeMs": 9_000, "reason": "lost"});
    assert_eq!(ask(&logic, "/v1/users/alice:revoke", body).await.0, 200);
    let close = |message: &Down| match message {
        Down::Close(close) => Some(close.clone()),
        _ => None,
    };
    let close = gateway.hear("a close", close).await;
    assert_eq!((close.handle, close.session_epoch, close.code), (1, phone.session_epoch, 4500));
    assert_eq!(close.reason, "the sign-in was revoked: lost");
    assert!(ask(&logic, "/v1/users/alice:disconnect", json!({})).await.0 == 200);
    logic.stop().await;
}

#[tokio::test]
async fn each_of_many_gateways_that_attach_is_told_what_was_revoked_up_to_then() {
    let logic = in_memory().await;
    let count = |message: &Down| match message {
        Down::Revoked(carried) => Some(carried.records.len()),
        _ => None,
    };
    for n in 1..=20 {
        // After those before it were told what was read for them.
        let path = format!("/v1/users/user-{n}:revoke");
        assert_eq!(ask(&logic, &path, json!({"notBeforeMs": 9_000})).await.0, 200);
        let gateway = Gateway::attach(&logic, &format!("g{n}"), 1);
        assert_eq!(gateway.hear("what was revoked", count).await, n);
    }
    logic.stop().await;
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_revoked_whole() {
    let logic = in_memory().await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let context = std::sync::Arc::clone(logic.context());
    let (lock, mut asked) = tokio::sync::oneshot::channel::<()>();
    let asking = tokio::spawn(async move {
        let _gone = lock;
        crate::revoke::revoke(&context, ("alice", "phone"), None, "").await
    });
    // Without a time the answer comes at the next whole second: it is given up before.
    while logic.context().store.revocations("alice").await.expect("reads").is_empty() {
        tokio::task::yield_now().await;
    }
    asking.abort();
    assert!((&mut asked).await.is_err(), "nobody waits");
    assert_eq!(told(&gateway).await.0, "phone");
    logic.stop().await;
}

#[tokio::test]
async fn without_a_time_it_is_the_next_second_and_the_answer_comes_when_that_has_begun() {
    let logic = in_memory().await;
    let clock = crate::system_clock();
    let asked_ms = clock();
    let (status, answer) = ask(&logic, "/v1/users/alice:revoke", json!({})).await;
    let answered_ms = clock();
    assert_eq!(status, 200, "{answer}");
    let not_before_ms: i64 = answer["notBeforeMs"].as_str().and_then(|ms| ms.parse().ok()).expect("a time");
    assert_eq!(not_before_ms % 1_000, 0);
    // A login before the question has an older second, one after the answer has this one or a later one.
    assert!(asked_ms < not_before_ms && asked_ms / 1_000 * 1_000 <= not_before_ms);
    assert!(not_before_ms / 1_000 <= answered_ms / 1_000, "{not_before_ms} {answered_ms}");
    let gateway = Gateway::attach(&logic, "g1", 1);
    let good = async |issued_ms| gateway.ask_to_open(opening("d", 1, issued_ms)).await.session_epoch > 0;
    assert!(!good(not_before_ms - 1).await);
    assert!(good(answered_ms / 1_000 * 1_000).await);
    logic.stop().await;
}

#[tokio::test]
async fn what_cannot_be_revoked_is_refused() {
    let logic = in_memory().await;
    let hours_ahead = crate::system_clock()() + 7_200_000;
    for (path, body, named) in [
        ("/v1/users/a%20b:revoke", json!({}), "userId"),
        ("/v1/users/alice:revoke", json!({"deviceId": ""}), "deviceId"),
        ("/v1/users/alice:revoke", json!({"notBeforeMs": 0}), "notBeforeMs is 0"),
        ("/v1/users/alice:revoke", json!({"notBeforeMs": hours_ahead}), "a minute from now"),
        ("/v1/users/alice:revoke", json!({"notBeforeMs": "soon"}), "notBeforeMs"),
        ("/v1/users/alice:revoke", json!({"reason": "r".repeat(101)}), "reason"),
        ("/v1/users/alice:restore", json!({"deviceId": "a b"}), "deviceId"),
        ("/v1/users/alice:restore", json!({"deviceId": "d", "devices": true}), "devices"),
    ] {
        let (status, problem) = ask(&logic, path, body).await;
        assert_eq!(status, 400, "{path}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(named)), "{problem}");
    }
    logic.stop().await;
}
