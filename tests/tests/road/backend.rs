//! The back end's HTTP API: messages from the server's own user, presence, disconnect.

use anyhow::ensure;
use berth_tests::{
    TestResult,
    device::Device,
    fresh,
    http::{self, Answer},
    raw::Transport,
    server::Server,
    tokens::{self, SERVICE_KEY},
};
use serde_json::{Value, json};

async fn post(server: &Server, path: &str, body: &Value) -> anyhow::Result<Answer> {
    http::post(&format!("{}{path}", server.at.logic), Some(SERVICE_KEY), body).await
}

#[tokio::test]
async fn a_message_from_the_server_arrives() -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut alices = Device::connect(&server.at, Transport::WsJson, &alice, "d").await?;
    let message = |from: &str, id: &str| json!({"from":from,"to":{"userId":alice},"clientMsgId":id,"type":"notice","body":"aGVsbG8="});
    let answer = post(&server, "/v1/messages", &message("system", "m-1")).await?;
    ensure!(answer.status == 200 && answer.value()["messageId"].is_string(), "{answer:?}");
    let got = alices.receive(1).await?.remove(0);
    ensure!(got.from == "system" && got.r#type == "notice" && got.body == "hello".as_bytes(), "{got:?}");
    let id = got.message_id.to_string();
    ensure!(answer.value()["messageId"].as_str() == Some(&id), "{answer:?}");

    let again = post(&server, "/v1/messages", &message("system", "m-1")).await?.value();
    ensure!(again["duplicate"] == true && again["messageId"].as_str() == Some(&id), "{again}");
    let answer = post(&server, "/v1/messages", &message(&bob, "m-1")).await?;
    ensure!(answer.status == 200, "on behalf of a user: {answer:?}");
    ensure!(alices.receive(1).await?[0].from == bob);
    Ok(())
}

#[tokio::test]
async fn an_idempotency_key_stands_in_for_the_message_id() -> TestResult {
    let server = Server::shared().await?;
    let alice = fresh("alice");
    let key = fresh("key");
    let body = json!({"from":"system","to":{"userId":alice},"body":"aGk="}).to_string();
    let mut ids = Vec::new();
    for _ in 0..2 {
        // The harness' client sets no other headers; curl does.
        let output = std::process::Command::new("curl")
            .args(["-s", "-X", "POST", &format!("{}/v1/messages", server.at.logic), "-d", &body])
            .args(["-H", &format!("Authorization: Bearer {SERVICE_KEY}")])
            .args(["-H", "Content-Type: application/json", "-H", &format!("Idempotency-Key: {key}")])
            .output()?;
        let answer: Value = serde_json::from_slice(&output.stdout)?;
        ids.push(answer["messageId"].clone());
    }
    ensure!(ids[0].is_string() && ids[0] == ids[1], "{ids:?}");
    let neither = post(&server, "/v1/messages", &json!({"from":"system","to":{"userId":alice}})).await?;
    ensure!(neither.status == 400, "neither id nor key: {neither:?}");
    Ok(())
}

#[tokio::test]
async fn only_the_service_key_opens_it() -> TestResult {
    let server = Server::shared().await?;
    let alice = tokens::user("alice");
    let paths = ["/v1/messages", "/v1/presence:batchGet", "/v1/users/alice:disconnect"];
    for path in paths {
        for token in [None, Some("wrong"), Some(alice.as_str()), Some(tokens::ADMIN_KEY)] {
            let answer = http::post(&format!("{}{path}", server.at.logic), token, &json!({})).await?;
            ensure!(
                answer.status == 401 && answer.value()["reason"] == "UNAUTHENTICATED",
                "{path}: {answer:?}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn bad_messages_are_named_problems() -> TestResult {
    let server = Server::shared().await?;
    let cases = [
        (json!({"from":"system","clientMsgId":"x"}), 400, "to"),
        (json!({"from":"a b","to":{"userId":"u"},"clientMsgId":"x"}), 400, "from"),
        (json!({"from":"system","to":{"userId":"a b"},"clientMsgId":"x"}), 400, "userId"),
        (json!({"from":"system","to":{"userId":"u"},"clientMsgId":"x","body":"!"}), 400, "body"),
    ];
    for (body, status, field) in cases {
        let answer = post(&server, "/v1/messages", &body).await?;
        ensure!(answer.status == status, "{body}: {answer:?}");
        let content = answer.header("content-type").unwrap_or_default();
        ensure!(content.starts_with("application/problem+json"), "{body}: {answer:?}");
        let detail = answer.value()["detail"].as_str().unwrap_or_default().to_owned();
        ensure!(detail.contains(field), "{body}: {answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn presence_is_given_in_batches() -> TestResult {
    let server = Server::shared().await?;
    let (alice, nobody) = (fresh("alice"), fresh("nobody"));
    let device = Device::connect(&server.at, Transport::Tcp, &alice, "phone").await?;
    let answer = post(&server, "/v1/presence:batchGet", &json!({"userIds":[alice, nobody]})).await?;
    let users = answer.value()["users"].clone();
    ensure!(users[0]["userId"] == alice.as_str() && users[0]["online"] == true, "{answer:?}");
    ensure!(users[0]["devices"][0]["deviceId"] == "phone", "{answer:?}");
    ensure!(users[1]["userId"] == nobody.as_str() && users[1]["online"] != true, "{answer:?}");
    drop(device);
    Ok(())
}

#[tokio::test]
async fn a_kicked_user_is_closed_with_4503_on_all_devices() -> TestResult {
    let server = Server::shared().await?;
    let (alice, bob) = (fresh("alice"), fresh("bob"));
    let mut bobs = Device::connect(&server.at, Transport::WsJson, &bob, "d").await?;
    let mut devices = Vec::new();
    for (transport, device) in Transport::ALL.into_iter().zip(["a", "b", "c"]) {
        devices.push(Device::connect(&server.at, transport, &alice, device).await?);
    }
    let answer =
        post(&server, &format!("/v1/users/{alice}:disconnect"), &json!({"reason":"left the firm"})).await?;
    ensure!(answer.status == 200, "{answer:?}");
    for mut device in devices {
        let transport = device.raw.transport;
        let ending = device.ending().await?;
        ensure!(ending.code(transport)? == 4503, "{ending:?}");
        ensure!(ending.disconnect.is_some_and(|d| d.reason.contains("left the firm")), "the reason is told");
    }
    bobs.heartbeat().await?;
    Ok(())
}

async fn put(server: &Server, path: &str, members: &[String]) -> anyhow::Result<Answer> {
    let body = json!({ "members": members }).to_string();
    http::send("PUT", &format!("{}{path}", server.at.logic), Some(SERVICE_KEY), Some(body)).await
}

#[tokio::test]
async fn a_groups_members_are_read_in_pages() -> TestResult {
    let server = Server::shared().await?;
    // Ids may have colons, and the path may be encoded.
    let path = format!("/v1/groups/{}", fresh("a%3Agroup:of@many"));
    let mut members: Vec<String> = (0..250).map(|_| fresh("member:of")).collect();
    let made = put(&server, &path, &members).await?;
    ensure!(made.status == 200 && made.value()["memberCount"] == 250, "{made:?}");
    members.sort();
    let mut read = Vec::new();
    let mut cursor = String::new();
    loop {
        let url = format!("{}{path}?limit=100&cursor={cursor}", server.at.logic);
        let page = http::get(&url, Some(SERVICE_KEY)).await?.value();
        ensure!(
            page["memberCount"] == 250 && page["conversationId"] == made.value()["conversationId"],
            "{page}"
        );
        let these: Vec<String> = serde_json::from_value(page["members"].clone())?;
        ensure!(!these.is_empty() && these.len() <= 100, "{page}");
        read.extend(these);
        cursor = page["cursor"].as_str().unwrap_or_default().to_owned();
        if cursor.is_empty() {
            break;
        }
    }
    ensure!(read == members, "{} of {}", read.len(), members.len());
    Ok(())
}

#[tokio::test]
async fn a_group_is_changed_and_the_same_again_changes_nothing() -> TestResult {
    let server = Server::shared().await?;
    let (path, alice, bob, carol) =
        (format!("/v1/groups/{}", fresh("group")), fresh("alice"), fresh("bob"), fresh("carol"));
    let first = put(&server, &path, &[alice.clone(), bob.clone()]).await?.value();
    for _ in 0..2 {
        let added =
            post(&server, &format!("{path}/members:add"), &json!({"members": [carol, bob]})).await?.value();
        ensure!(added["memberCount"] == 3 && added["conversationId"] == first["conversationId"], "{added}");
    }
    for _ in 0..2 {
        let removed =
            post(&server, &format!("{path}/members:remove"), &json!({"members": [alice]})).await?.value();
        ensure!(removed["memberCount"] == 2, "{removed}");
    }
    let replaced = put(&server, &path, std::slice::from_ref(&alice)).await?.value();
    ensure!(
        replaced["memberCount"] == 1 && replaced["conversationId"] == first["conversationId"],
        "{replaced}"
    );
    let mut device = Device::connect(&server.at, Transport::WsJson, &carol, "d").await?;
    let kinds: Vec<_> = device.sync().await?.into_iter().map(|item| format!("{:?}", item.event)).collect();
    ensure!(kinds.len() == 2 && kinds[0].contains("joined") && kinds[1].contains("left"), "{kinds:?}");
    Ok(())
}

/// What a caller reads of a body that is too long is the answer, not a reset.
#[tokio::test]
async fn a_body_too_long_is_answered() -> TestResult {
    let server = Server::shared().await?;
    let members: Vec<String> = (0..40_000).map(|n| format!("a-member-with-a-long-name-{n:038}")).collect();
    let answer = put(&server, "/v1/groups/too-long", &members).await?;
    ensure!(answer.status == 413 && answer.value()["reason"] == "INVALID_ARGUMENT", "{answer:?}");
    Ok(())
}
