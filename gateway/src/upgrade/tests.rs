//! The upgrade by the example of RFC 6455, and each way to get it wrong.

use proptest::prelude::*;

use super::*;

/// The request of RFC 6455, 1.3, with our path and a subprotocol.
fn request(change: impl Fn(&str) -> String) -> String {
    let lines = [
        "GET /v1/ws HTTP/1.1",
        "Host: server.example.com",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Origin: http://example.com",
        "Sec-WebSocket-Protocol: chat, berth.v1.proto, berth.v1.json",
        "Sec-WebSocket-Version: 13",
    ];
    lines.map(change).join("\r\n") + "\r\n\r\n"
}

/// The request with every line that begins so replaced.
fn with(start: &str, line: &str) -> String {
    request(|old| if old.starts_with(start) { line.to_owned() } else { old.to_owned() })
}

fn status(text: &str) -> &'static str {
    match read(text.as_bytes(), &Origins::default()) {
        Upgrade::Refused(refusal) => &refusal.status[..3],
        Upgrade::Accepted { .. } => "101",
        Upgrade::Incomplete => "more",
    }
}

#[test]
fn the_rfcs_example_is_answered_with_the_rfcs_accept_key_and_the_first_known_subprotocol() {
    let text = request(str::to_owned) + "more";
    let Upgrade::Accepted { encoding, consumed, response } = read(text.as_bytes(), &Origins::default())
    else {
        panic!("accepted")
    };
    assert_eq!((encoding, consumed), (Encoding::Proto, text.len() - 4));
    assert!(response.starts_with("HTTP/1.1 101 ") && response.ends_with("\r\n\r\n"));
    assert!(response.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
    assert!(response.contains("Sec-WebSocket-Protocol: berth.v1.proto\r\n"));
}

#[test]
fn what_is_missing_is_said_with_its_status() {
    for (text, expected) in [
        (with("GET", "GET /v1/ws?ticket=x HTTP/1.1"), "101"),
        (with("Upgrade", "upgrade: WebSocket"), "101"),
        (with("Connection", "Connection: keep-alive, upgrade"), "101"),
        (with("GET", "GET /v1/wss HTTP/1.1"), "404"),
        (with("GET", "GET / HTTP/1.1"), "404"),
        (with("GET", "POST /v1/ws HTTP/1.1"), "405"),
        (with("GET", "GET /v1/ws HTTP/1.0"), "400"),
        (with("Upgrade", "Upgrade: h2c"), "426"),
        (with("Connection", "Connection: close"), "426"),
        (with("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8"), "426"),
        (with("Sec-WebSocket-Key", "X: y"), "400"),
        (with("Sec-WebSocket-Key", "Sec-WebSocket-Key: short"), "400"),
        (with("Sec-WebSocket-Protocol", "X: y"), "400"),
        (with("Sec-WebSocket-Protocol", "Sec-WebSocket-Protocol: chat"), "400"),
        (with("Host", &format!("X: {}", "y".repeat(MAX_HEAD))), "431"),
        (with("Host", &["X: y"; 70].join("\r\n")), "431"),
        (with("Host", "no colon"), "400"),
    ] {
        assert_eq!(status(&text), expected, "{text}");
    }
}

#[test]
fn a_page_of_another_origin_is_forbidden_and_a_client_without_one_is_not() {
    let origins: Origins = "https://app.example.com".parse().expect("an origin");
    let refused = |text: &str| matches!(read(text.as_bytes(), &origins), Upgrade::Refused(FORBIDDEN));
    assert!(refused(&request(str::to_owned)), "http://example.com");
    assert!(!refused(&with("Origin", "origin: https://app.example.com")));
    assert!(!refused(&with("Origin", "X: y")), "no browser");
    assert!(refused(&with("Origin", "Origin: null")));
    assert!(refused(&with("Origin", "Origin:")));
    assert!(refused(&with("Origin", "Origin: https://app.example.com\r\nOrigin: https://evil.example")));
}

#[test]
fn every_refusal_is_one_whole_http_answer() {
    for refusal in
        [MALFORMED, LARGE, METHOD, NO_KEY, NO_PROTOCOL, NOT_FOUND, NOT_UPGRADE, FORBIDDEN, OVERLOADED]
    {
        let mut out = Vec::new();
        refusal.write(&mut out);
        let mut headers = [EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut headers);
        let Ok(Status::Complete(head)) = response.parse(&out) else { panic!("a whole head") };
        let length = response.headers.iter().find(|h| h.name == "Content-Length").expect("told");
        assert_eq!(length.value, (out.len() - head).to_string().as_bytes());
    }
}

proptest! {
    #[test]
    fn a_part_of_a_request_is_incomplete(cut in 0usize..1_000) {
        let text = request(str::to_owned);
        let cut = cut % text.len();
        prop_assert_eq!(read(&text.as_bytes()[..cut], &Origins::default()), Upgrade::Incomplete);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..300, with: u8) {
        crate::fuzz::upgrade(&bytes);
        crate::fuzz::upgrade(&[b"GET ", &bytes[..]].concat());
        let mut changed = request(str::to_owned).into_bytes();
        let at = at % changed.len();
        changed[at] = with;
        crate::fuzz::upgrade(&changed);
    }
}
