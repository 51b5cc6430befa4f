//! The back-end API over a real socket.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{KEY, config, engine::Volatile, gateway::Gateway, in_memory, over, until};
use crate::{Logic, StoreChoice, store::Epoch};

async fn post(logic: &Logic, path: &str, headers: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(logic.local_addr()).await.expect("connects");
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: logic\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let kind = if status == 200 { "application/json" } else { "application/problem+json" };
    assert!(head.to_lowercase().contains(&format!("content-type: {kind}")), "{head}");
    (status, serde_json::from_str(body).expect("JSON"))
}

pub(super) async fn ask(logic: &Logic, path: &str, body: Value) -> (u16, Value) {
    post(logic, path, &format!("Authorization: Bearer {KEY}\r\n"), &body.to_string()).await
}

#[tokio::test]
async fn messages_of_the_back_end_arrive() {
    let logic = in_memory().await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let alice = gateway.open("alice", "d", 1).await;
    let message = json!({"from": "system", "to": {"userId": "alice"}, "clientMsgId": "n-1", "type": "news", "body": "aGk="});
    let (status, sent) = ask(&logic, "/v1/messages", message.clone()).await;
    assert_eq!(status, 200, "{sent}");
    alice.notified(1).await;
    let messages = alice.messages().await;
    assert_eq!((messages[0].from.as_str(), messages[0].body.as_ref()), ("system", &b"hi"[..]));
    assert_eq!(sent["messageId"], messages[0].message_id.to_string());
    assert_eq!(sent["conversationId"], messages[0].conversation_id.to_string());
    let (_, again) = ask(&logic, "/v1/messages", message).await;
    assert_eq!((&again["duplicate"], &again["messageId"]), (&json!(true), &sent["messageId"]));

    let headers = format!("Authorization: Bearer {KEY}\r\nIdempotency-Key: k-1\r\n");
    let body = json!({"from": "bob", "to": {"userId": "alice"}, "body": "aGk="}).to_string();
    let (status, _) = post(&logic, "/v1/messages", &headers, &body).await;
    assert_eq!(status, 200);
    assert_eq!(post(&logic, "/v1/messages", &headers, &body).await.1["duplicate"], json!(true));
    until("once", async || (alice.messages().await.len() == 2).then_some(())).await;
    assert_eq!(alice.messages().await[1].client_msg_id, "k-1");
    for absent in [json!(null), json!("")] {
        let body = json!({"from": "bob", "to": {"userId": "alice"}, "clientMsgId": absent, "type": null, "body": "aGk="});
        let (status, again) = post(&logic, "/v1/messages", &headers, &body.to_string()).await;
        assert_eq!((status, &again["duplicate"]), (200, &json!(true)), "{body}: {again}");
    }
    for from in [json!(null), json!("")] {
        let body = json!({"from": from, "to": {"userId": "alice"}, "clientMsgId": "n-2"});
        assert_eq!(ask(&logic, "/v1/messages", body).await.0, 200, "absent is the server's own user");
    }
    logic.stop().await;
}

#[tokio::test]
async fn presence_and_disconnect() {
    let logic = in_memory().await;
    let gateway = Gateway::attach(&logic, "g1", 1);
    let (phone, tablet) = (gateway.open("a:b", "phone", 1).await, gateway.open("a:b", "tablet", 2).await);
    let (status, found) = ask(&logic, "/v1/presence:batchGet", json!({"userIds": ["a:b", "nobody"]})).await;
    assert_eq!(status, 200);
    assert_eq!(found["users"][0]["online"], json!(true));
    assert_eq!(found["users"][0]["devices"].as_array().expect("a list").len(), 2);
    assert_ne!(found["users"][1]["online"], json!(true));
    let (status, done) = ask(&logic, "/v1/users/a:b:disconnect", json!({"reason": "banned"})).await;
    assert_eq!((status, &done["sessions"]), (200, &json!(2)));
    for session in [&phone, &tablet] {
        let closed = session.closed().await;
        assert_eq!((closed.code, closed.reason.as_str()), (4503, "banned"));
        assert_eq!(closed.session_epoch, session.opened.session_epoch);
    }
    let away = Gateway::attach(&logic, "g2", 1);
    drop(away.open("a:b", "watch", 3).await);
    drop(away);
    let (status, done) = ask(&logic, "/v1/users/a:b:disconnect", json!({"reason": null})).await;
    assert_eq!((status, &done["sessions"]), (200, &json!(2)), "the watch's gateway cannot be told");
    logic.stop().await;
}

#[tokio::test]
async fn what_may_be_tried_again_says_when() {
    let store = Volatile::new(4);
    let logic = over(config(StoreChoice::Memory), Volatile::new(1), store.clone(), Epoch::Keep).await;
    store.fail(true);
    let body = json!({"to": {"userId": "alice"}, "clientMsgId": "n-1"});
    let (status, problem) = ask(&logic, "/v1/messages", body).await;
    assert_eq!((status, &problem["reason"]), (503, &json!("UNAVAILABLE")), "{problem}");
    assert_eq!(problem["retryAfterMs"], json!(1000));
    logic.stop().await;
}

#[tokio::test]
async fn what_cannot_be_is_a_problem() {
    let logic = in_memory().await;
    let good = json!({"to": {"userId": "alice"}, "clientMsgId": "n-1"}).to_string();
    for headers in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic eDp5\r\n"] {
        let (status, problem) = post(&logic, "/v1/messages", headers, &good).await;
        assert_eq!((status, &problem["reason"]), (401, &json!("UNAUTHENTICATED")), "{headers}");
        assert!(problem["requestId"].is_string());
    }
    let cases = [
        ("/v1/messages", json!({"to": {"userId": "alice"}}), 400, "send.clientMsgId"),
        ("/v1/messages", json!({"to": {"userId": "a b"}, "clientMsgId": "x"}), 400, "send.to.userId"),
        ("/v1/messages", json!({"from": 7}), 400, "from"),
        ("/v1/messages", json!({"from": "a b", "clientMsgId": "x"}), 400, "from"),
        ("/v1/messages", json!({"to": 7}), 400, "to"),
        ("/v1/messages", json!({"to": {"groupId": "g"}, "clientMsgId": "x"}), 404, "group g does not exist"),
        (
            "/v1/messages",
            json!({"from": "bob", "to": {"userId": "system"}, "clientMsgId": "x"}),
            403,
            "system",
        ),
        ("/v1/presence:batchGet", json!({"userIds": "alice"}), 400, "userIds"),
        ("/v1/messages", json!({"to": {"userId": "alice"}, "clientMsgId": null}), 400, "send.clientMsgId"),
        ("/v1/presence:batchGet", json!({"userIds": vec!["u"; 201]}), 400, "presence.userIds"),
        ("/v1/users/alice:disconnect", json!({"reason": "r".repeat(101)}), 400, "reason"),
        ("/v1/users/a%20b:disconnect", json!({}), 400, "userId"),
        ("/v1/users/alice:explode", json!({}), 404, "nothing"),
        ("/v1/elsewhere", json!({}), 404, "nothing"),
    ];
    for (path, body, status, text) in cases {
        let (got, problem) = ask(&logic, path, body).await;
        let detail = problem["detail"].as_str().expect("a detail");
        assert!(got == status && detail.contains(text), "{path}: {got} {problem}");
        assert_eq!(problem["status"], status);
    }
    logic.stop().await;
}

/// A request with any method and headers beside the key's; the answer's head and body.
async fn raw(logic: &Logic, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String, Value) {
    let mut stream = TcpStream::connect(logic.local_addr()).await.expect("connects");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: logic\r\nConnection: close\r\nAuthorization: bearer {KEY}\r\n\
         Content-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head.to_lowercase(), serde_json::from_str(body).unwrap_or(Value::Null))
}

#[tokio::test]
async fn what_http_has_its_own_status_for_is_a_problem_too() {
    let logic = in_memory().await;
    let (status, head, problem) = raw(&logic, "DELETE", "/v1/groups/g", "", b"").await;
    assert_eq!((status, &problem["reason"]), (405, &json!("UNIMPLEMENTED")), "{head}");
    assert!(head.contains("\r\nallow: put, get"), "{head}");

    let (status, _, problem) =
        raw(&logic, "POST", "/v1/messages", "Content-Type: text/xml\r\n", b"<a/>").await;
    assert_eq!((status, &problem["reason"]), (415, &json!("INVALID_ARGUMENT")));
    let (status, _, _) = raw(&logic, "POST", "/v1/messages", "Content-Encoding: gzip\r\n", b"{}").await;
    assert_eq!(status, 415);
    for kind in ["application/json; charset=utf-8", "application/x-www-form-urlencoded", "text/plain"] {
        let headers = format!("Content-Type: {kind}\r\n");
        let (status, _, answer) =
            raw(&logic, "POST", "/v1/presence:batchGet", &headers, b"{\"userIds\":[\"a\"]}").await;
        assert_eq!((status, &answer["users"][0]["userId"]), (200, &json!("a")), "{kind}");
    }

    // The largest message passes, whatever more does not, and the caller reads the answer even of a body far too long.
    for (length, expected) in [(64 * 1024, 400), (64 * 1024 + 1, 413), (4 * 1024 * 1024, 413)] {
        let (status, _, problem) = raw(&logic, "POST", "/v1/messages", "", &vec![b' '; length]).await;
        assert_eq!((status, problem["status"].as_u64()), (expected, Some(u64::from(expected))), "{length}");
    }
    let (status, head, _) = raw(&logic, "POST", "/v1/elsewhere", "X-Request-Id: mine-1\r\n", b"").await;
    assert!(status == 404 && head.contains("\r\nx-request-id: mine-1"), "{head}");
    logic.stop().await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for_for_ever() {
    let logic = in_memory().await;
    let headers = format!("Authorization: Bearer {KEY}\r\nConnection: close\r\nContent-Length: 10\r\n");
    for (method, path) in [("POST", "/v1/messages"), ("PUT", "/v1/groups/g")] {
        let mut stream = TcpStream::connect(logic.local_addr()).await.expect("connects");
        let request = format!("{method} {path} HTTP/1.1\r\nHost: logic\r\n{headers}\r\n{{");
        stream.write_all(request.as_bytes()).await.expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("reads");
        assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("DEADLINE_EXCEEDED"), "{answer}");
    }
    logic.stop().await;
}

#[tokio::test]
async fn a_body_that_got_lost_changes_no_group_and_each_bad_member_is_named() {
    let logic = in_memory().await;
    let long = json!({ "members": vec!["m".repeat(64); 16_000] }).to_string();
    let cases = [
        ("PUT", "/v1/groups/g", String::new(), 400, "the body"),
        ("PUT", "/v1/groups/g", "{}".to_owned(), 400, "members is missing"),
        ("PUT", "/v1/groups/g", json!({"members": null}).to_string(), 400, "members is missing"),
        ("PUT", "/v1/groups/g", json!({"members": ["a", 7]}).to_string(), 400, "members[1]"),
        ("PUT", "/v1/groups/g", json!({"members": ["a", "b c"]}).to_string(), 400, "members[1]"),
        ("PUT", "/v1/groups/g", json!({"members": ["system"]}).to_string(), 400, "members[0]"),
        ("PUT", "/v1/groups/g%20h", json!({"members": []}).to_string(), 400, "groupId"),
        ("PUT", "/v1/groups/g", long, 413, "longer"),
        ("POST", "/v1/groups/g/members:add", json!({"members": ["é"]}).to_string(), 400, "members[0]"),
        ("POST", "/v1/groups/g/members:remove", "[]".to_owned(), 400, "the body"),
        ("GET", "/v1/groups/g?limit=1001", String::new(), 400, "limit"),
        ("GET", "/v1/groups/g?limit=-1", String::new(), 400, "limit"),
        ("GET", "/v1/groups/g?cursor=%20", String::new(), 400, "cursor"),
    ];
    for (method, path, body, expected, text) in cases {
        let (status, _, problem) = raw(&logic, method, path, "", body.as_bytes()).await;
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(status == expected && detail.contains(text), "{method} {path}: {status} {problem}");
    }
    logic.stop().await;
}
