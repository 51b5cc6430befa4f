//! What reads the store, as functions of one view.

use std::ops::ControlFlow;

use berth_proto::client;
use client::event::Event as EventKind;
use prost::{Message, bytes::Bytes};

use super::{
    member::Member,
    row::{self, ConversationRow, Head, INBOX, InboxRow, OutboxRow, STATE, TIMELINE, TimelineRow},
};
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
pub(super) fn each(
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

/// A row that a scan visits.
pub(super) fn decode_slice<M: Message + Default>(value: &[u8]) -> Result<M, KvError> {
    decode(Bytes::copy_from_slice(value))
}

/// Whether a scan goes on.
pub(super) fn go_on(more: bool) -> ControlFlow<()> {
    if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
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
    let mut found: Vec<Unspread> = Vec::new();
    each(view, (STATE, from.bytes(), &row::outboxes().after_prefix()), Direction::Forward, |key, value| {
        let (rest, seq) = key.split_at(key.len() - 8);
        let (conversation_id, seq) = (last_number(rest), last_number(seq));
        // A row that cannot be read is tried, and set aside then. What its conversation is does not depend on it.
        let OutboxRow { message_id, group, .. } = decode_slice(value).unwrap_or_default();
        let members = match found.last() {
            Some(before) if before.conversation_id == conversation_id => before.members,
            _ => match conversation(view, conversation_id) {
                Ok(Some(row)) => row.is_group().then_some(row.member_count),
                Ok(None) => group.then_some(0),
                Err(error) if error.action == KvError::DECODE => group.then_some(0),
                Err(error) => return Err(error),
            },
        };
        found.push(Unspread { conversation_id, seq, message_id, members });
        Ok(go_on(found.len() < limit))
    })?;
    Ok(found)
}

pub(super) fn users(view: &dyn View, after: Option<&str>, limit: usize) -> Result<Vec<String>, KvError> {
    let from = after.map_or_else(|| row::heads().into(), |user| row::head(user).after_prefix());
    let mut found = Vec::new();
    each(view, (STATE, &from, &row::heads().after_prefix()), Direction::Forward, |key, _| {
        found.push(row::user_of_head(key));
        Ok(go_on(found.len() < limit))
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
            rows.push((last_number(key), decode_slice::<InboxRow>(value)?));
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
    let Some(conversation) = conversation(view, id)? else { return Ok(None) };
    let member = Member::seen(view, &conversation, id, user)?;
    if !member.may_read(&conversation, user) {
        return Ok(None);
    }
    let last = conversation.last_seq;
    let (after, through, direction) = match (request.after_seq, request.before_seq) {
        (0, 0) => (0, last, Direction::Backward),
        (0, before) => (0, last.min(before - 1), Direction::Backward),
        (after, _) => (after, last, Direction::Forward),
    };
    let mut parts = his_parts(&conversation, &member, after, through);
    if direction == Direction::Backward {
        parts.reverse();
    }
    let mut filling = Filling::new(page);
    let mut messages = Vec::new();
    let mut has_more = false;
    for (first, last) in parts {
        let (from, to) = (row::timeline(id, first), row::timeline(id, last + 1));
        each(view, (TIMELINE, from.bytes(), to.bytes()), direction, |_, value| {
            has_more = !filling.take(value.len());
            if has_more {
                return Ok(ControlFlow::Break(()));
            }
            messages.extend(decode_slice::<TimelineRow>(value)?.message);
            Ok(ControlFlow::Continue(()))
        })?;
        if has_more {
            break;
        }
    }
    if direction == Direction::Backward {
        messages.reverse();
    }
    Ok(Some(client::HistoryResponse { messages, has_more }))
}

/// First and last seq of each part of `after + 1..=through` that a member may read, ascending.
fn his_parts(conversation: &ConversationRow, member: &Member, after: u64, through: u64) -> Vec<(u64, u64)> {
    if conversation.is_group() {
        member.row.visible(after, through).collect()
    } else if after < through {
        vec![(after + 1, through)]
    } else {
        Vec::new()
    }
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
        Ok(go_on(found.len() <= page.rows))
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
    let member = Member::seen(view, &conversation, id, user)?;
    let newest = his_parts(&conversation, &member, 0, conversation.last_seq).pop();
    let last_message = newest.map(|(_, last)| message(view, id, last)).transpose()?;
    let member = member.row;
    let (kind, last_seq) = if conversation.is_group() {
        (Kind::Group, member.end(conversation.last_seq))
    } else {
        (Kind::Direct, conversation.last_seq)
    };
    let peer_id = if conversation.first == user { conversation.second } else { conversation.first };
    Ok(client::Conversation {
        conversation_id: id,
        kind: kind.as_str().to_owned(),
        peer_id,
        group_id: conversation.group_id,
        last_seq,
        read_seq: member.read_seq,
        unread: member.unread,
        last_message,
    })
}
