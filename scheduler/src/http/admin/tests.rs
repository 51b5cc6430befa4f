//! The admin port's operations: who may ask, and how is answered.

use axum::{
    body::{Body, to_bytes},
    http::Request,
};
use berth_proto::wire::{GatewayReport, MoveProgress, MovePurpose, from_scheduler};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};

use super::OPERATIONS;
use crate::{
    Config,
    testing::{ADMIN_KEY, FakeGateway, Fixture, config, eventually, report},
};

/// Asks the routes as the admin port would: the status and the body.
pub(crate) async fn ask(
    fixture: &Fixture,
    key: &str,
    method: &str,
    path: &str,
    body: &Value,
) -> (u16, Value) {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {key}"))
        .body(body)
        .expect("a request");
    let routes = TowerToHyperService::new(fixture.scheduler.admin_routes());
    let answer = hyper::service::Service::call(&routes, request).await.expect("infallible");
    let status = answer.status().as_u16();
    let body = to_bytes(answer.into_body(), 1 << 20).await.expect("is memory");
    (status, serde_json::from_slice(&body).expect("JSON"))
}

#[tokio::test]
async fn every_operation_wants_the_admin_key() {
    let fixture = Fixture::start(config()).await;
    let own = OPERATIONS.iter().map(|operation| (operation.named, operation.path));
    for (method, path) in own.chain([("GET", "/there-is-none"), ("PATCH", "/gateways")]) {
        for key in ["", "wrong", "the admin key of the tests, 32 c"] {
            let (status, problem) =
                ask(&fixture, key, method, &format!("/admin/v1{path}"), &Value::Null).await;
            assert_eq!(
                (status, &problem["reason"]),
                (401, &json!("UNAUTHENTICATED")),
                "{method} {path} {key:?}"
            );
        }
    }
    assert!(fixture.metric(r#"berth_scheduler_admin_requests_total{outcome="unauthenticated"}"#) > 1.0);
}

#[tokio::test]
async fn the_key_before_lets_in_while_it_is_changed_and_an_empty_one_nobody() {
    const OLD: &str = "the key that operators had before it";
    for (new, old, good) in [
        (ADMIN_KEY, OLD, &[ADMIN_KEY, OLD][..]),
        (ADMIN_KEY, "", &[ADMIN_KEY][..]),
        ("", OLD, &[OLD][..]),
        ("", "", &[][..]),
    ] {
        let (admin_key, previous_admin_key) = (new.to_owned(), old.to_owned());
        let fixture = Fixture::start(Config { admin_key, previous_admin_key, ..config() }).await;
        for key in [ADMIN_KEY, OLD, ""] {
            let (status, _) = ask(&fixture, key, "GET", "/admin/v1/gateways", &Value::Null).await;
            assert_eq!(status, if good.contains(&key) { 200 } else { 401 }, "{key:?} of {new:?}, {old:?}");
        }
    }
}

#[tokio::test]
async fn what_is_not_there_is_a_problem() {
    let fixture = Fixture::start(config()).await;
    for (method, path) in
        [("GET", "/admin/v1/nothing"), ("PATCH", "/admin/v1/gateways"), ("GET", "/admin/v1")]
    {
        let (status, problem) = ask(&fixture, ADMIN_KEY, method, path, &Value::Null).await;
        assert_eq!((status, &problem["reason"]), (404, &json!("NOT_FOUND")), "{problem}");
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(path)), "{problem}");
    }
}

#[tokio::test]
async fn the_operations_and_the_gateways_are_listed() {
    let fixture = Fixture::start(config()).await;
    let (status, list) = ask(&fixture, ADMIN_KEY, "GET", "/admin/v1/", &Value::Null).await;
    assert_eq!((status, list["operations"].as_array().map(Vec::len)), (200, Some(OPERATIONS.len())));

    let mut draining = report("gw-2");
    (draining.draining, draining.connections) = (true, 7);
    let _first = fixture.gateway(report("gw-1")).await;
    let _second = fixture.gateway(draining).await;
    let (status, list) = ask(&fixture, ADMIN_KEY, "GET", "/admin/v1/gateways", &Value::Null).await;
    let told = |at: usize, field: &str| list["gateways"][at][field].clone();
    assert_eq!((status, told(0, "gatewayId"), told(0, "state")), (200, json!("gw-1"), json!("assignable")));
    assert_eq!(
        (told(1, "gatewayId"), told(1, "state"), told(1, "connections")),
        (json!("gw-2"), json!("draining"), json!(7))
    );
}

fn order(more: &Value) -> Value {
    let mut order = json!({ "ratePerSecond": 10, "spreadMs": 1_000, "deadlineMs": 60_000, "waitLbMs": 1_000, "by": "ops" });
    for (name, value) in more.as_object().into_iter().flatten() {
        order[name] = value.clone();
    }
    order
}

#[tokio::test]
async fn a_drain_is_ordered_shown_refused_twice_and_ended() {
    let fixture = Fixture::start(config()).await;
    let full = GatewayReport { connections: 500, ..report("gw-1") };
    let _first = fixture.gateway(full).await;
    let _second = fixture.gateway(report("gw-2")).await;
    let put = async |id: &str, more: Value| {
        ask(&fixture, ADMIN_KEY, "PUT", &format!("/admin/v1/drains/{id}"), &order(&more)).await
    };
    let list =
        async || ask(&fixture, ADMIN_KEY, "GET", "/admin/v1/drains", &Value::Null).await.1["drains"].clone();

    let (status, plan) = put("gw-1", json!({ "dryRun": true })).await;
    let plan = &plan["dryRun"];
    assert_eq!(
        (status, &plan["connections"], &plan["movingMs"]),
        (200, &json!(500), &json!(50_000)),
        "{plan}"
    );
    assert_eq!(plan["to"], json!([{ "gatewayId": "gw-2", "connections": 500, "room": 1_000 }]));
    assert_eq!((&plan["withinDeadline"], &plan["withoutPlace"]), (&json!(true), &json!(0)));
    assert_eq!((list().await, fixture.scheduler.core.pending_len()), (json!([]), 0), "nothing is changed");

    for (id, more, status, part) in [
        ("gw-9", json!({}), 404, "gw-1, gw-2"),
        ("gw-1", json!({ "ratePerSecond": 0 }), 400, "ratePerSecond 0"),
        ("gw-1", json!({ "deadlineMs": 1_000 }), 400, "deadlineMs 1000"),
        ("gw-1", json!({ "toPool": "nowhere" }), 400, "toPool \"nowhere\""),
        ("gw-1", json!({ "spreadMs": 900_000 }), 400, "spreadMs 900000"),
        ("gw-1", json!({ "rate": 3 }), 400, "unknown field"),
    ] {
        let (got, problem) = put(id, more).await;
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(got == status && detail.contains(part), "{got} {problem}");
    }

    assert_eq!(put("gw-1", json!({})).await.0, 200);
    let shown = list().await[0].clone();
    assert_eq!(
        (&shown["gatewayId"], &shown["phase"], &shown["by"]),
        (&json!("gw-1"), &json!("told"), &json!("ops"))
    );
    let (status, problem) = put("gw-1", json!({})).await;
    assert_eq!((status, &problem["reason"]), (409, &json!("CONFLICT")));
    let delete = async || ask(&fixture, ADMIN_KEY, "DELETE", "/admin/v1/drains/gw-1", &Value::Null).await.0;
    for by in ["o ps".to_owned(), "x".repeat(65)] {
        let body = json!({ "by": by });
        let (status, _) = ask(&fixture, ADMIN_KEY, "DELETE", "/admin/v1/drains/gw-1", &body).await;
        assert_eq!((status, list().await.as_array().map(Vec::len)), (400, Some(1)), "{by}");
    }
    assert_eq!((delete().await, list().await, delete().await), (200, json!([]), 404));
    assert_eq!(put("gw-1", json!({})).await.0, 200, "and again, whatever the clock says");
}

#[tokio::test]
async fn a_rebalance_is_told_to_those_who_shed() {
    let fixture = Fixture::start(config()).await;
    let full = fixture.gateway(GatewayReport { connections: 600, ..report("gw-1") }).await;
    let empty = fixture.gateway(GatewayReport { connections: 0, ..report("gw-2") }).await;
    let put = async |more: Value| {
        let mut order = json!({ "within": 0.1, "ratePerSecond": 5 });
        order.as_object_mut().expect("is one").extend(more.as_object().expect("is one").clone());
        ask(&fixture, ADMIN_KEY, "PUT", "/admin/v1/rebalance", &order).await
    };
    let orders = |gateway: &FakeGateway| {
        let heard = gateway.heard().into_iter();
        heard
            .filter_map(|message| match message {
                from_scheduler::Message::Order(order) => Some(order.count),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    let (status, plan) = put(json!({ "dryRun": true })).await;
    assert_eq!((status, &plan["connections"]), (200, &json!(270)), "{plan}");
    for (more, status) in
        [(json!({ "within": 1.5 }), 400), (json!({ "ratePerSecond": 0 }), 400), (json!({ "pool": "x" }), 404)]
    {
        assert_eq!(put(more).await.0, status);
    }
    assert_eq!(put(json!({ "pool": "stable" })).await.0, 200);
    eventually("the fullest is told", || orders(&full) == [270]).await;
    let stop = async || ask(&fixture, ADMIN_KEY, "DELETE", "/admin/v1/rebalance", &Value::Null).await;
    assert_eq!(stop().await, (200, json!({ "gateways": ["gw-1"] })));
    eventually("and that it is over", || orders(&full) == [270, 0]).await;
    assert!(orders(&empty).is_empty());
    assert_eq!(stop().await, (200, json!({ "gateways": [] })));

    // One that another scheduler ordered.
    let says = |phase: &str| {
        let purpose = MovePurpose::Rebalance.into();
        let moves =
            vec![MoveProgress { purpose, order: 5, phase: phase.to_owned(), ..MoveProgress::default() }];
        empty.report(GatewayReport { moves, ..report("gw-2") });
    };
    let known = |phase: &str| {
        let progress = fixture.scheduler.core.moving.progress(&fixture.scheduler.core.fleet.load());
        progress.get("gw-2").is_some_and(|moves| moves[0].phase == phase)
    };
    for phase in ["done", "stopped"] {
        says(phase);
        eventually("that is known", || known(phase)).await;
        assert_eq!(stop().await.1, json!({ "gateways": [] }), "{phase}");
    }
    says("paused");
    eventually("that is known", || known("paused")).await;
    assert_eq!(stop().await.1, json!({ "gateways": ["gw-2"] }));
    eventually("it is told", || orders(&empty) == [0]).await;
}
