//! Nothing that lets somebody in is ever logged, however much is logged.

use anyhow::ensure;
use berth_proto::schedule::ScheduleRequest;
use berth_tests::{
    TestResult,
    device::{Device, gateway_of, hello, schedule},
    fresh, http,
    raw::{Raw, Transport},
    server::{Options, Server},
    tokens,
};
use serde_json::json;

#[tokio::test]
async fn no_ticket_token_or_key_is_in_a_log_of_everything() -> TestResult {
    let server = Server::start(Options::default().env("BERTH_LOG__FILTER", "trace")).await?;
    let mut secrets = vec![
        ("the jwt secret", tokens::JWT_SECRET.to_owned()),
        ("the ticket key", tokens::TICKET_KEY.to_owned()),
        ("the cluster key", tokens::CLUSTER_KEY.to_owned()),
        ("the service key", tokens::SERVICE_KEY.to_owned()),
        ("the admin key", tokens::ADMIN_KEY.to_owned()),
    ];
    for transport in Transport::ALL {
        let user = fresh("alice");
        let request = ScheduleRequest { device_id: "d".to_owned(), ..Default::default() };
        let token = tokens::user(&user);
        let answer = schedule(&server.at, &user, &request).await?;
        let gateway = gateway_of(&answer, transport)?;
        let mut device = Device::connect_to(&gateway, transport, &answer.ticket, "d").await?;
        device.send(&fresh("bob"), "c-1", "the-body-of-a-message").await?;
        secrets.push(("a token", token.clone()));
        secrets.push(("a ticket", answer.ticket.clone()));
        // Refused ones too: expired, for other gateways, forged, of another device.
        let mut late = tokens::ticket(&user, "d", "gw-1");
        late.expires_at_ms = 1;
        let elsewhere = tokens::sign(&tokens::ticket(&user, "d", "gw-9"));
        let forged = tokens::sign_with("another key, as long as it must be.....", &late);
        for ticket in [tokens::sign(&late), elsewhere, forged, answer.ticket] {
            let mut raw = Raw::connect(transport, &gateway).await?;
            raw.send(hello(&ticket, "other")).await?;
            let ending = raw.ending().await?;
            secrets.extend(
                ending.disconnect.map(|d| ("a redirect's ticket", d.ticket)).filter(|(_, t)| !t.is_empty()),
            );
            secrets.push(("a refused ticket", ticket));
        }
        // A token that is refused.
        let bad = format!("{token}x");
        http::post(&format!("{}/v1/schedule", server.at.scheduler), Some(&bad), &json!({"deviceId":"d"}))
            .await?;
        secrets.push(("a message's body", "the-body-of-a-message".to_owned()));
    }
    let url = format!("{}/v1/messages", server.at.logic);
    let body = json!({"from":"system","to":{"userId":"x"},"clientMsgId":"m","type":"text","body":"aGk="});
    ensure!(http::post(&url, Some(tokens::SERVICE_KEY), &body).await?.status == 200);
    let explain = format!("{}/v1/schedule:explain", server.at.scheduler);
    http::post(&explain, Some(tokens::ADMIN_KEY), &json!({"userId":"alice","deviceId":"d"})).await?;
    let lines = server.process().log().lines();
    ensure!(lines.iter().any(|line| line.contains("\"TRACE\"")), "everything is logged");
    for (what, secret) in &secrets {
        // Half of it would be too much as well.
        let part = &secret[secret.len() / 2..];
        let found = lines.iter().find(|line| line.contains(part));
        ensure!(found.is_none(), "{what} is in the log: {}", found.map_or("", String::as_str));
    }
    Ok(())
}
