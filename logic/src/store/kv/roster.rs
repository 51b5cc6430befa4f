//! Who is in a group: joining and leaving, as functions of a transaction.

use berth_proto::client::{self, event::Event as EventKind};

use super::{
    member::{Member, others_between, own_up_to},
    read,
    row::{self, ConversationRow, HIGHEST_CONVERSATION, Head, InboxRow, STATE},
    write::{activate, deliver, head_of},
};
use crate::{
    kv::{Direction, Key, KvError, Txn, View, last_number},
    snowflake::Snowflake,
    store::{Changed, Group, Limits, Refusal, StoreError},
};

/// The group of a name.
pub(super) fn group(view: &dyn View, group_id: &str) -> Result<Option<Group>, StoreError> {
    let Some(bytes) = view.get(STATE, row::group(group_id).bytes())? else { return Ok(None) };
    let id = last_number(&bytes);
    let row = read::conversation(view, id)?
        .ok_or_else(|| StoreError::Damaged(format!("group {group_id} has no conversation {id}")))?;
    Ok(Some(as_group(id, row)))
}

/// What others know of a group.
pub(super) fn as_group(id: u64, row: ConversationRow) -> Group {
    let ConversationRow { group_id, member_count, version, .. } = row;
    Group { group_id, conversation_id: id, member_count, version }
}

/// Makes a group without members.
pub(super) fn create(txn: &mut Txn<'_>, ids: &mut Snowflake, group_id: &str, now_ms: i64) -> Group {
    let id = ids.next(now_ms);
    let conversation = ConversationRow { group_id: group_id.to_owned(), version: 1, ..Default::default() };
    txn.put(STATE, row::group(group_id), id.to_be_bytes().to_vec());
    txn.put_message(STATE, row::conversation(id), &conversation);
    txn.put(STATE, HIGHEST_CONVERSATION, id.to_be_bytes().to_vec());
    as_group(id, conversation)
}

/// Members in order, at most `limit` after `after`. One whose row cannot be read is listed: he can be removed then.
pub(super) fn members(
    view: &dyn View,
    id: u64,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<String>, KvError> {
    let from = match after {
        Some(user) => row::roster_member(id, user).after_prefix(),
        None => row::roster(id).into(),
    };
    let to = row::roster(id).after_prefix();
    let mut found = Vec::new();
    if limit == 0 {
        return Ok(found);
    }
    read::each(view, (STATE, &from, &to), Direction::Forward, |key, value| {
        if read::decode_slice::<row::MemberRow>(value).map_or(true, |row| row.is_member()) {
            found.push(row::user_of_roster(key));
        }
        Ok(read::go_on(found.len() < limit))
    })?;
    Ok(found)
}

/// One step of a change, decided against the conversation's newest seq now. Refused: the transaction must not be
/// committed.
pub(super) fn change(
    txn: &mut Txn<'_>,
    ids: &mut Snowflake,
    id: u64,
    (joins, leaves): (&[String], &[String]),
    limits: Limits,
    now_ms: i64,
) -> Result<Changed, StoreError> {
    let conversation: Option<ConversationRow> = txn.message(STATE, row::conversation(id).bytes())?;
    let Some(mut conversation) = conversation.filter(ConversationRow::is_group) else {
        return Err(StoreError::Damaged(format!("conversation {id} is no group's")));
    };
    let mut done = Changed::default();
    conversation.version += 1;
    for user in joins {
        done.refused = join(txn, ids, &mut conversation, (id, user), limits, now_ms, &mut done)?;
        if done.refused.is_some() {
            return Ok(done);
        }
    }
    for user in leaves {
        leave(txn, &mut conversation, (id, user), now_ms, &mut done)?;
    }
    done.member_count = conversation.member_count;
    if done.joined + done.left > 0 {
        txn.put_message(STATE, row::conversation(id), &conversation);
    }
    Ok(done)
}

fn join(
    txn: &mut Txn<'_>,
    ids: &mut Snowflake,
    conversation: &mut ConversationRow,
    (id, user): (u64, &str),
    limits: Limits,
    now_ms: i64,
    done: &mut Changed,
) -> Result<Option<Refusal>, StoreError> {
    let Found::Member(mut member) = find(txn, conversation, (id, user), now_ms)? else { return Ok(None) };
    if member.row.is_member() {
        return Ok(None);
    }
    let mut head = head_of(txn, user)?;
    if conversation.member_count >= limits.members {
        return Ok(Some(Refusal::GroupFull));
    }
    if head.groups >= limits.groups {
        return Ok(Some(Refusal::TooManyGroups(user.to_owned())));
    }
    if let Some(oldest) = member.row.too_many_to_join(conversation.last_seq) {
        let through = oldest.left_seq.unwrap_or(0);
        if oldest_unspread(txn.before(), id)?.is_some_and(|seq| seq <= through) {
            return Ok(Some(Refusal::TooOften(user.to_owned())));
        }
        forget_oldest(txn, conversation, (id, user), &mut member, &mut head, through)?;
    }
    if member.row.intervals.is_empty() {
        // Not 0 where a damaged row of his was taken away.
        member.row.own = own_up_to(txn.before(), id, user, u64::MAX)?;
    }
    member.row.join(conversation.last_seq);
    member.row.version = conversation.version;
    // Who left and has everything that was his is kept apart; he comes back to the roster.
    let roster = row::roster_member(id, user);
    if member.key.bytes() != roster.bytes() {
        txn.remove(STATE, std::mem::replace(&mut member.key, roster));
    }
    head.groups += 1;
    conversation.member_count += 1;
    done.joined += 1;
    txn.put_message(STATE, row::head(user), &head);
    done.moved.extend(deliver(txn, user, &event(conversation, id, "joined", now_ms), 0)?);
    // A group one has just come to is among the newest, though nothing was said in it yet.
    activate(txn, user, id, &mut member, ids.next(now_ms));
    Ok(None)
}

/// Forgets the oldest stay, with what was unread of it.
fn forget_oldest(
    txn: &Txn<'_>,
    conversation: &ConversationRow,
    (id, user): (u64, &str),
    member: &mut Member,
    head: &mut Head,
    through: u64,
) -> Result<(), StoreError> {
    let row = &mut member.row;
    if through > row.read_seq {
        let unread = others_between(txn, conversation, row, (id, user), through, row.applied_seq)?;
        head.total_unread = head.total_unread.saturating_sub(row.unread.saturating_sub(unread));
        (row.read_seq, row.unread) = (through, unread);
    }
    row.forget_oldest();
    Ok(())
}

fn leave(
    txn: &mut Txn<'_>,
    conversation: &mut ConversationRow,
    (id, user): (u64, &str),
    now_ms: i64,
    done: &mut Changed,
) -> Result<(), StoreError> {
    let found = find(txn, conversation, (id, user), now_ms)?;
    if matches!(&found, Found::Member(member) if !member.row.is_member()) {
        return Ok(());
    }
    let mut head = head_of(txn, user)?;
    head.groups = head.groups.saturating_sub(1);
    conversation.member_count = conversation.member_count.saturating_sub(1);
    done.left += 1;
    txn.put_message(STATE, row::head(user), &head);
    done.moved.extend(deliver(txn, user, &event(conversation, id, "left", now_ms), 0)?);
    let Found::Member(mut member) = found else {
        return set_aside(txn, row::roster_member(id, user), (id, conversation.last_seq, user), now_ms);
    };
    member.row.leave(conversation.last_seq);
    member.row.version = conversation.version;
    if member.row.intervals.is_empty() {
        // Nothing was said while he was there: as if he had never been.
        txn.remove(STATE, row::activity(user, member.row.activity, id));
        txn.remove(STATE, member.key);
    } else {
        member.put(txn);
    }
    Ok(())
}

/// A user as the roster has him.
enum Found {
    Member(Member),
    /// He is on it, but his row cannot be read.
    Unreadable,
}

/// Looks for a user. A row of one who left and that cannot be read is set aside: he is as new.
fn find(
    txn: &mut Txn<'_>,
    conversation: &ConversationRow,
    (id, user): (u64, &str),
    now_ms: i64,
) -> Result<Found, StoreError> {
    match Member::of(txn, conversation, id, user) {
        Err(error) if error.action == KvError::DECODE => {}
        found => return Ok(Found::Member(found?)),
    }
    let key = row::roster_member(id, user);
    if txn.get(STATE, key.bytes())?.is_some() {
        return Ok(Found::Unreadable);
    }
    set_aside(txn, row::former_member(id, user), (id, conversation.last_seq, user), now_ms)?;
    Ok(Found::Member(Member { key, row: row::MemberRow::default() }))
}

/// Takes a row that cannot be read away, and keeps it for the operator.
fn set_aside(
    txn: &mut Txn<'_>,
    key: Key,
    (id, seq, user): (u64, u64, &str),
    now_ms: i64,
) -> Result<(), StoreError> {
    tracing::warn!(
        conversation_id = id,
        user,
        "a member's row cannot be read and was set aside: what he had not read of the group is forgotten"
    );
    let bytes = txn.get(STATE, key.bytes())?.unwrap_or_default();
    let reason = "the row of this member could not be read: it was taken away when he left or came back";
    let row = row::PoisonRow { bytes, reason: reason.to_owned(), at_ms: now_ms };
    txn.put_message(STATE, row::poison_member(id, seq, user), &row);
    txn.remove(STATE, key);
    forget_activity(txn, id, user)
}

/// Takes a conversation off a user's list without knowing where on it it is, and counts what is unread in the others.
fn forget_activity(txn: &mut Txn<'_>, id: u64, user: &str) -> Result<(), StoreError> {
    let (from, mut listed) = (row::activities(user), Vec::new());
    let range = (STATE, from.bytes(), &*from.after_prefix());
    read::each(txn.before(), range, Direction::Forward, |key, _| {
        listed.push((last_number(key), key.to_vec()));
        Ok(read::go_on(true))
    })?;
    let mut head = head_of(txn, user)?;
    head.total_unread = 0;
    for (other, key) in listed {
        if other == id {
            txn.remove(STATE, key);
            continue;
        }
        let Some(conversation) = read::conversation(txn.before(), other)? else { continue };
        match Member::of(txn, &conversation, other, user) {
            Err(error) if error.action == KvError::DECODE => {}
            member => head.total_unread += member?.row.unread,
        }
    }
    txn.put_message(STATE, row::head(user), &head);
    Ok(())
}

fn event(conversation: &ConversationRow, id: u64, kind: &str, at_ms: i64) -> InboxRow {
    let event = client::ConversationEvent {
        conversation_id: id,
        group_id: conversation.group_id.clone(),
        kind: kind.to_owned(),
        large: false,
    };
    let event = client::Event { event: Some(EventKind::Conversation(event)) };
    InboxRow { at_ms, event: Some(event), ..Default::default() }
}

/// The first message of a conversation that is not yet spread.
fn oldest_unspread(view: &dyn View, id: u64) -> Result<Option<u64>, KvError> {
    let (from, to) = (row::outbox(id, 0), row::outbox(id, u64::MAX));
    let mut found = None;
    view.scan(STATE, from.bytes(), to.bytes(), Direction::Forward, &mut |key, _| {
        found = Some(last_number(key));
        std::ops::ControlFlow::Break(())
    })?;
    Ok(found)
}
