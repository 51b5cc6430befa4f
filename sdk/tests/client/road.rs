//! The road: hello, welcome, notify, pull, requests, goodbye; on each transport and in each encoding.

use berth_client::{Client, Event, RequestError, State, StopReason};
use berth_proto::{
    client::{
        self, AckResponse, ConversationsResponse, HeartbeatAck, HistoryRequest, HistoryResponse, InboxItem,
        MarkReadResponse, PresenceResponse, client_frame::Frame as Up, event, request::Method,
        response::Result as Answer, server_frame::Frame as Down,
    },
    code::ErrorCode,
    schedule::HeartbeatParameters,
};

use crate::fake::{Fake, Kind, check_rows, next, rows, soon, welcome};

#[tokio::test]
async fn hello_welcome_notify_pull_on_each_transport() {
    for kind in Kind::ALL {
        let mut fake = Fake::start().await;
        let mut options = fake.options(kind);
        options.platform = "desktop".into();
        options.app_version = "7.3.1".into();
        let transport = options.transports[0];
        let gateway = async {
            let mut peer = fake.accept().await;
            let hello = peer.hello().await;
            assert_eq!((hello.ticket.as_str(), hello.device_id.as_str()), ("ticket", "device"));
            assert_eq!((hello.platform.as_str(), hello.app_version.as_str()), ("desktop", "7.3.1"));
            peer.send(Down::Welcome(welcome(0))).await;
            peer
        };
        let (connected, mut peer) = tokio::join!(Client::connect(options), gateway);
        let (client, mut events) = connected.expect("connects");
        let Event::Connected(connected) = next(&mut events).await else { panic!("expected Connected") };
        assert_eq!((connected.user_id.as_str(), connected.transport), ("alice", transport));

        peer.notify(2).await;
        let (id, pull) = peer.pull().await;
        assert_eq!(pull.after_seq, 0);
        peer.answer_rows(id, 1..=2, 2).await;
        check_rows(&mut events, 1..=2).await;

        let asked = fake.asked().await;
        assert_eq!((asked.token.as_str(), asked.request.device_id.as_str()), ("jwt", "device"));
        assert_eq!(asked.request.transports, [transport.as_str()]);
        soon("closing", client.close()).await;
        assert_eq!(*client.state().borrow(), State::Stopped(StopReason::Closed));
        assert_eq!(events.next().await, None);
        assert!(peer.receive().await.is_none(), "the connection is closed");
    }
}

#[tokio::test]
async fn each_kind_of_row_is_its_event() {
    let fake = Fake::start().await;
    let (_client, mut events, mut peer) = fake.connect_with(fake.options(Kind::Json), welcome(5)).await;
    let (id, _) = peer.pull().await;
    let read = client::ReadEvent { conversation_id: 9, seq: 3 };
    let failure = client::Failure { client_msg_id: "c".into(), ..Default::default() };
    let change = client::ConversationEvent { kind: "joined".into(), ..Default::default() };
    let kinds = [
        Some(event::Event::Message(client::Message::default())),
        Some(event::Event::Read(read)),
        Some(event::Event::Failure(failure.clone())),
        Some(event::Event::Conversation(change.clone())),
        None,
    ];
    let items = (1..).zip(kinds).map(|(seq, event)| InboxItem { seq, event: Some(client::Event { event }) });
    let answer = client::PullResponse { items: items.collect(), ..rows([], 5) };
    peer.answer(id, Answer::Pull(answer)).await;
    assert_eq!(next(&mut events).await, Event::Message { seq: 1, message: client::Message::default() });
    assert_eq!(next(&mut events).await, Event::Read { seq: 2, read });
    assert_eq!(next(&mut events).await, Event::Failure { seq: 3, failure });
    assert_eq!(next(&mut events).await, Event::Conversation { seq: 4, change });
    assert_eq!(next(&mut events).await, Event::Unknown { seq: 5 });
}

#[tokio::test]
async fn every_request_has_its_answer() {
    let fake = Fake::start().await;
    let (client, _events, mut peer) = fake.connect(fake.options(Kind::Tcp)).await;
    let gateway = async {
        for _ in 0..5 {
            let (id, method) = peer.request().await;
            let answer = match method {
                Method::History(_) => {
                    Answer::History(HistoryResponse { has_more: true, ..Default::default() })
                }
                Method::Conversations(_) => {
                    Answer::Conversations(ConversationsResponse { total_unread: 7, ..Default::default() })
                }
                Method::MarkRead(_) => Answer::MarkRead(MarkReadResponse { unread: 2, total_unread: 3 }),
                Method::Presence(_) => Answer::Presence(PresenceResponse::default()),
                Method::Ack(_) => Answer::Ack(AckResponse {}),
                other => panic!("unexpected {other:?}"),
            };
            peer.answer(id, answer).await;
        }
        let (id, _) = peer.request().await;
        peer.answer(id, Answer::Error(ErrorCode::PermissionDenied.error("not a member"))).await;
    };
    let history = HistoryRequest { conversation_id: 1, ..Default::default() };
    let requests = async {
        assert!(client.history(history).await.expect("answers").has_more);
        assert_eq!(client.conversations(0, "").await.expect("answers").total_unread, 7);
        assert_eq!(client.mark_read(1, 5).await.expect("answers").unread, 2);
        assert_eq!(client.presence(vec!["bob".into()]).await.expect("answers"), PresenceResponse::default());
        client.ack(5).await.expect("answers");
        let refused = client.history(history).await.expect_err("is refused");
        assert_eq!(refused.to_string(), "PERMISSION_DENIED: not a member");
        let invalid = client.mark_read(0, 5).await.expect_err("is no conversation");
        assert!(matches!(invalid, RequestError::Invalid(_)), "{invalid:?}");
        let invalid = client.conversations(0, "x".repeat(257)).await.expect_err("is no page's cursor");
        assert!(
            matches!(&invalid, RequestError::Invalid(field) if field.field == "conversations.cursor"),
            "{invalid:?}"
        );
    };
    soon("the requests", async { tokio::join!(gateway, requests) }).await;
}

#[tokio::test]
async fn a_heartbeats_answer_repairs_a_lost_notify() {
    let fake = Fake::start().await;
    fake.change(|answer| answer.heartbeat = HeartbeatParameters { interval_ms: 50, timeout_ms: 60_000 });
    let (_client, mut events, mut peer) = fake.connect(fake.options(Kind::Proto)).await;
    assert_eq!(peer.receive().await, Some(Up::Heartbeat(client::Heartbeat {})));
    peer.send(Down::HeartbeatAck(HeartbeatAck { inbox_seq: 1, ..Default::default() })).await;
    let (id, _) = peer.pull().await;
    peer.answer_rows(id, [1], 1).await;
    check_rows(&mut events, [1]).await;
}

#[tokio::test]
async fn dropping_the_client_ends_the_connection() {
    let fake = Fake::start().await;
    let (client, _events, mut peer) = fake.connect(fake.options(Kind::Tcp)).await;
    drop(client);
    assert_eq!(peer.receive().await, None);
}
