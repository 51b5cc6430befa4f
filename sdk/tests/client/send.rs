//! Sends: one clientMsgId until the end, in order, within the caller's deadline.

use std::time::Duration;

use berth_client::{Client, RequestError, StopReason, To, record::SendRequest};
use berth_proto::{
    client::{SendResponse, Target, response::Result as Answer, server_frame::Frame as Down, target},
    code::ErrorCode,
};

use crate::fake::{Fake, Kind, close_code, soon, welcome};

fn accepted(message_id: u64) -> Answer {
    Answer::Send(SendResponse { message_id, ..Default::default() })
}

fn request(client_msg_id: &str) -> SendRequest {
    SendRequest {
        client_msg_id: client_msg_id.into(),
        to: Some(Target { to: Some(target::To::UserId("bob".into())) }),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_send_survives_a_lost_connection_under_its_id() {
    for kind in Kind::ALL {
        let fake = Fake::start().await;
        let (client, _events, mut peer) = fake.connect(fake.options(kind)).await;
        let gateway = async {
            let (_, first) = peer.sent().await;
            assert_eq!((first.r#type.as_str(), &first.body[..]), ("text", &b"hi"[..]));
            drop(peer);
            let mut peer = fake.accept().await;
            peer.hello().await;
            peer.send(Down::Welcome(welcome(0))).await;
            let (id, second) = peer.sent().await;
            assert_eq!(second, first);
            peer.answer(id, accepted(7)).await;
            peer
        };
        let sending = client.send(To::user("bob"), "text", "hi");
        let (sent, _peer) = soon("sending", async { tokio::join!(sending, gateway) }).await;
        assert_eq!(sent.expect("is accepted").message_id, 7);
    }
}

#[tokio::test]
async fn a_send_refused_for_now_comes_again_and_one_refused_for_good_does_not() {
    let fake = Fake::start().await;
    let (client, _events, mut peer) = fake.connect(fake.options(Kind::Json)).await;
    let gateway = async {
        let (id, first) = peer.sent().await;
        peer.answer(id, Answer::Error(ErrorCode::ResourceExhausted.error("too fast"))).await;
        let (id, second) = peer.sent().await;
        assert_eq!(second.client_msg_id, first.client_msg_id);
        peer.answer(id, Answer::Error(ErrorCode::AlreadyExists.error("another body"))).await;
    };
    let sending = client.send(To::user("bob"), "text", "hi");
    let (sent, ()) = soon("sending", async { tokio::join!(sending, gateway) }).await;
    let expected = RequestError::Refused {
        code: "ALREADY_EXISTS".into(),
        message: "another body".into(),
        retryable: false,
        retry_after_ms: 0,
    };
    assert_eq!(sent, Err(expected));
}

#[tokio::test]
async fn sends_keep_their_order_across_a_retryable_error() {
    let fake = Fake::start().await;
    let (client, _events, mut peer) = fake.connect(fake.options(Kind::Tcp)).await;
    let within = Duration::from_secs(20);
    let sends = async {
        let (first, second) = tokio::join!(
            client.send_request(request("c-1"), within),
            client.send_request(request("c-2"), within)
        );
        (first.expect("is accepted").message_id, second.expect("is accepted").message_id)
    };
    let gateway = async {
        let (id, send) = peer.sent().await;
        assert_eq!(send.client_msg_id, "c-1");
        peer.answer(id, Answer::Error(ErrorCode::Unavailable.error("not now"))).await;
        for (expected, message_id) in [("c-1", 1), ("c-2", 2)] {
            let (id, send) = peer.sent().await;
            assert_eq!(send.client_msg_id, expected);
            peer.answer(id, accepted(message_id)).await;
        }
    };
    let (ids, ()) = soon("sending", async { tokio::join!(sends, gateway) }).await;
    assert_eq!(ids, (1, 2));
}

#[tokio::test]
async fn a_send_without_an_answer_is_repeated_on_the_same_connection() {
    let fake = Fake::start().await;
    let mut options = fake.options(Kind::Tcp);
    options.request_timeout = Duration::from_millis(100);
    let (client, _events, mut peer) = fake.connect(options).await;
    let gateway = async {
        let (late, first) = peer.sent().await;
        let (id, second) = peer.sent().await;
        assert_eq!(first, second);
        assert_ne!(late, id, "each attempt is a request of its own");
        peer.answer(late, accepted(1)).await;
        peer.answer(id, accepted(2)).await;
    };
    let sending = client.send_request(request("c"), Duration::from_secs(20));
    let (sent, ()) = soon("sending", async { tokio::join!(sending, gateway) }).await;
    assert_eq!(sent.expect("is accepted").message_id, 2);
}

#[tokio::test]
async fn sends_wait_for_a_connection_and_end_with_their_deadline() {
    let fake = Fake::start().await;
    let (client, _events) = Client::start(fake.options(Kind::Proto)).await.expect("starts");
    let sent = client.send_request(request("c"), Duration::from_millis(50)).await;
    assert_eq!(sent, Err(RequestError::Deadline));
    let mut peer = fake.accept().await;
    peer.hello().await;
    let sending = client.send_request(request("d"), Duration::from_secs(20));
    let gateway = async {
        peer.send(Down::Welcome(welcome(0))).await;
        let (id, send) = peer.sent().await;
        assert_eq!(send.client_msg_id, "d", "nobody waits for c any more");
        peer.answer(id, accepted(1)).await;
    };
    let (sent, ()) = soon("sending", async { tokio::join!(sending, gateway) }).await;
    assert!(sent.is_ok());
}

#[tokio::test]
async fn a_stop_ends_what_waits() {
    let fake = Fake::start().await;
    let (client, _events, mut peer) = fake.connect(fake.options(Kind::Tcp)).await;
    let gateway = async {
        peer.sent().await;
        peer.disconnect(close_code(4503)).await;
    };
    let within = Duration::from_secs(20);
    let sends = async {
        tokio::join!(client.send_request(request("a"), within), client.send_request(request("b"), within))
    };
    let ((first, second), ()) = soon("stopping", async { tokio::join!(sends, gateway) }).await;
    let stopped = StopReason::Gateway { code: 4503, reason: "as the test wants".into() };
    assert_eq!(first, Err(RequestError::Stopped(stopped.clone())));
    assert_eq!(second, Err(RequestError::Stopped(stopped.clone())));
    let later = client.send_request(request("c"), within).await;
    assert_eq!(later, Err(RequestError::Stopped(stopped)));
}

#[tokio::test]
async fn a_send_that_cannot_be_is_not_sent() {
    let fake = Fake::start().await;
    let (client, _events) = Client::start(fake.options(Kind::Proto)).await.expect("starts");
    let sent = client.send(To::user("no spaces"), "text", "hi").await;
    assert!(
        matches!(&sent, Err(RequestError::Invalid(field)) if field.field == "send.to.userId"),
        "{sent:?}"
    );
    let sent = client.send(To::user("bob"), "text", vec![0; 32 * 1024 + 1]).await;
    assert!(matches!(&sent, Err(RequestError::Invalid(field)) if field.field == "send.body"), "{sent:?}");
}

#[tokio::test]
async fn a_window_lets_sends_go_out_together() {
    let fake = Fake::start().await;
    let mut options = fake.options(Kind::Tcp);
    options.limits.sends_in_flight = 4;
    let (client, _events, mut peer) = fake.connect(options).await;
    let within = Duration::from_secs(20);
    let sends = async {
        tokio::join!(client.send_request(request("a"), within), client.send_request(request("b"), within))
    };
    let gateway = async {
        let ((first, a), (second, b)) = (peer.sent().await, peer.sent().await);
        assert_eq!((a.client_msg_id.as_str(), b.client_msg_id.as_str()), ("a", "b"));
        peer.answer(second, accepted(2)).await;
        peer.answer(first, accepted(1)).await;
    };
    let ((a, b), ()) = soon("sending", async { tokio::join!(sends, gateway) }).await;
    assert_eq!((a.expect("is accepted").message_id, b.expect("is accepted").message_id), (1, 2));
}
