//! A user's row in a conversation: where it is, what it counts.

use prost::bytes::Bytes;

use super::row::{self, ConversationRow, MemberRow, STATE, TIMELINE, TimelineRow};
use crate::{
    kv::{Direction, Key, KvError, Space, Txn, View, decode, last_number},
    store::StoreError,
};

/// A user's row in a conversation, and where it belongs.
pub(super) struct Member {
    pub(super) key: Key,
    pub(super) row: MemberRow,
}

impl Member {
    /// As a transaction sees it; a new row where there is none.
    pub(super) fn of(
        txn: &Txn<'_>,
        conversation: &ConversationRow,
        id: u64,
        user: &str,
    ) -> Result<Self, KvError> {
        find(&|key| txn.get(STATE, key), conversation, id, user)
    }

    /// As a view sees it.
    pub(super) fn seen(
        view: &dyn View,
        conversation: &ConversationRow,
        id: u64,
        user: &str,
    ) -> Result<Self, KvError> {
        find(&|key| view.get(STATE, key), conversation, id, user)
    }

    /// Whether something of the conversation is his to read.
    pub(super) fn may_read(&self, conversation: &ConversationRow, user: &str) -> bool {
        conversation.is_between(user) || !self.row.intervals.is_empty()
    }

    pub(super) fn put(&self, txn: &mut Txn<'_>) {
        txn.put_message(STATE, self.key.clone(), &self.row);
    }
}

/// The value of a key in the space [`STATE`].
type Get<'a> = dyn Fn(&[u8]) -> Result<Option<Bytes>, KvError> + 'a;

fn find(get: &Get<'_>, conversation: &ConversationRow, id: u64, user: &str) -> Result<Member, KvError> {
    let keys = if conversation.is_group() {
        [row::roster_member(id, user), row::former_member(id, user)]
    } else {
        let key = row::member(user, id);
        let row = get(key.bytes())?.map(decode).transpose()?.unwrap_or_default();
        return Ok(Member { key, row });
    };
    for key in &keys {
        if let Some(bytes) = get(key.bytes())? {
            return Ok(Member { key: key.clone(), row: decode(bytes)? });
        }
    }
    let [key, _] = keys;
    Ok(Member { key, row: MemberRow::default() })
}

/// Other people's messages in `after + 1..=through` that are the member's, as the database was before this transaction.
pub(super) fn others_between(
    txn: &Txn<'_>,
    conversation: &ConversationRow,
    member: &MemberRow,
    (id, user): (u64, &str),
    after: u64,
    through: u64,
) -> Result<u64, StoreError> {
    if after >= through {
        return Ok(0);
    }
    if !conversation.is_group() {
        return others_in_direct(txn, conversation, (id, user), after, through);
    }
    let all: u64 = member.visible(after, through).map(|(first, last)| last - first + 1).sum();
    let (before, until) =
        (own_up_to(txn.before(), id, user, after)?, own_up_to(txn.before(), id, user, through)?);
    // Never below: but a store may hold a count that began anew behind a damaged row.
    let own = until.saturating_sub(before);
    // Where something of his own is in a stay that was forgotten, it is below what he has read, and so below `after`.
    Ok(all.saturating_sub(own))
}

/// All of them minus the user's own, from the running counts.
fn others_in_direct(
    txn: &Txn<'_>,
    conversation: &ConversationRow,
    (id, user): (u64, &str),
    after: u64,
    through: u64,
) -> Result<u64, StoreError> {
    if conversation.first == conversation.second {
        return Ok(0);
    }
    let by_first = |seq: u64| match seq {
        0 => Ok(0),
        seq => txn
            .message::<TimelineRow>(TIMELINE, row::timeline(id, seq).bytes())?
            .map(|row| row.by_first)
            .ok_or_else(|| StoreError::Damaged(format!("conversation {id} has no message {seq}"))),
    };
    let first = by_first(through)? - by_first(after)?;
    Ok(if user == conversation.first { through - after - first } else { first })
}

/// How many messages the user sent to a group up to and including `seq`: the number of the last of them.
pub(super) fn own_up_to(view: &dyn View, id: u64, user: &str, seq: u64) -> Result<u64, KvError> {
    let (from, to) = (row::own(id, user, 0), row::own(id, user, seq.saturating_add(1)));
    Ok(first_value(view, TIMELINE, from.bytes(), to.bytes(), Direction::Backward)?.unwrap_or(0))
}

/// The number that the first value of a scan ends with.
fn first_value(
    view: &dyn View,
    space: Space,
    from: &[u8],
    to: &[u8],
    direction: Direction,
) -> Result<Option<u64>, KvError> {
    let mut found = None;
    view.scan(space, from, to, direction, &mut |_, value| {
        found = Some(last_number(value));
        std::ops::ControlFlow::Break(())
    })?;
    Ok(found)
}
