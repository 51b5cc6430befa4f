//! A group's messages to its members: a batch of messages to a slice of the roster in one step.
//!
//! The first outbox row of a batch remembers how far along the roster it is, so that a crash repeats one slice at most;
//! each member's own mark makes the repeat harmless.

use berth_proto::id::SYSTEM_USER;
use prost::bytes::Bytes;

use super::{
    member::Member,
    read,
    row::{self, INBOX, InboxRow, MemberRow, OutboxRow, STATE},
    write::{activate, head_of},
};
use crate::{
    kv::{Direction, KvError, Txn, View, last_number},
    store::{Cut, Due, Moved, Sliced, StoreError},
};

/// A message of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) seq: u64,
    pub(super) sender: String,
    pub(super) message_id: u64,
}

/// Which of a batch a member gets now: what others said while he was in the group, above his mark.
pub(super) fn due<'a>(member: &MemberRow, user: &str, batch: &'a [Given]) -> Vec<&'a Given> {
    let due =
        |given: &&Given| given.seq > member.applied_seq && given.sender != user && member.sees(given.seq);
    batch.iter().filter(due).collect()
}

/// Whether a member who left has had all that was his before this batch.
fn is_done(member: &MemberRow, batch: &[Given]) -> bool {
    let left = member.intervals.last().and_then(|stay| stay.left_seq);
    left.is_some_and(|left| batch.first().is_some_and(|first| left < first.seq))
}

/// The batch that is due, and where it stands on the roster.
struct Batch {
    given: Vec<Given>,
    /// The outbox row that remembers, and its seq.
    lead: (u64, OutboxRow),
}

fn batch(view: &dyn View, id: u64, first: u64, last: u64, most: usize) -> Result<Option<Batch>, KvError> {
    let (from, to) = (row::outbox(id, first), row::outbox(id, last.saturating_add(1)));
    let mut found: Option<Batch> = None;
    read::each(view, (STATE, from.bytes(), to.bytes()), Direction::Forward, |key, value| {
        let seq = last_number(key);
        let row: OutboxRow = match read::decode_slice(value) {
            Ok(row) => row,
            Err(error) if found.is_none() => return Err(error),
            // A damaged row ends the batch: it is the first of the next one.
            Err(_) => return Ok(read::go_on(false)),
        };
        let given = Given { seq, sender: row.sender.clone(), message_id: row.message_id };
        let batch = found.get_or_insert_with(|| Batch { given: Vec::new(), lead: (seq, row) });
        let more = match batch.lead.1.through {
            0 => batch.given.len() < most.max(1),
            through => seq <= through,
        };
        if more {
            batch.given.push(given);
        }
        Ok(read::go_on(more))
    })?;
    Ok(found)
}

/// A slice of each group, until the step has its rows.
pub(super) fn slices(
    txn: &mut Txn<'_>,
    due: &[Due],
    cut: Cut,
    now_ms: i64,
) -> Result<Vec<Sliced>, StoreError> {
    let mut done = Vec::with_capacity(due.len());
    let mut left = cut.rows;
    for group in due {
        let (sliced, rows) = slice(txn, *group, Cut { rows: left, ..cut }, now_ms)?;
        done.push(sliced);
        left = left.saturating_sub(rows);
        if left == 0 {
            break;
        }
    }
    Ok(done)
}

/// How many members a slice of a batch of so many messages goes to.
fn width(batch: usize, cut: Cut) -> usize {
    (cut.rows / batch.max(1)).clamp(1, cut.members.max(1))
}

/// One slice of one group, and the inbox rows it may have taken.
fn slice(
    txn: &mut Txn<'_>,
    Due { conversation_id: id, first, last }: Due,
    cut: Cut,
    now_ms: i64,
) -> Result<(Sliced, usize), StoreError> {
    let Some(Batch { given, lead: (lead, mut progress) }) =
        batch(txn.before(), id, first, last, cut.messages)?
    else {
        return Ok((Sliced { through: Some(last), ..Sliced::default() }, 1));
    };
    let width = width(given.len(), cut);
    let through = given.last().map_or(lead, |given| given.seq);
    let inbox = |given: &Given| InboxRow {
        at_ms: now_ms,
        conversation_id: id,
        conversation_seq: given.seq,
        event: None,
    };
    // The same row for everybody: encoded once.
    let encoded: Vec<Bytes> =
        given.iter().map(|given| prost::Message::encode_to_vec(&inbox(given)).into()).collect();
    let members = roster(txn.before(), id, &progress.after, width)?;
    let at_the_end = members.len() < width;
    let rows = given.len() * members.len().max(1);
    let mut done = Sliced::default();
    for (user, row) in &members {
        let give = Slice { id, given: &given, rows: &encoded, through };
        match row {
            Some(row) => match give.to(txn, user, row, &mut done) {
                Err(error) if error.is_damage() => set_aside(txn, id, through, user, now_ms, &mut done),
                given => given?,
            },
            None => set_aside(txn, id, through, user, now_ms, &mut done),
        }
    }
    if at_the_end {
        done.through = Some(through);
        done.finished = given.len() as u64;
        for given in &given {
            txn.remove(STATE, row::outbox(id, given.seq));
        }
    } else if let Some((user, _)) = members.into_iter().next_back() {
        (progress.through, progress.after) = (through, user);
        txn.put_message(STATE, row::outbox(id, lead), &progress);
    }
    Ok((done, rows))
}

/// Part of the roster after a user; `None`: his row cannot be read.
fn roster(
    view: &dyn View,
    id: u64,
    after: &str,
    most: usize,
) -> Result<Vec<(String, Option<MemberRow>)>, KvError> {
    let from = match after {
        "" => row::roster(id).into(),
        user => row::roster_member(id, user).after_prefix(),
    };
    let mut found = Vec::with_capacity(most);
    read::each(view, (STATE, &from, &row::roster(id).after_prefix()), Direction::Forward, |key, value| {
        found.push((row::user_of_roster(key), read::decode_slice(value).ok()));
        Ok(read::go_on(found.len() < most))
    })?;
    Ok(found)
}

struct Slice<'a> {
    id: u64,
    given: &'a [Given],
    rows: &'a [Bytes],
    through: u64,
}

impl Slice<'_> {
    /// What one member gets. Reads before it writes: an error leaves nothing of it behind.
    fn to(
        &self,
        txn: &mut Txn<'_>,
        user: &str,
        row: &MemberRow,
        done: &mut Sliced,
    ) -> Result<(), StoreError> {
        let mut member = Member { key: row::roster_member(self.id, user), row: row.clone() };
        if is_done(row, self.given) {
            txn.remove(STATE, member.key);
            member.key = row::former_member(self.id, user);
            member.put(txn);
            return Ok(());
        }
        let due = due(row, user, self.given);
        let Some(newest) = due.last() else { return Ok(()) };
        debug_assert_ne!(user, SYSTEM_USER, "the system is in no group");
        let mut head = head_of(txn, user)?;
        for given in &due {
            head.latest_seq += 1;
            let place = self.given.partition_point(|other| other.seq < given.seq);
            txn.put(INBOX, row::inbox(user, head.latest_seq), self.rows[place].clone());
        }
        let unread = due.iter().filter(|given| given.seq > row.read_seq).count() as u64;
        head.total_unread += unread;
        member.row.unread += unread;
        member.row.applied_seq = self.through;
        txn.put_message(STATE, row::head(user), &head);
        done.delivered += due.len() as u64;
        done.moved.push(Moved { user: user.to_owned(), inbox_seq: head.latest_seq });
        activate(txn, user, self.id, &mut member, newest.message_id);
        Ok(())
    }
}

/// A member whose row cannot be read is passed over, and it is noted for the operator.
fn set_aside(txn: &mut Txn<'_>, id: u64, through: u64, user: &str, now_ms: i64, done: &mut Sliced) {
    let row = row::PoisonRow {
        bytes: Bytes::copy_from_slice(user.as_bytes()),
        reason: "the row of this member cannot be read: he got no message of this batch".to_owned(),
        at_ms: now_ms,
    };
    txn.put_message(STATE, row::poison_member(id, through, user), &row);
    done.damaged += 1;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::kv::row::Interval;

    fn stays() -> impl Strategy<Value = Vec<Interval>> {
        prop::collection::vec(1u64..6, 0..7).prop_map(|steps| {
            let bounds: Vec<u64> = steps
                .iter()
                .scan(0, |seq, step| {
                    *seq += step;
                    Some(*seq)
                })
                .collect();
            let stay = |pair: &[u64]| Interval { joined_seq: pair[0], left_seq: pair.get(1).copied() };
            bounds.chunks(2).map(stay).collect()
        })
    }

    proptest! {
        /// However a batch was begun: a slice of it has somebody, and no more than it may unless that is one member.
        #[test]
        fn slices_are_bounded(batch in 1usize..64, members in 1usize..256, rows in 0usize..1024) {
            let width = width(batch, Cut { messages: 32, members, rows });
            prop_assert!(width >= 1 && width <= members);
            prop_assert!(width == 1 || width * batch <= rows);
            prop_assert!(width == members || (width + 1) * batch > rows, "no narrower than it must be");
        }

        /// Batches in order, cut anyhow, some of them again: a member gets exactly what others said while he was in,
        /// once and in order.
        #[test]
        fn batches_give_each_message_once(
            intervals in stays(),
            senders in prop::collection::vec(0u8..3, 1..40),
            cuts in prop::collection::vec((1usize..7, any::<bool>()), 40),
        ) {
            let batch: Vec<Given> = (1..)
                .zip(&senders)
                .map(|(seq, sender)| Given { seq, sender: format!("u{sender}"), message_id: seq })
                .collect();
            let mut member = MemberRow { intervals, ..MemberRow::default() };
            let (mut got, mut rest) = (Vec::new(), batch.as_slice());
            for (most, again) in cuts {
                let (now, later) = rest.split_at(most.min(rest.len()));
                let given = due(&member, "u0", now);
                prop_assert!(!is_done(&member, now) || given.is_empty(), "who is done is owed nothing");
                if !given.is_empty() {
                    got.extend(given.iter().map(|given| given.seq));
                    member.applied_seq = now.last().expect("not empty").seq;
                }
                if again {
                    prop_assert!(due(&member, "u0", now).is_empty());
                }
                rest = later;
            }
            let expected: Vec<u64> = batch
                .iter()
                .filter(|given| given.sender != "u0" && member.sees(given.seq))
                .map(|given| given.seq)
                .collect();
            prop_assert_eq!(got, expected);
        }
    }
}
