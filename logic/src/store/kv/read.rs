//! What reads the store, as functions of one view.

use std::ops::ControlFlow;

use berth_proto::client;
use client::event::Event as EventKind;
use prost::{Message, bytes::Bytes};

use super::row::{self, ConversationRow, Head, INBOX, InboxRow, MemberRow, STATE, TIMELINE, TimelineRow};
use crate::{
    kv::{Direction, KvError, View, decode, last_number},
    store::{Cursor, Kind, Page, StoreError, Unspread},
};

pub(super) fn pair(view: &dyn View, first: &str, second: &str) -> Result<Option<u64>, KvError> {
    Ok(view.get(STATE, row::pair(first, second).bytes())?.map(|bytes| last_number(&bytes)))
}

pub(super) fn conversation(view: &dyn View, id: u64) -> Result<Option<ConversationRow>, KvError> {
    view.get(STATE, row::conversation(id).bytes())?.map(decode).transpose()
}

pub(super) fn head(view: &dyn View, user: &str) -> Result<Head, KvError> {
    Ok(view.get(STATE, row::head(user).bytes())?.map(decode).transpose()?.unwrap_or_default())
}

fn message(view: &dyn View, id: u64, seq: u64) -> Result<client::Message, StoreError> {
    let row: Option<TimelineRow> =
        view.get(TIMELINE, row::timeline(id, seq).bytes())?.map(decode).transpose()?;
    row.and_then(|row| row.message)
        .ok_or_else(|| StoreError::Damaged(format!("conversation {id} has no message {seq}")))
}

/// Visits rows of `from..to` until `take` has enough; an error of `take` ends it.
fn each(
    view: &dyn View,
    (space, from, to): (crate::kv::Space, &[u8], &[u8]),
    direction: Direction,
    mut take: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, KvError>,
) -> Result<(), KvError> {
    let mut failed = None;
    view.scan(space, from, to, direction, &mut |key, value| {
        take(key, value).unwrap_or_else(|error| {
            failed = Some(error);
            ControlFlow::Break(())
        })
    })?;
    failed.map_or(Ok(()), Err)
}

pub(super) fn outbox(
    view: &dyn View,
    after: Option<Unspread>,
    limit: usize,
) -> Result<Vec<Unspread>, KvError> {
    let from = match after {
        Some(after) => row::outbox(after.conversation_id, after.seq + 1),
        None => row::outboxes(),
    };
    let mut found = Vec::new();
    each(view, (STATE, from.bytes(), &row::outboxes().after_prefix()), Direction::Forward, |key, _| {
        let (rest, seq) = key.split_at(key.len() - 8);
        found.push(Unspread { conversation_id: last_number(rest), seq: last_number(seq) });
        Ok(if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

pub(super) fn users(view: &dyn View, after: Option<&str>, limit: usize) -> Result<Vec<String>, KvError> {
    let from = after.map_or_else(|| row::heads().into(), |user| row::head(user).after_prefix());
    let mut found = Vec::new();
    each(view, (STATE, &from, &row::heads().after_prefix()), Direction::Forward, |key, _| {
        found.push(row::user_of_head(key));
        Ok(if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

/// Collects what fits a page: whatever comes first, then rows while neither bound is passed.
struct Filling {
    page: Page,
    rows: usize,
    bytes: usize,
}

/// What a row costs besides its own bytes: tag and length.
const ROW_OVERHEAD: usize = 16;

impl Filling {
    fn new(page: Page) -> Self {
        Self { page, rows: 0, bytes: 0 }
    }

    /// Whether a row of this many bytes still fits; counts it if so.
    fn take(&mut self, bytes: usize) -> bool {
        let bytes = self.bytes + bytes + ROW_OVERHEAD;
        if self.rows >= self.page.rows || (self.rows > 0 && bytes > self.page.bytes) {
            return false;
        }
        self.rows += 1;
        self.bytes = bytes;
        true
    }
}

pub(super) fn pull(
    view: &dyn View,
    user: &str,
    after: u64,
    page: Page,
    inbox_epoch: u64,
) -> Result<client::PullResponse, StoreError> {
    let head = head(view, user)?;
    let first = after.saturating_add(1).max(head.floor());
    let mut rows = Vec::new();
    if first <= head.latest_seq {
        let last = first.saturating_add(page.rows as u64 - 1).min(head.latest_seq);
        let (from, to) = (row::inbox(user, first), row::inbox(user, last + 1));
        each(view, (INBOX, from.bytes(), to.bytes()), Direction::Forward, |key, value| {
            rows.push((last_number(key), decode::<InboxRow>(Bytes::copy_from_slice(value))?));
            Ok(ControlFlow::Continue(()))
        })?;
    }
    let mut filling = Filling::new(page);
    let mut items = Vec::with_capacity(rows.len());
    for (seq, row) in rows {
        let event = match row.event {
            Some(event) => event,
            None => {
                let message = message(view, row.conversation_id, row.conversation_seq)?;
                client::Event { event: Some(EventKind::Message(message)) }
            }
        };
        let item = client::InboxItem { seq, event: Some(event) };
        if !filling.take(item.encoded_len()) {
            break;
        }
        items.push(item);
    }
    Ok(client::PullResponse {
        // No item: no row, since the first one always fits.
        has_more: items.last().is_some_and(|item| item.seq < head.latest_seq),
        latest_seq: head.latest_seq,
        floor_seq: head.floor(),
        inbox_epoch,
        items,
        conversations: Vec::new(),
    })
}

pub(super) fn history(
    view: &dyn View,
    user: &str,
    request: &client::HistoryRequest,
    page: Page,
) -> Result<Option<client::HistoryResponse>, KvError> {
    let id = request.conversation_id;
    let Some(conversation) = conversation(view, id)?.filter(|c| c.first == user || c.second == user) else {
        return Ok(None);
    };
    let (first, end, direction) = match (request.after_seq, request.before_seq) {
        (0, 0) => (1, conversation.last_seq + 1, Direction::Backward),
        (0, before) => (1, before.min(conversation.last_seq + 1), Direction::Backward),
        (after, _) => (after.saturating_add(1), conversation.last_seq + 1, Direction::Forward),
    };
    let mut filling = Filling::new(page);
    let mut messages = Vec::new();
    let mut has_more = false;
    let (from, to) = (row::timeline(id, first), row::timeline(id, end));
    each(view, (TIMELINE, from.bytes(), to.bytes()), direction, |_, value| {
        has_more = !filling.take(value.len());
        if has_more {
            return Ok(ControlFlow::Break(()));
        }
        let row: TimelineRow = decode(Bytes::copy_from_slice(value))?;
        messages.extend(row.message);
        Ok(ControlFlow::Continue(()))
    })?;
    if direction == Direction::Backward {
        messages.reverse();
    }
    Ok(Some(client::HistoryResponse { messages, has_more }))
}

pub(super) fn conversations(
    view: &dyn View,
    user: &str,
    after: Option<Cursor>,
    page: Page,
) -> Result<(client::ConversationsResponse, Option<Cursor>), StoreError> {
    let from = match after {
        Some(cursor) => row::activity(user, cursor.activity, cursor.conversation_id).after_prefix(),
        None => row::activities(user).into(),
    };
    let mut found = Vec::new();
    let to = row::activities(user).after_prefix();
    each(view, (STATE, &from, &to), Direction::Forward, |key, _| {
        let (rest, id) = key.split_at(key.len() - 8);
        found.push(Cursor { activity: !last_number(rest), conversation_id: last_number(id) });
        // One more than fits says whether there is a next page.
        Ok(if found.len() <= page.rows { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    let mut filling = Filling::new(page);
    let mut listed = Vec::new();
    let mut last = None;
    for cursor in &found {
        let entry = entry(view, user, cursor.conversation_id)?;
        if !filling.take(entry.encoded_len()) {
            break;
        }
        listed.push(entry);
        last = Some(*cursor);
    }
    let next = if listed.len() < found.len() { last } else { None };
    let total_unread = head(view, user)?.total_unread;
    Ok((client::ConversationsResponse { conversations: listed, total_unread, cursor: String::new() }, next))
}

fn entry(view: &dyn View, user: &str, id: u64) -> Result<client::Conversation, StoreError> {
    let conversation = conversation(view, id)?
        .ok_or_else(|| StoreError::Damaged(format!("conversation {id} is listed but does not exist")))?;
    let member: MemberRow =
        view.get(STATE, row::member(user, id).bytes())?.map(decode).transpose()?.unwrap_or_default();
    let last_message = message(view, id, conversation.last_seq)?;
    let peer_id = if conversation.first == user { conversation.second } else { conversation.first };
    Ok(client::Conversation {
        conversation_id: id,
        kind: Kind::Direct.as_str().to_owned(),
        peer_id,
        group_id: String::new(),
        last_seq: conversation.last_seq,
        read_seq: member.read_seq,
        unread: member.unread,
        last_message: Some(last_message),
    })
}
