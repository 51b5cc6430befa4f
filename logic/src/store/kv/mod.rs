//! The store over an ordered key-value engine: `embedded` on fjall, `memory` on maps.
//!
//! Writes are read-modify-write under one writer lock: an embedded engine has one journal anyway, and many records
//! share a batch. Reads take a view and no lock.

mod fanout;
mod member;
mod read;
mod revoked;
mod roster;
mod row;
mod stays;
mod write;
mod writer;

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use berth_proto::client;

use self::{
    row::{EPOCH, HIGHEST_CONVERSATION, STATE},
    writer::Writer,
};
use super::{
    Ack, Changed, Committed, Conversation, Cursor, Cut, Due, Group, Limits, Marked, Page, RecentRevocations,
    Restored, Revocation, Sliced, Spread, Store, StoreError, Swept, Unspread,
};
use crate::{
    kv::{Batch, Durability, Kv, KvError, Recent, Txn, decode, last_number},
    queue::Stored,
    snowflake::Snowflake,
};

/// A store over a [`Kv`] with the spaces of [`KvStore::SPACES`].
pub struct KvStore {
    kv: Arc<dyn Kv>,
    writer: Writer,
    /// Rows that nearly each message needs.
    recent: Mutex<Recent>,
    inbox_epoch: u64,
}

/// What becomes of the inbox epoch at an opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epoch {
    /// What the engine holds is what was last written: the stored epoch, or 1 in a new store.
    Keep,
    /// Writes may be missing: the next one, durable before anybody sees it.
    Raise,
    /// This one: of a store that begins empty each time.
    Is(u64),
}

impl KvStore {
    /// The spaces it needs, in order.
    pub const SPACES: [&'static str; 3] = ["timeline", "inbox", "state"];

    /// Opens what the engine holds, or begins anew; `node` goes into conversation ids.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn open(kv: Arc<dyn Kv>, node: u16, epoch: Epoch) -> Result<Self, StoreError> {
        let (stored, highest) = {
            let view = kv.view();
            let number = |key| view.get(STATE, key).map(|value| value.map_or(0, |bytes| last_number(&bytes)));
            (number(EPOCH)?, number(HIGHEST_CONVERSATION)?)
        };
        let inbox_epoch = match epoch {
            Epoch::Keep => stored.max(1),
            Epoch::Raise => stored.max(1) + 1,
            Epoch::Is(epoch) => epoch,
        };
        if inbox_epoch != stored {
            let mut batch = Batch::default();
            batch.put(STATE, EPOCH, inbox_epoch.to_be_bytes().to_vec());
            kv.write(batch, Durability::Synced)?;
        }
        Ok(Self {
            kv,
            writer: Writer::new(Snowflake::above(node, highest)),
            recent: Mutex::new(Recent::new(STATE, row::HOT)),
            inbox_epoch,
        })
    }

    /// For whoever has the writer's turn.
    fn begin(&self) -> Txn<'_> {
        Txn::knowing(&*self.kv, &self.recent)
    }

    /// Removes at most `most` of a user's rows from before; others write between two such steps. Most users have nothing
    /// to remove: that is seen without a turn.
    fn expire(&self, user: &str, before_ms: i64, most: usize) -> Result<u64, StoreError> {
        if !write::has_expired(&*self.kv.view(), user, before_ms)? {
            return Ok(0);
        }
        let _writer = self.writer.turn_of_a_slice();
        let mut txn = self.begin();
        let gone = write::expire(&mut txn, user, before_ms, most)?;
        txn.commit(Durability::Buffered)?;
        Ok(gone)
    }
}

#[async_trait]
impl Store for KvStore {
    fn inbox_epoch(&self) -> u64 {
        self.inbox_epoch
    }

    async fn direct(&self, a: &str, b: &str, now_ms: i64) -> Result<u64, StoreError> {
        let (first, second) = if a <= b { (a, b) } else { (b, a) };
        if let Some(id) = read::pair(&*self.kv.view(), first, second)? {
            return Ok(id);
        }
        let mut ids = self.writer.turn();
        let mut txn = self.begin();
        write::direct(&mut txn, &mut ids, first, second, now_ms)
            .and_then(|id| txn.commit(Durability::Buffered).map(|()| id))
            .map_err(StoreError::from)
    }

    async fn conversation(&self, id: u64) -> Result<Option<Conversation>, StoreError> {
        let row = read::conversation(&*self.kv.view(), id)?;
        Ok(row.map(|row| match row.is_group() {
            true => Conversation::Group(roster::as_group(id, row)),
            false => Conversation::Direct([row.first, row.second]),
        }))
    }

    async fn group(&self, group_id: &str) -> Result<Option<Group>, StoreError> {
        roster::group(&*self.kv.view(), group_id)
    }

    async fn create_group(&self, group_id: &str, now_ms: i64) -> Result<Group, StoreError> {
        let mut ids = self.writer.turn();
        let mut txn = self.begin();
        if let Some(group) = roster::group(txn.before(), group_id)? {
            return Ok(group);
        }
        let group = roster::create(&mut txn, &mut ids, group_id, now_ms);
        txn.commit(Durability::Buffered)?;
        Ok(group)
    }

    async fn joined(&self, conversation_id: u64, user: &str) -> Result<Option<u64>, StoreError> {
        let bytes = self.kv.view().get(STATE, row::roster_member(conversation_id, user).bytes())?;
        let row = bytes.map(decode::<row::MemberRow>).transpose()?.filter(row::MemberRow::is_member);
        Ok(row.map(|row| row.version))
    }

    async fn members(
        &self,
        conversation_id: u64,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        roster::members(&*self.kv.view(), conversation_id, after, limit).map_err(StoreError::from)
    }

    async fn change_members(
        &self,
        conversation_id: u64,
        joins: &[String],
        leaves: &[String],
        limits: Limits,
        now_ms: i64,
    ) -> Result<Changed, StoreError> {
        // Hundreds of rows, and the next step follows: like a slice.
        let mut ids = self.writer.turn_of_a_slice();
        let mut txn = self.begin();
        let who = (joins, leaves);
        let mut changed = roster::change(&mut txn, &mut ids, conversation_id, who, limits, now_ms)?;
        if changed.refused.is_some() {
            // Nothing of it is written.
            let refused = changed.refused.take();
            return Ok(Changed { refused, ..Changed::default() });
        }
        txn.commit(Durability::Buffered)?;
        Ok(changed)
    }

    async fn marks(&self, partitions: u16) -> Result<Vec<u64>, StoreError> {
        let view = self.kv.view();
        let mark = |p| Ok(view.get(STATE, row::mark(p).bytes())?.map_or(0, |bytes| last_number(&bytes)));
        (0..partitions).map(mark).collect::<Result<_, KvError>>().map_err(StoreError::from)
    }

    async fn commit_round(
        &self,
        round: Vec<(u16, Vec<Stored>)>,
        now_ms: i64,
    ) -> Result<Vec<Result<Committed, StoreError>>, StoreError> {
        let mut ids = self.writer.turn();
        let mut txn = self.begin();
        let mut answers = Vec::with_capacity(round.len());
        for (partition, records) in round {
            let mark = write::mark_below(&txn, partition, &records);
            answers.push(match mark {
                Ok(mark) => Ok(write::commit(&mut txn, &mut ids, (partition, mark), records, now_ms)?),
                Err(gap @ StoreError::Gap { .. }) => Err(gap),
                Err(error) => return Err(error),
            });
        }
        txn.commit(Durability::Buffered)?;
        Ok(answers)
    }

    async fn outbox(&self, after: Option<Unspread>, limit: usize) -> Result<Vec<Unspread>, StoreError> {
        read::outbox(&*self.kv.view(), after, limit).map_err(StoreError::from)
    }

    async fn spread(&self, work: Vec<Unspread>, now_ms: i64) -> Result<Spread, StoreError> {
        let _writer = self.writer.turn();
        let mut txn = self.begin();
        let spread = write::spread(&mut txn, &work, now_ms)?;
        txn.commit(Durability::Buffered)?;
        Ok(spread)
    }

    async fn spread_groups(&self, due: &[Due], cut: Cut, now_ms: i64) -> Result<Vec<Sliced>, StoreError> {
        let _writer = self.writer.turn_of_a_slice();
        let mut txn = self.begin();
        let sliced = fanout::slices(&mut txn, due, cut, now_ms)?;
        txn.commit(Durability::Buffered)?;
        Ok(sliced)
    }

    async fn set_aside(&self, work: Unspread, reason: String, now_ms: i64) -> Result<(), StoreError> {
        let _writer = self.writer.turn();
        let mut txn = self.begin();
        write::set_aside_unspread(&mut txn, work, reason, now_ms)?;
        txn.commit(Durability::Buffered).map_err(StoreError::from)
    }

    async fn inbox_seqs(&self, users: &[String]) -> Vec<Result<u64, StoreError>> {
        let view = self.kv.view();
        let seq = |user: &String| Ok(read::head(&*view, user)?.latest_seq);
        users.iter().map(seq).collect()
    }

    async fn pull(&self, user: &str, after: u64, page: Page) -> Result<client::PullResponse, StoreError> {
        read::pull(&*self.kv.view(), user, after, page, self.inbox_epoch)
    }

    async fn history(
        &self,
        user: &str,
        request: &client::HistoryRequest,
        page: Page,
    ) -> Result<Option<client::HistoryResponse>, StoreError> {
        read::history(&*self.kv.view(), user, request, page).map_err(StoreError::from)
    }

    async fn conversations(
        &self,
        user: &str,
        after: Option<Cursor>,
        page: Page,
    ) -> Result<(client::ConversationsResponse, Option<Cursor>), StoreError> {
        read::conversations(&*self.kv.view(), user, after, page)
    }

    async fn mark_read(
        &self,
        user: &str,
        conversation_id: u64,
        seq: u64,
        now_ms: i64,
    ) -> Result<Option<Marked>, StoreError> {
        let _writer = self.writer.turn();
        let mut txn = self.begin();
        let marked = write::mark_read(&mut txn, user, conversation_id, seq, now_ms)?;
        txn.commit(Durability::Buffered)?;
        Ok(marked)
    }

    async fn ack(&self, acks: &[Ack]) -> Result<(), StoreError> {
        let _writer = self.writer.turn();
        let mut txn = self.begin();
        for Ack { user, device, seq } in acks {
            let key = row::acked(user, device);
            let known = txn.get(STATE, key.bytes())?.map_or(0, |bytes| last_number(&bytes));
            if *seq > known {
                txn.put(STATE, key, seq.to_be_bytes().to_vec());
            }
        }
        txn.commit(Durability::Buffered).map_err(StoreError::from)
    }

    async fn revoke(&self, revocation: Revocation) -> Result<Revocation, StoreError> {
        let _writer = self.writer.turn();
        let mut txn = self.begin();
        let now = revoked::put(&mut txn, revocation)?;
        txn.commit(Durability::Buffered)?;
        Ok(now)
    }

    async fn restore(&self, user: &str, device: Option<&str>, now_ms: i64) -> Result<Restored, StoreError> {
        let _writer = self.writer.turn();
        let mut txn = self.begin();
        let mut there = match device {
            Some(device) => vec![revoked::named(txn.before(), user, device)?],
            None => revoked::all_of(txn.before(), user)?,
        };
        there.retain(|one| one.not_before_ms > 0 || device.is_some());
        let in_force = there.iter().filter(|one| one.not_before_ms > 0).count();
        let now = there.into_iter().map(|one| revoked::restore(&mut txn, one, now_ms)).collect();
        txn.commit(Durability::Buffered)?;
        Ok(Restored { in_force, now })
    }

    async fn revocations(&self, user: &str) -> Result<Vec<Revocation>, StoreError> {
        let mut found = revoked::all_of(&*self.kv.view(), user)?;
        found.retain(|one| one.not_before_ms > 0);
        Ok(found)
    }

    async fn revoked(&self, who: &[(&str, &str)]) -> Vec<Result<Option<Revocation>, StoreError>> {
        let view = self.kv.view();
        who.iter().map(|(user, device)| Ok(revoked::of(&*view, user, device)?)).collect()
    }

    async fn recent_revocations(&self, since_ms: i64, limit: usize) -> Result<RecentRevocations, StoreError> {
        revoked::recent(&*self.kv.view(), since_ms, limit).map_err(StoreError::from)
    }

    async fn sweep(
        &self,
        after: Option<String>,
        before_ms: i64,
        users: usize,
        rows: usize,
    ) -> Result<Swept, StoreError> {
        let found = read::users(&*self.kv.view(), after.as_deref(), users)?;
        let mut swept = Swept::default();
        let budget = users * rows;
        let mut done = after.unwrap_or_default();
        for user in &found {
            loop {
                let most = rows.min(budget - swept.rows as usize);
                let gone = match self.expire(user, before_ms, most) {
                    // Where his inbox begins cannot be read: he is passed over, the others' rows go.
                    Err(error) if error.is_damage() => {
                        tracing::warn!(user, %error, "an inbox cannot be read: its rows do not expire");
                        0
                    }
                    gone => gone?,
                };
                swept.rows += gone;
                if gone < most as u64 {
                    break;
                }
                if swept.rows as usize == budget {
                    // He has more: the next step begins with him.
                    swept.next = Some(done);
                    return Ok(swept);
                }
            }
            done.clone_from(user);
        }
        swept.next = if found.len() < users { None } else { found.into_iter().next_back() };
        Ok(swept)
    }

    async fn sync(&self) -> Result<(), StoreError> {
        // Apart from the runtime's own threads: a sync takes milliseconds.
        let kv = self.kv.clone();
        let synced = tokio::task::spawn_blocking(move || kv.sync()).await;
        let ended = |error: tokio::task::JoinError| KvError { action: "sync", detail: error.to_string() };
        synced.map_err(ended)?.map_err(StoreError::from)
    }
}
