//! The admin port's operations: who may ask, and how is answered.

use axum::{
    body::{Body, to_bytes},
    http::Request,
};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};

use super::OPERATIONS;
use crate::testing::{ADMIN_KEY, Fixture, config, report};

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
