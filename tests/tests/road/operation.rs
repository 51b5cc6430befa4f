//! Health, version and metrics of the admin port, and that keys outlive a restart.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use berth_tests::{
    TestResult,
    device::Device,
    fresh, http,
    metrics::Scrape,
    raw::{Raw, Transport},
    root,
    server::{Options, Server},
    tokens::{CLUSTER_KEY, JWT_SECRET},
    wait,
};
use serde_json::json;

#[tokio::test]
async fn the_admin_port_answers() -> TestResult {
    let server = Server::shared().await?;
    for path in ["/livez", "/readyz", "/metrics", "/version"] {
        let answer = http::get(&format!("{}{path}", server.at.admin), None).await?;
        ensure!(answer.status == 200, "{path}: {answer:?}");
    }
    let answer = http::get(&format!("{}/nothing", server.at.admin), None).await?;
    ensure!(answer.status == 404, "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn the_metrics_others_rely_on_exist_from_the_start_and_move() -> TestResult {
    let server = Server::start(Options::default()).await?;
    let at_start = Scrape::fetch(&server.at.admin).await?;
    let relied_on = [
        "berth_gateway_connections",
        "berth_gateway_connections_closed_total",
        "berth_gateway_heartbeat_timeouts_total",
        "berth_scheduler_decisions_total",
        "berth_logic_messages_accepted_total",
        "berth_logic_messages_delivered_total",
    ];
    for name in relied_on {
        ensure!(at_start.has(name), "{name} is missing at the start");
    }
    for (name, labels, _) in at_start.all() {
        let ours = ["berth_scheduler_", "berth_gateway_", "berth_logic_", "berth_build_info", "process_"];
        ensure!(ours.iter().any(|prefix| name.starts_with(prefix)), "{name}");
        ensure!(
            !labels.keys().any(|key| key.contains("user") || key.contains("device")),
            "{name} {labels:?}"
        );
    }

    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut alices = Device::connect(&server.at, Transport::WsJson, &alice, "d").await?;
    let mut bobs = Device::connect(&server.at, Transport::Tcp, &bob, "d").await?;
    for n in 0..5 {
        alices.send(&bob, &format!("c-{n}"), "x").await?;
    }
    bobs.receive(5).await?;
    let mut bad = Raw::connect(Transport::WsJson, &server.at.gateway).await?;
    bad.send_bytes(b"nonsense".to_vec()).await?;
    bad.ending().await?;

    wait::until("the metrics moved", || async {
        let now = Scrape::fetch(&server.at.admin).await?;
        let stable = [("pool", "stable"), ("reason", "DEFAULT")];
        let moved = now.sum("berth_gateway_connections", &[]) == 2.0
            && now.sum("berth_gateway_connections_closed_total", &[("code", "bad_frame")])
                + now.sum("berth_gateway_connections_closed_total", &[("code", "4501")])
                == 1.0
            && now.sum("berth_scheduler_decisions_total", &stable) == 2.0
            && now.sum("berth_logic_messages_accepted_total", &[]) == 5.0
            && now.sum("berth_logic_messages_delivered_total", &[]) >= 5.0;
        Ok(moved.then_some(()))
    })
    .await?;
    drop((alices, bobs));
    wait::until("closed connections are counted off", || async {
        let now = Scrape::fetch(&server.at.admin).await?;
        Ok((now.sum("berth_gateway_connections", &[]) == 0.0).then_some(()))
    })
    .await
}

/// A document that names a metric which does not exist sends an operator the wrong way.
#[tokio::test]
async fn every_metric_that_the_documents_name_exists() -> TestResult {
    let server = Server::start(Options::default().policy(crate::metrics::RULE)).await?;
    let scrape = Scrape::fetch(&server.at.admin).await?;
    let there: BTreeSet<&str> = scrape.all().map(|(name, _, _)| name).collect();
    let mut documents = crate::docs::documents()?;
    documents.push(root().join("ARCHITECTURE.md"));
    // Its tables have a stricter test of their own: metrics.rs.
    documents.retain(|path| !path.ends_with("docs/operating.md"));
    for document in documents {
        let document = document.display();
        let text = std::fs::read_to_string(document.to_string()).with_context(|| document.to_string())?;
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let roles = ["berth_scheduler_", "berth_gateway_", "berth_logic_"];
        for word in words.filter(|word| roles.iter().any(|role| word.starts_with(role))) {
            let parts = [String::new(), "_count".to_owned(), "_bucket".to_owned()];
            let known = parts.iter().any(|part| there.contains(format!("{word}{part}").as_str()));
            ensure!(known, "{document} names {word}, which is no metric");
        }
    }
    Ok(())
}

#[tokio::test]
async fn dev_makes_its_own_keys_and_keeps_them() -> TestResult {
    let mut server = Server::start(Options::default().own_keys()).await?;
    let (at, schedule) = (server.at.clone(), json!({"deviceId":"d"}));
    let token = at.tokens.get("alice").context("a token for alice")?;
    let url = |server: &Server| format!("{}/v1/schedule", server.at.scheduler);
    ensure!(http::post(&url(&server), Some(token), &schedule).await?.status == 200);
    ensure!(at.service_key.len() >= 32 && at.admin_key.len() >= 32 && at.service_key != at.admin_key);
    server.restart(&[]).await?;
    ensure!(http::post(&url(&server), Some(token), &schedule).await?.status == 200, "the token still works");
    ensure!((&server.at.service_key, &server.at.admin_key) == (&at.service_key, &at.admin_key));
    Ok(())
}

/// What a user should not find in a log: his token, his ticket, his words.
#[tokio::test]
async fn no_secret_and_no_message_is_logged_even_at_trace() -> TestResult {
    let server = Server::start(Options::default().env("BERTH_LOG__FILTER", "trace")).await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let request = berth_proto::schedule::ScheduleRequest { device_id: "d".into(), ..Default::default() };
    let answer = berth_tests::device::schedule(&server.at, &alice, &request).await?;
    let gateway = &server.at.gateway;
    let mut alices = Device::connect_to(gateway, Transport::WsJson, &answer.ticket, "d").await?;
    alices.send(&bob, "c-1", "a-secret-only-we-two-know").await?;
    alices.receive(1).await?;
    drop(alices);
    let log = server.process().log().clone();
    let token = berth_tests::tokens::user(&alice);
    let signature = token.rsplit('.').next().context("a token has a signature")?;
    for secret in [answer.ticket.as_str(), signature, "a-secret-only-we-two-know", JWT_SECRET, CLUSTER_KEY] {
        ensure!(!log.contains(secret), "the log contains {secret:.12}…");
    }
    let user_at_info = log.lines().into_iter().find(|line| {
        line.contains(&alice)
            && ["\"INFO\"", "\"WARN\"", "\"ERROR\""].iter().any(|level| line.contains(level))
    });
    ensure!(user_at_info.is_none(), "a user id above DEBUG: {user_at_info:?}");
    Ok(())
}
