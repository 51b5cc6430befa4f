//! Who is connected, which groups there are, and how far each inbox is. Pure.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use berth_proto::client::{
    ConversationSeq, Error, InboxItem, Message, PullRequest, PullResponse, SendRequest, event::Event,
    target::To,
};

/// Rows kept of an inbox, where any are: a receiver that is further behind than these has lost some.
const ROWS: usize = 1_024;

/// Everybody.
#[derive(Debug, Default)]
pub struct City {
    users: HashMap<Arc<str>, usize>,
    inboxes: Vec<Inbox>,
    groups: HashMap<String, Vec<usize>>,
    keeps_rows: bool,
    next_message: u64,
    /// Heartbeats answered.
    pub heartbeats: u64,
}

#[derive(Debug, Default)]
struct Inbox {
    seq: u64,
    /// Where the user is connected.
    place: Option<usize>,
    rows: VecDeque<InboxItem>,
}

/// A message that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Its id, and its conversation's too: there are no conversations here.
    pub message_id: u64,
}

impl City {
    /// With rows, or only with seqs.
    pub fn new(keeps_rows: bool) -> Self {
        Self { keeps_rows, ..Self::default() }
    }

    /// The number of a user, known from now on.
    pub fn user(&mut self, id: &str) -> usize {
        if let Some(user) = self.users.get(id) {
            return *user;
        }
        let user = self.inboxes.len();
        self.users.insert(id.into(), user);
        self.inboxes.push(Inbox::default());
        user
    }

    /// A user is connected there now.
    pub fn connect(&mut self, user: usize, place: usize) {
        self.inboxes[user].place = Some(place);
    }

    /// A user is not connected there any more.
    pub fn disconnect(&mut self, user: usize, place: usize) {
        let inbox = &mut self.inboxes[user];
        inbox.place = inbox.place.filter(|now| *now != place);
    }

    /// How many users are connected.
    pub fn connected(&self) -> usize {
        self.inboxes.iter().filter(|inbox| inbox.place.is_some()).count()
    }

    /// How far a user's inbox is.
    pub fn seq(&self, user: usize) -> u64 {
        self.inboxes[user].seq
    }

    /// Makes or replaces a group.
    pub fn put_group(&mut self, id: &str, members: &[String]) {
        let members = members.iter().map(|member| self.user(member)).collect();
        self.groups.insert(id.to_owned(), members);
    }

    /// The id of the next message, if its target exists.
    ///
    /// # Errors
    /// As a logic would answer.
    pub fn take(&mut self, send: &SendRequest) -> Result<Taken, Error> {
        let known = match send.to.as_ref().and_then(|target| target.to.as_ref()) {
            Some(To::UserId(_)) => true,
            Some(To::GroupId(group)) => self.groups.contains_key(group),
            _ => false,
        };
        if !known {
            return Err(berth_proto::code::ErrorCode::NotFound.error("no such target"));
        }
        self.next_message += 1;
        Ok(Taken { message_id: self.next_message })
    }

    /// Brings a message to its inboxes; `tell` is called with where each owner is connected and how far the inbox is now.
    pub fn deliver(
        &mut self,
        from: usize,
        send: &SendRequest,
        taken: Taken,
        mut tell: impl FnMut(usize, u64),
    ) {
        match send.to.as_ref().and_then(|target| target.to.as_ref()) {
            Some(To::UserId(id)) => {
                let user = self.user(id);
                // As the protocol asks: also to the sender's own devices.
                for user in [from, user] {
                    self.append(user, from, send, taken, &mut tell);
                }
            }
            Some(To::GroupId(group)) => {
                let Some(members) = self.groups.remove(group) else { return };
                for user in &members {
                    self.append(*user, from, send, taken, &mut tell);
                }
                self.groups.insert(group.clone(), members);
            }
            _ => {}
        }
    }

    fn append(
        &mut self,
        user: usize,
        from: usize,
        send: &SendRequest,
        taken: Taken,
        tell: &mut impl FnMut(usize, u64),
    ) {
        let inbox = &mut self.inboxes[user];
        inbox.seq += 1;
        if self.keeps_rows {
            if inbox.rows.len() == ROWS {
                inbox.rows.pop_front();
            }
            let message = Message {
                message_id: taken.message_id,
                conversation_id: taken.message_id,
                conversation_seq: 1,
                from: from.to_string(),
                client_msg_id: send.client_msg_id.clone(),
                body: send.body.clone(),
                ..Message::default()
            };
            let event = berth_proto::client::Event { event: Some(Event::Message(message)) };
            inbox.rows.push_back(InboxItem { seq: inbox.seq, event: Some(event) });
        }
        if let Some(place) = inbox.place {
            tell(place, inbox.seq);
        }
    }

    /// The rows after a cursor; they are dropped up to it.
    pub fn pull(&mut self, user: usize, pull: &PullRequest) -> PullResponse {
        let inbox = &mut self.inboxes[user];
        while inbox.rows.front().is_some_and(|row| row.seq <= pull.after_seq) {
            inbox.rows.pop_front();
        }
        let limit = if pull.limit == 0 { 100 } else { pull.limit as usize };
        let items: Vec<InboxItem> = inbox.rows.iter().take(limit).cloned().collect();
        PullResponse {
            has_more: items.len() < inbox.rows.len(),
            items,
            latest_seq: inbox.seq,
            floor_seq: inbox.rows.front().map_or(inbox.seq + 1, |row| row.seq),
            inbox_epoch: 1,
            conversations: Vec::<ConversationSeq>::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::client::Target;

    fn to(to: To) -> SendRequest {
        SendRequest { to: Some(Target { to: Some(to) }), ..SendRequest::default() }
    }

    fn send(city: &mut City, request: &SendRequest) -> Vec<(usize, u64)> {
        let taken = city.take(request).expect("the target exists");
        let mut told = Vec::new();
        city.deliver(0, request, taken, |place, seq| told.push((place, seq)));
        told
    }

    #[test]
    fn a_message_reaches_who_is_connected_and_every_inbox() {
        let mut city = City::new(true);
        let (alice, bob) = (city.user("alice"), city.user("bob"));
        city.connect(bob, 7);
        assert_eq!(send(&mut city, &to(To::UserId("bob".into()))), [(7, 1)]);
        city.connect(alice, 3);
        city.put_group("g", &["alice".into(), "bob".into()]);
        assert_eq!(send(&mut city, &to(To::GroupId("g".into()))), [(3, 2), (7, 2)]);
        assert_eq!((city.seq(alice), city.seq(bob)), (2, 2), "alice has what she sent, too");
        city.disconnect(alice, 3);
        city.disconnect(bob, 6);
        city.disconnect(bob, 7);
        assert!(send(&mut city, &to(To::UserId("bob".into()))).is_empty());
        let page = city.pull(bob, &PullRequest { after_seq: 1, limit: 1 });
        assert_eq!((page.items[0].seq, page.has_more, page.latest_seq), (2, true, 3));
        assert!(city.take(&to(To::GroupId("nobody".into()))).is_err());
    }
}
