//! What changes the store, as functions of a transaction: the caller holds the writer lock and commits.

use berth_proto::{client, code::ErrorCode, id::SYSTEM_USER};
use client::event::Event as EventKind;
use prost::bytes::Bytes;

use super::{
    member::{Member, others_between},
    read,
    row::{
        self, ConversationRow, HIGHEST_CONVERSATION, Head, INBOX, InboxRow, OutboxRow, PoisonRow, STATE,
        TIMELINE, TimelineRow,
    },
};
use crate::{
    kv::{Direction, KvError, Txn, View, decode, last_number},
    queue::{Poison, Record, Stored},
    snowflake::Snowflake,
    store::{Committed, Marked, Moved, Spread, StoreError, Unspread},
};

/// The conversation of a pair in order, made if there is none.
pub(super) fn direct(
    txn: &mut Txn<'_>,
    ids: &mut Snowflake,
    first: &str,
    second: &str,
    now_ms: i64,
) -> Result<u64, KvError> {
    let key = row::pair(first, second);
    if let Some(bytes) = txn.get(STATE, key.bytes())? {
        return Ok(last_number(&bytes));
    }
    let id = ids.next(now_ms);
    create(txn, id, first, second);
    txn.put(STATE, HIGHEST_CONVERSATION, id.to_be_bytes().to_vec());
    Ok(id)
}

fn create(txn: &mut Txn<'_>, id: u64, first: &str, second: &str) -> ConversationRow {
    let conversation =
        ConversationRow { first: first.to_owned(), second: second.to_owned(), ..Default::default() };
    txn.put(STATE, row::pair(first, second), id.to_be_bytes().to_vec());
    txn.put_message(STATE, row::conversation(id), &conversation);
    conversation
}

/// The partition's mark, if these records go on from it or from before.
pub(super) fn mark_below(txn: &Txn<'_>, partition: u16, records: &[Stored]) -> Result<u64, StoreError> {
    let mark = txn.get(STATE, row::mark(partition).bytes())?.map_or(0, |bytes| last_number(&bytes));
    let offsets = records.iter().map(|stored| stored.offset).filter(|offset| *offset > mark);
    match (mark..).zip(offsets).find(|(before, offset)| *offset != before + 1) {
        Some((mark, offset)) => Err(StoreError::Gap { partition, mark, offset }),
        None => Ok(mark),
    }
}

/// Applies records in order that [`mark_below`] found to go on; those at or below the partition's mark are done already.
pub(super) fn commit(
    txn: &mut Txn<'_>,
    ids: &mut Snowflake,
    (partition, mark): (u16, u64),
    records: Vec<Stored>,
    now_ms: i64,
) -> Result<Committed, StoreError> {
    let mut done = Committed { mark, ..Default::default() };
    for Stored { offset, record } in records.into_iter().filter(|stored| stored.offset > mark) {
        match record {
            Ok(record) => apply(txn, ids, partition, offset, record, now_ms, &mut done)?,
            Err(poison) => set_aside(txn, partition, offset, poison, now_ms, &mut done),
        }
        done.mark = offset;
    }
    txn.put(STATE, row::mark(partition), done.mark.to_be_bytes().to_vec());
    Ok(done)
}

/// What a record's commit reads. All of it before anything is written: a row that cannot be read costs one record.
struct Sender {
    conversation: ConversationRow,
    member: Member,
    head: Head,
}

/// Reads it; or why the record cannot be.
fn sender_of(
    txn: &mut Txn<'_>,
    ids: &mut Snowflake,
    record: &Record,
) -> Result<Result<Sender, String>, KvError> {
    let mut read = || {
        let conversation = match conversation_of(txn, ids, record)? {
            Ok(conversation) => conversation,
            Err(reason) => return Ok(Err(reason)),
        };
        let member = Member::of(txn, &conversation, record.conversation_id, &record.sender)?;
        Ok(Ok(Sender { conversation, member, head: head_of(txn, &record.sender)? }))
    };
    match read() {
        Err(KvError { action: KvError::DECODE, detail }) => {
            Ok(Err(format!("a row of its conversation or its sender cannot be read: {detail}")))
        }
        read => read,
    }
}

fn apply(
    txn: &mut Txn<'_>,
    ids: &mut Snowflake,
    partition: u16,
    offset: u64,
    record: Record,
    now_ms: i64,
    done: &mut Committed,
) -> Result<(), StoreError> {
    let id = record.conversation_id;
    let Sender { mut conversation, mut member, head } = match sender_of(txn, ids, &record)? {
        Ok(sender) => sender,
        Err(reason) => {
            match fail(txn, &record, ErrorCode::Internal, reason.clone(), now_ms, done) {
                // It is his inbox that is damaged: there is nowhere to tell him.
                Err(error) if error.action == KvError::DECODE => {}
                told => told?,
            }
            let bytes = Bytes::from(prost::Message::encode_to_vec(&record));
            set_aside(txn, partition, offset, Poison { bytes, reason }, now_ms, done);
            return Ok(());
        }
    };
    if conversation.is_group() && record.sender != SYSTEM_USER && !member.row.is_member() {
        let reason = format!("you had left group {} before the message was delivered", conversation.group_id);
        done.failed += 1;
        return fail(txn, &record, ErrorCode::PermissionDenied, reason, now_ms, done)
            .map_err(StoreError::from);
    }
    let (sender, message_id) = (record.sender.clone(), record.message_id);
    let seq = append(txn, &mut conversation, record);
    if conversation.is_group() && sender != SYSTEM_USER {
        member.row.own += 1;
        txn.put(TIMELINE, row::own(id, &sender, seq), member.row.own.to_be_bytes().to_vec());
    }
    done.moved.extend(put_row(txn, &sender, head, &message_row(id, seq, now_ms), 0));
    activate(txn, &sender, id, &mut member, message_id);
    if has_others(&conversation, &sender) {
        let members = conversation.is_group().then_some(conversation.member_count);
        let outbox = OutboxRow { sender, message_id, group: members.is_some(), ..OutboxRow::default() };
        txn.put_message(STATE, row::outbox(id, seq), &outbox);
        done.unspread.push(Unspread { conversation_id: id, seq, message_id, members });
    }
    Ok(())
}

/// Puts a message at the end of its timeline; its seq.
fn append(txn: &mut Txn<'_>, conversation: &mut ConversationRow, record: Record) -> u64 {
    let id = record.conversation_id;
    conversation.last_seq += 1;
    conversation.by_first += u64::from(!conversation.is_group() && record.sender == conversation.first);
    let seq = conversation.last_seq;
    let message = client::Message {
        message_id: record.message_id,
        conversation_id: id,
        conversation_seq: seq,
        from: record.sender,
        client_msg_id: record.client_msg_id,
        r#type: record.r#type,
        body: record.body,
        server_time_ms: record.at_ms,
        group_id: conversation.group_id.clone(),
    };
    let timeline = TimelineRow { message: Some(message), by_first: conversation.by_first };
    txn.put_message(TIMELINE, row::timeline(id, seq), &timeline);
    txn.put_message(STATE, row::conversation(id), conversation);
    seq
}

/// Whether somebody else must get what `sender` said.
fn has_others(conversation: &ConversationRow, sender: &str) -> bool {
    if conversation.is_group() {
        conversation.member_count > u64::from(sender != SYSTEM_USER)
    } else {
        conversation.first != conversation.second
    }
}

/// Tells a sender, in his inbox, that what was accepted cannot be delivered.
fn fail(
    txn: &mut Txn<'_>,
    record: &Record,
    code: ErrorCode,
    message: String,
    at_ms: i64,
    done: &mut Committed,
) -> Result<(), KvError> {
    let client_msg_id = record.client_msg_id.clone();
    let failure = client::Failure { client_msg_id, code: code.as_str().to_owned(), message };
    let event = client::Event { event: Some(EventKind::Failure(failure)) };
    let row = InboxRow { at_ms, event: Some(event), ..Default::default() };
    done.moved.extend(deliver(txn, &record.sender, &row, 0)?);
    Ok(())
}

/// The record's conversation, made again if a crash lost it; or why the record cannot be.
fn conversation_of(
    txn: &mut Txn<'_>,
    ids: &mut Snowflake,
    record: &Record,
) -> Result<Result<ConversationRow, String>, KvError> {
    let (a, b) = (record.sender.as_str(), record.peer.as_str());
    let (first, second) = if a <= b { (a, b) } else { (b, a) };
    let id = record.conversation_id;
    if let Some(known) = txn.message::<ConversationRow>(STATE, row::conversation(id).bytes())? {
        if known.is_group() {
            let named = record.peer.is_empty();
            return Ok(if named { Ok(known) } else { Err(format!("conversation {id} is a group's")) });
        }
        let same = known.first == first && known.second == second;
        return Ok(if same { Ok(known) } else { Err(format!("conversation {id} has other members")) });
    }
    if first.is_empty() {
        return Ok(Err("it names no peer, and its group does not exist".to_owned()));
    }
    if let Some(bytes) = txn.get(STATE, row::pair(first, second).bytes())? {
        let other = last_number(&bytes);
        return Ok(Err(format!("its members' conversation is {other}, not {id}")));
    }
    ids.stay_above(id);
    let highest = txn.get(STATE, HIGHEST_CONVERSATION)?.map_or(0, |bytes| last_number(&bytes));
    txn.put(STATE, HIGHEST_CONVERSATION, highest.max(id).to_be_bytes().to_vec());
    Ok(Ok(create(txn, id, first, second)))
}

fn set_aside(
    txn: &mut Txn<'_>,
    partition: u16,
    offset: u64,
    poison: Poison,
    now_ms: i64,
    done: &mut Committed,
) {
    tracing::error!(partition, offset, reason = poison.reason, "a record cannot be used and was set aside");
    let row = PoisonRow { bytes: poison.bytes, reason: poison.reason, at_ms: now_ms };
    txn.put_message(STATE, row::poison(partition, offset), &row);
    done.poisoned += 1;
}

/// Gives outbox rows to the other members and takes them off.
pub(super) fn spread(txn: &mut Txn<'_>, work: &[Unspread], now_ms: i64) -> Result<Spread, StoreError> {
    let mut done = Spread::default();
    for &Unspread { conversation_id: id, seq, .. } in work {
        let key = row::outbox(id, seq);
        let Some(outbox) = txn.get(STATE, key.bytes())? else { continue };
        let conversation: ConversationRow =
            txn.message(STATE, row::conversation(id).bytes())?.ok_or_else(|| {
                StoreError::Damaged(format!("conversation {id} has an outbox row but does not exist"))
            })?;
        if conversation.is_group() {
            return Err(StoreError::NotDirect { conversation_id: id, seq });
        }
        let outbox: OutboxRow = decode(outbox)?;
        txn.remove(STATE, key);
        let recipient = if outbox.sender == conversation.first {
            conversation.second.clone()
        } else {
            conversation.first.clone()
        };
        let mut member = Member::of(txn, &conversation, id, &recipient)?;
        if seq <= member.row.applied_seq {
            continue;
        }
        member.row.applied_seq = seq;
        let unread = u64::from(seq > member.row.read_seq);
        member.row.unread += unread;
        done.delivered += 1;
        done.moved.extend(deliver(txn, &recipient, &message_row(id, seq, now_ms), unread)?);
        activate(txn, &recipient, id, &mut member, outbox.message_id);
    }
    Ok(done)
}

/// Moves an outbox row that cannot be given to what was set aside.
pub(super) fn set_aside_unspread(
    txn: &mut Txn<'_>,
    work: Unspread,
    reason: String,
    now_ms: i64,
) -> Result<(), KvError> {
    let key = row::outbox(work.conversation_id, work.seq);
    let Some(bytes) = txn.get(STATE, key.bytes())? else { return Ok(()) };
    txn.remove(STATE, key);
    let row = PoisonRow { bytes, reason, at_ms: now_ms };
    txn.put_message(STATE, row::poison_unspread(work.conversation_id, work.seq), &row);
    Ok(())
}

/// Moves a member's read mark forward and both counts with it.
pub(super) fn mark_read(
    txn: &mut Txn<'_>,
    user: &str,
    id: u64,
    seq: u64,
    now_ms: i64,
) -> Result<Option<Marked>, StoreError> {
    let conversation: Option<ConversationRow> = txn.message(STATE, row::conversation(id).bytes())?;
    let Some(conversation) = conversation else { return Ok(None) };
    let mut member = Member::of(txn, &conversation, id, user)?;
    if !member.may_read(&conversation, user) {
        return Ok(None);
    }
    let mut head = head_of(txn, user)?;
    let end =
        if conversation.is_group() { member.row.end(conversation.last_seq) } else { conversation.last_seq };
    let seq = seq.min(end);
    if seq <= member.row.read_seq {
        let (unread, total_unread) = (member.row.unread, head.total_unread);
        let response = client::MarkReadResponse { unread, total_unread };
        return Ok(Some(Marked { response, moved: None }));
    }
    let applied = member.row.applied_seq;
    let unread = others_between(txn, &conversation, &member.row, (id, user), seq, applied)?;
    let read = member.row.unread.saturating_sub(unread);
    (member.row.read_seq, member.row.unread) = (seq, unread);
    member.put(txn);
    head.total_unread = head.total_unread.saturating_sub(read);
    txn.put_message(STATE, row::head(user), &head);

    let event = client::ReadEvent { conversation_id: id, seq };
    let event = client::Event { event: Some(EventKind::Read(event)) };
    let row = InboxRow { at_ms: now_ms, event: Some(event), ..Default::default() };
    let moved = deliver(txn, user, &row, 0)?;
    let response = client::MarkReadResponse { unread, total_unread: head.total_unread };
    Ok(Some(Marked { response, moved }))
}

/// Whether a user's oldest row was written before `before_ms`, or cannot be read.
pub(super) fn has_expired(view: &dyn View, user: &str, before_ms: i64) -> Result<bool, KvError> {
    let head = read::head(view, user)?;
    Ok(!expired(view, user, &head, before_ms, 1)?.is_empty())
}

/// The oldest rows of an inbox while they were written before `before_ms`; the bytes of those that cannot be read, whose
/// age is that of the one before.
fn expired(
    view: &dyn View,
    user: &str,
    head: &Head,
    before_ms: i64,
    most: usize,
) -> Result<Vec<Option<(String, Bytes)>>, KvError> {
    let (from, to) = (row::inbox(user, head.floor()), row::inbox(user, head.latest_seq + 1));
    let mut gone = Vec::new();
    read::each(view, (INBOX, from.bytes(), to.bytes()), Direction::Forward, |_, value| {
        match read::decode_slice::<InboxRow>(value) {
            Ok(row) if row.at_ms >= before_ms => return Ok(read::go_on(false)),
            Ok(_) => gone.push(None),
            Err(error) => gone.push(Some((error.to_string(), Bytes::copy_from_slice(value)))),
        }
        Ok(read::go_on(gone.len() < most))
    })?;
    Ok(gone)
}

/// Removes a user's oldest rows while they were written before `before_ms`, and moves his floor; how many. Those that
/// cannot be read are kept apart for the operator.
pub(super) fn expire(txn: &mut Txn<'_>, user: &str, before_ms: i64, most: usize) -> Result<u64, StoreError> {
    let mut head = head_of(txn, user)?;
    let gone = expired(txn.before(), user, &head, before_ms, most)?;
    let count = gone.len() as u64;
    for (seq, damaged) in (head.floor()..).zip(gone) {
        txn.remove(INBOX, row::inbox(user, seq));
        if let Some((reason, bytes)) = damaged {
            tracing::warn!(user, seq, reason, "a row of an inbox cannot be read and was set aside");
            // When it was written cannot be read: not after its neighbours.
            let row = PoisonRow { bytes, reason, at_ms: before_ms };
            txn.put_message(STATE, row::poison_inbox(user, seq), &row);
        }
    }
    if count > 0 {
        head.floor_seq = head.floor() + count;
        txn.put_message(STATE, row::head(user), &head);
    }
    Ok(count)
}

fn message_row(conversation_id: u64, conversation_seq: u64, at_ms: i64) -> InboxRow {
    InboxRow { at_ms, conversation_id, conversation_seq, event: None }
}

/// Appends a row to a user's inbox. The server itself has none: nobody would ever pull it.
pub(super) fn deliver(
    txn: &mut Txn<'_>,
    user: &str,
    row: &InboxRow,
    unread: u64,
) -> Result<Option<Moved>, KvError> {
    let head = head_of(txn, user)?;
    Ok(put_row(txn, user, head, row, unread))
}

/// The same to an inbox that was read.
fn put_row(txn: &mut Txn<'_>, user: &str, mut head: Head, row: &InboxRow, unread: u64) -> Option<Moved> {
    if user == SYSTEM_USER {
        return None;
    }
    head.latest_seq += 1;
    head.total_unread += unread;
    txn.put_message(INBOX, row::inbox(user, head.latest_seq), row);
    txn.put_message(STATE, row::head(user), &head);
    Some(Moved { user: user.to_owned(), inbox_seq: head.latest_seq })
}

/// Writes a member's row, and moves the conversation up in his list if the message is newer than what he had.
pub(super) fn activate(txn: &mut Txn<'_>, user: &str, id: u64, member: &mut Member, message_id: u64) {
    if user == SYSTEM_USER {
        return;
    }
    let row = &mut member.row;
    if message_id > row.activity {
        if row.activity > 0 {
            txn.remove(STATE, row::activity(user, row.activity, id));
        }
        row.activity = message_id;
        txn.put(STATE, row::activity(user, message_id, id), Bytes::new());
    }
    member.put(txn);
}

pub(super) fn head_of(txn: &Txn<'_>, user: &str) -> Result<Head, KvError> {
    Ok(txn.message(STATE, row::head(user).bytes())?.unwrap_or_default())
}
