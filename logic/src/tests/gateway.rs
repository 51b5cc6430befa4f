//! A gateway by hand: opens sessions, asks, and sees everything logic sends it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
};

use berth_proto::{
    client::{self, request::Method, response::Result as Answer},
    link::{Link, Refused},
    wire::{self, to_gateway::Message as Down, to_logic::Message as Up},
};
use tokio::sync::Notify;

use super::DEADLINE;
use crate::Logic;

#[derive(Default)]
struct Received {
    messages: Mutex<Vec<Down>>,
    more: Notify,
    /// Notifies are thrown away, as if they had been lost.
    deaf: AtomicBool,
    /// Bytes of the largest batch that came.
    largest: AtomicUsize,
}

impl Link<wire::ToGateway> for Received {
    fn send(&self, batch: Vec<wire::ToGateway>) -> Result<(), Refused<wire::ToGateway>> {
        let bytes = batch.iter().map(prost::Message::encoded_len).sum();
        self.largest.fetch_max(bytes, Ordering::SeqCst);
        let mut messages = self.messages.lock().expect("not poisoned");
        for message in batch.into_iter().filter_map(|message| message.message) {
            match message {
                Down::Notify(_) if self.deaf.load(Ordering::SeqCst) => {}
                // One by one, since each is taken by the session it is for.
                Down::Notify(batch) => messages.extend(batch.inboxes().map(|(handle, inbox_seq)| {
                    let (handles, inbox_seqs) = (vec![handle], vec![inbox_seq]);
                    Down::Notify(wire::NotifyConnections { handles, inbox_seqs, others: Vec::new() })
                })),
                message => messages.push(message),
            }
        }
        drop(messages);
        self.more.notify_waiters();
        Ok(())
    }
}

pub(super) struct Gateway {
    up: Arc<dyn Link<wire::ToLogic>>,
    received: Arc<Received>,
    requests: AtomicU32,
}

/// A connection of a [`Gateway`] with its session.
pub(super) struct Session {
    gateway: Arc<Gateway>,
    pub(super) user: String,
    pub(super) device: String,
    pub(super) handle: u64,
    pub(super) opened: wire::SessionOpened,
}

impl Gateway {
    pub(super) fn attach(logic: &Logic, id: &str, boot: u64) -> Arc<Self> {
        let received = Arc::new(Received::default());
        let attach = wire::AttachGateway { gateway_id: id.to_owned(), boot };
        let up = logic.service().attach(attach, received.clone());
        Arc::new(Self { up, received, requests: AtomicU32::new(0) })
    }

    pub(super) fn deaf_to_notifies(&self, deaf: bool) {
        self.received.deaf.store(deaf, Ordering::SeqCst);
    }

    pub(super) fn say(&self, message: Up) {
        self.say_all(vec![message]);
    }

    pub(super) fn say_all(&self, messages: Vec<Up>) {
        let batch = messages.into_iter().map(|message| wire::ToLogic { message: Some(message) });
        self.up.send(batch.collect()).expect("there is room");
    }

    /// Bytes of the largest batch that came.
    pub(super) fn largest_batch(&self) -> usize {
        self.received.largest.load(Ordering::SeqCst)
    }

    /// Takes the first message that `pick` wants, waiting for it.
    pub(super) async fn hear<T>(&self, what: &str, mut pick: impl FnMut(&Down) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let mut more = std::pin::pin!(self.received.more.notified());
                more.as_mut().enable();
                {
                    let mut messages = self.received.messages.lock().expect("not poisoned");
                    let found =
                        messages.iter().enumerate().find_map(|(n, message)| Some((n, pick(message)?)));
                    if let Some((n, found)) = found {
                        messages.remove(n);
                        return found;
                    }
                }
                more.await;
            }
        };
        tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
    }

    pub(super) async fn try_open(
        &self,
        user: &str,
        device: &str,
        handle: u64,
        session_epoch: u64,
    ) -> wire::SessionOpened {
        self.ask_to_open(wire::OpenSession {
            handle,
            user_id: user.to_owned(),
            device_id: device.to_owned(),
            platform: "web".to_owned(),
            session_epoch,
            ..Default::default()
        })
        .await
    }

    pub(super) async fn ask_to_open(&self, open: wire::OpenSession) -> wire::SessionOpened {
        let handle = open.handle;
        self.say(Up::Open(open));
        let opened = |message: &Down| match message {
            Down::Opened(opened) if opened.handle == handle => Some(opened.clone()),
            _ => None,
        };
        self.hear("SessionOpened", opened).await
    }

    pub(super) async fn open(self: &Arc<Self>, user: &str, device: &str, handle: u64) -> Session {
        let opened = self.try_open(user, device, handle, 0).await;
        assert_eq!(opened.error, None);
        assert!(opened.session_epoch > 0 && opened.inbox_epoch > 0);
        let (user, device) = (user.to_owned(), device.to_owned());
        Session { gateway: self.clone(), user, device, handle, opened }
    }

    pub(super) async fn renew(&self, sessions: u64) -> wire::LeaseRenewed {
        self.say(Up::Renew(wire::RenewLease { sessions, ..Default::default() }));
        let renewed = |message: &Down| match message {
            Down::Lease(renewed) => Some(*renewed),
            _ => None,
        };
        self.hear("LeaseRenewed", renewed).await
    }
}

impl Session {
    /// Says a request without waiting; its id.
    pub(super) fn say(&self, method: Option<Method>) -> u32 {
        let (id, request) = self.request(method);
        self.gateway.say(request);
        id
    }

    /// A request to say, and its id.
    pub(super) fn request(&self, method: Option<Method>) -> (u32, Up) {
        let id = self.gateway.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let request = wire::ClientRequest {
            handle: self.handle,
            user_id: self.user.clone(),
            device_id: self.device.clone(),
            session_epoch: self.opened.session_epoch,
            request: Some(client::Request { id, method }),
        };
        (id, Up::Request(request))
    }

    pub(super) async fn answer(&self, id: u32) -> Answer {
        let answered = |message: &Down| match message {
            Down::Response(response) => {
                let answer = response.response.as_ref().filter(|r| r.id == id)?;
                assert_eq!(response.handle, self.handle);
                answer.result.clone()
            }
            _ => None,
        };
        self.gateway.hear("a response", answered).await
    }

    pub(super) async fn ask(&self, method: Method) -> Answer {
        let id = self.say(Some(method));
        self.answer(id).await
    }

    pub(super) async fn send(&self, client_msg_id: &str, to: &str, body: &str) -> Answer {
        self.ask(send_to_user(client_msg_id, to, body)).await
    }

    pub(super) async fn sent(&self, client_msg_id: &str, to: &str, body: &str) -> client::SendResponse {
        match self.send(client_msg_id, to, body).await {
            Answer::Send(sent) => sent,
            other => panic!("{other:?}"),
        }
    }

    /// The error code of an answer that must be one.
    pub(super) async fn refused(&self, method: Method) -> (String, String) {
        match self.ask(method).await {
            Answer::Error(error) => (error.code, error.message),
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn pull(&self, after_seq: u64, limit: u32) -> client::PullResponse {
        match self.ask(Method::Pull(client::PullRequest { after_seq, limit })).await {
            Answer::Pull(pulled) => pulled,
            other => panic!("{other:?}"),
        }
    }

    /// Everything in the inbox, checked to be contiguous from 1: messages only.
    pub(super) async fn messages(&self) -> Vec<client::Message> {
        let (mut messages, mut after) = (Vec::new(), 0);
        loop {
            let pulled = self.pull(after, 200).await;
            for item in pulled.items {
                assert_eq!(item.seq, after + 1, "contiguous");
                after = item.seq;
                if let Some(client::event::Event::Message(message)) = item.event.and_then(|event| event.event)
                {
                    messages.push(message);
                }
            }
            if !pulled.has_more {
                return messages;
            }
        }
    }

    /// Waits for a notify of this connection that reaches `seq`.
    pub(super) async fn notified(&self, seq: u64) {
        let told = |message: &Down| match message {
            Down::Notify(batch) => batch.inbox_seq(self.handle).filter(|told| *told >= seq).map(drop),
            _ => None,
        };
        self.gateway.hear(&format!("a notify of {} for seq {seq}", self.user), told).await;
    }

    /// What a heartbeat learns.
    pub(super) async fn refresh(&self) -> u64 {
        let query = wire::InboxQuery { handle: self.handle, user_id: self.user.clone() };
        self.gateway.say(Up::Refresh(wire::RefreshInboxes { inboxes: vec![query] }));
        let told = |message: &Down| match message {
            Down::Refreshed(batch) => batch.inbox_seq(self.handle),
            _ => None,
        };
        self.gateway.hear("InboxesRefreshed", told).await
    }

    /// The close that logic asks the gateway for.
    pub(super) async fn closed(&self) -> wire::CloseConnection {
        let closed = |message: &Down| match message {
            Down::Close(close) if close.handle == self.handle => Some(close.clone()),
            _ => None,
        };
        self.gateway.hear("CloseConnection", closed).await
    }

    pub(super) fn close(&self) {
        self.gateway.say(Up::Close(wire::CloseSession {
            user_id: self.user.clone(),
            device_id: self.device.clone(),
            session_epoch: self.opened.session_epoch,
            handle: 0,
        }));
    }

    pub(super) async fn online(&self, user: &str) -> bool {
        let asked = client::PresenceRequest { user_ids: vec![user.to_owned()] };
        match self.ask(Method::Presence(asked)).await {
            Answer::Presence(found) => found.users[0].online,
            other => panic!("{other:?}"),
        }
    }
}

pub(super) fn send_to(client_msg_id: &str, to: client::target::To, body: &str) -> Method {
    Method::Send(client::SendRequest {
        client_msg_id: client_msg_id.to_owned(),
        to: Some(client::Target { to: Some(to) }),
        r#type: String::new(),
        body: body.to_owned().into(),
    })
}

pub(super) fn send_to_user(client_msg_id: &str, to: &str, body: &str) -> Method {
    send_to(client_msg_id, client::target::To::UserId(to.to_owned()), body)
}
