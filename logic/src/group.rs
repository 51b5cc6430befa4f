//! Groups as the back-end API sees them: create or replace, add, remove, read.
//!
//! A change of many members is made in steps of [`STEP`] users, each atomic and decided at its moment, so that it never
//! holds the store for longer than a spread slice does. A change that was cut off (a crash, a deadline) leaves the steps
//! it had made; its caller repeats it and it goes on from there, since what is so already is passed over. A change is
//! synced before it is answered, and before who joined by it is told of it or may speak: messages that were accepted
//! because of it are never replayed without it (see [`crate::synced`]).

use std::sync::Arc;

use berth_proto::{
    client,
    code::ErrorCode,
    id::{self, SYSTEM_USER},
};

use crate::{
    context::Context,
    gateways,
    kv::KvError,
    store::{self, Changed, Limits, Moved, Refusal, StoreError},
    turnstile::Through,
};

/// Members of one page of [`get`], at most.
pub(crate) const PAGE: usize = 1000;

/// Users of one step of a change: a few milliseconds of the store's writer.
const STEP: usize = 128;

/// Inboxes that one sync of a change is for: so many are told of it together.
const TOLD: usize = 1024;

/// What may be. Members: write fan-out writes a row for each, at some 100,000 rows a second; larger groups want a watermark
/// instead. Groups of one user: as many as he could ever page through.
const LIMITS: Limits = Limits { members: 100_000, groups: 10_000 };

/// A group after a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) group_id: String,
    pub(crate) conversation_id: u64,
    pub(crate) member_count: u64,
    /// In order of their ids, from [`get`] only: those after the one asked for. As many as asked for: there may be more,
    /// after the last of these.
    pub(crate) members: Vec<String>,
}

/// Creates a group, or makes these its members. The same again changes nothing; a call that was cut off is repeated by
/// its caller and goes on where it stood.
///
/// # Errors
/// INVALID_ARGUMENT for a bad id, FAILED_PRECONDITION at a limit, RESOURCE_EXHAUSTED for a user who comes and goes faster
/// than spread, UNAVAILABLE when the store fails.
pub(crate) async fn put(
    context: &Context,
    group_id: &str,
    members: Vec<String>,
) -> Result<Group, client::Error> {
    check_id(group_id)?;
    let wanted = in_order(members)?;
    if wanted.len() as u64 > LIMITS.members {
        return Err(refusal(group_id, &Refusal::GroupFull));
    }
    let turn = Arc::new(context.memberships.enter(group_id).await);
    let group = match find(context, group_id).await? {
        Some(group) => group,
        None => create(context, group_id).await?,
    };
    // Who goes first may be many more than stay: only the end must be within the limit.
    let limits = Limits { members: u64::MAX, ..LIMITS };
    let mut change = Change { limits, ..Change::of(context, group, turn) };
    let mut after: Option<String> = None;
    loop {
        let id = change.group.conversation_id;
        let now = context.store.members(id, after.as_deref(), STEP).await;
        let now = now.map_err(|error| context.store_error(&error))?;
        let step = replace(&wanted, &now, after.as_deref(), STEP);
        change.step(step.joins, step.leaves).await?;
        match step.next {
            Some(next) => after = Some(next),
            None => return change.done().await,
        }
    }
}

/// Adds members; those who are in it already stay as they are.
///
/// # Errors
/// As [`put`]; NOT_FOUND where there is no such group.
pub(crate) async fn add(
    context: &Context,
    group_id: &str,
    members: Vec<String>,
) -> Result<Group, client::Error> {
    check_id(group_id)?;
    let members = in_order(members)?;
    let turn = Arc::new(context.memberships.enter(group_id).await);
    let mut change = Change::of(context, existing(context, group_id).await?, turn);
    for joins in members.chunks(STEP) {
        change.step(joins.to_vec(), Vec::new()).await?;
    }
    change.done().await
}

/// Removes members; those who are not in it are passed over. A member who leaves by himself is removed the same way.
///
/// # Errors
/// As [`add`].
pub(crate) async fn remove(
    context: &Context,
    group_id: &str,
    members: Vec<String>,
) -> Result<Group, client::Error> {
    check_id(group_id)?;
    let members = in_order(members)?;
    let turn = Arc::new(context.memberships.enter(group_id).await);
    let mut change = Change::of(context, existing(context, group_id).await?, turn);
    for leaves in members.chunks(STEP) {
        change.step(Vec::new(), leaves.to_vec()).await?;
    }
    change.done().await
}

/// A group and a page of its members: at most `limit` (bounded by [`PAGE`]) after `after`.
///
/// # Errors
/// NOT_FOUND where there is no such group, INVALID_ARGUMENT for a bad id, UNAVAILABLE when the store fails.
pub(crate) async fn get(
    context: &Context,
    group_id: &str,
    after: Option<String>,
    limit: usize,
) -> Result<Group, client::Error> {
    check_id(group_id)?;
    let group = existing(context, group_id).await?;
    let id = group.conversation_id;
    let members = context.store.members(id, after.as_deref(), limit.min(PAGE)).await;
    let members = members.map_err(|error| context.store_error(&error))?;
    Ok(Group { members, ..answer(group) })
}

async fn create(context: &Context, group_id: &str) -> Result<store::Group, client::Error> {
    let _writing = context.syncs.write(group_id, 0).ok_or_else(too_many_unsynced)?;
    let created = context.store.create_group(group_id, context.now()).await;
    let created = created.map_err(|error| context.store_error(&error))?;
    context.metrics.groups_created.increment(1);
    Ok(created)
}

/// A change that is being made.
struct Change<'a> {
    context: &'a Context,
    group: store::Group,
    /// Nobody else changes the group, until the last step that was begun is done.
    turn: Arc<Through>,
    limits: Limits,
    /// Inboxes to be told of once it is synced.
    moved: Vec<Moved>,
}

impl<'a> Change<'a> {
    fn of(context: &'a Context, group: store::Group, turn: Arc<Through>) -> Self {
        Self { context, group, turn, limits: LIMITS, moved: Vec::new() }
    }

    /// One step.
    async fn step(&mut self, joins: Vec<String>, leaves: Vec<String>) -> Result<(), client::Error> {
        if joins.is_empty() && leaves.is_empty() {
            // Nothing was written, but a page of members was read.
            tokio::task::yield_now().await;
            return Ok(());
        }
        let changed = self.write(joins, leaves).await?;
        let Self { context, group, .. } = self;
        let Changed { moved, joined, left, member_count, refused } = changed;
        if let Some(refused) = refused {
            let refused = refusal(&group.group_id, &refused);
            self.tell().await?;
            return Err(refused);
        }
        context.metrics.members_joined.increment(joined);
        context.metrics.members_left.increment(left);
        group.member_count = member_count;
        group.version += u64::from(joined + left > 0);
        self.moved.extend(moved);
        if self.moved.len() >= TOLD {
            self.tell().await?;
        }
        Ok(())
    }

    /// Writes a step, on a thread of its own: it waits for the store's writer behind others, and writes for milliseconds.
    /// A step that was begun is done whether or not somebody still waits for it: what says so goes with it.
    async fn write(&self, joins: Vec<String>, leaves: Vec<String>) -> Result<Changed, client::Error> {
        let Self { context, group, turn, limits, .. } = self;
        let step = context.memberships.step().await.map_err(|_| too_many_unsynced())?;
        let writing = context.syncs.write(&group.group_id, group.version).ok_or_else(too_many_unsynced)?;
        let (store, runtime) = (context.store.clone(), tokio::runtime::Handle::current());
        let (id, limits, now, turn) = (group.conversation_id, *limits, context.now(), turn.clone());
        let written = tokio::task::spawn_blocking(move || {
            let changed = runtime.block_on(store.change_members(id, &joins, &leaves, limits, now));
            match &changed {
                Ok(changed) if changed.joined + changed.left == 0 => writing.nothing(),
                _ => drop(writing),
            }
            drop((turn, step));
            changed
        });
        let ended = |error: tokio::task::JoinError| {
            StoreError::Engine(KvError { action: "change members", detail: error.to_string() })
        };
        let changed = written.await.unwrap_or_else(|error| Err(ended(error)));
        changed.map_err(|error| context.store_error(&error))
    }

    /// Syncs what is not yet synced of the group, also what an earlier call wrote and did not come to sync; then whoever
    /// was moved is notified.
    async fn tell(&mut self) -> Result<(), client::Error> {
        let Self { context, group, moved, .. } = self;
        if !context.syncs.has(&group.group_id) {
            context.sync_store().await.map_err(|error| context.store_error(&error))?;
        }
        gateways::notify(&*context.routes, &context.gateways, std::mem::take(moved)).await;
        Ok(())
    }

    async fn done(mut self) -> Result<Group, client::Error> {
        self.tell().await?;
        Ok(answer(self.group))
    }
}

fn too_many_unsynced() -> client::Error {
    ErrorCode::Unavailable.error("the message store cannot be synced now; retry")
}

/// What one step of a replacement does.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    joins: Vec<String>,
    leaves: Vec<String>,
    /// Users up to and including this one are as they should be then; `None`: all.
    next: Option<String>,
}

/// The next step from who is in the group to who should be, along the order of ids: `now` are the first members after
/// `after`, `most` of them unless there are no more.
fn replace(wanted: &[String], now: &[String], after: Option<&str>, most: usize) -> Step {
    let from = after.map_or(0, |after| wanted.partition_point(|user| user.as_str() <= after));
    let wanted = &wanted[from..];
    // As far as both are known, and no further than a step may go.
    let seen = if now.len() >= most { now.last() } else { None };
    let asked = if wanted.len() > most { wanted.get(most - 1) } else { None };
    let next = [seen, asked].into_iter().flatten().min();
    let here = |user: &&String| next.is_none_or(|next| *user <= next);
    let absent = |user: &&String, from: &[String]| from.binary_search(user).is_err();
    Step {
        joins: wanted.iter().filter(here).filter(|user| absent(user, now)).cloned().collect(),
        leaves: now.iter().filter(here).filter(|user| absent(user, wanted)).cloned().collect(),
        next: next.cloned(),
    }
}

fn check_id(group_id: &str) -> Result<(), client::Error> {
    id::check(group_id).map_err(|problem| ErrorCode::InvalidArgument.error(format!("groupId {problem}")))
}

/// Checks members, and puts them in order, each once.
fn in_order(mut members: Vec<String>) -> Result<Vec<String>, client::Error> {
    for user in &members {
        id::check(user).map_err(|problem| ErrorCode::InvalidArgument.error(format!("members {problem}")))?;
        if user == SYSTEM_USER {
            return Err(ErrorCode::InvalidArgument
                .error("members has system, which belongs to the server and may send to any group anyhow"));
        }
    }
    members.sort_unstable();
    members.dedup();
    Ok(members)
}

async fn find(context: &Context, group_id: &str) -> Result<Option<store::Group>, client::Error> {
    context.store.group(group_id).await.map_err(|error| context.store_error(&error))
}

async fn existing(context: &Context, group_id: &str) -> Result<store::Group, client::Error> {
    find(context, group_id)
        .await?
        .ok_or_else(|| ErrorCode::NotFound.error(format!("group {group_id} does not exist")))
}

fn answer(group: store::Group) -> Group {
    let store::Group { group_id, conversation_id, member_count, .. } = group;
    Group { group_id, conversation_id, member_count, members: Vec::new() }
}

fn refusal(group_id: &str, refused: &Refusal) -> client::Error {
    let Limits { members, groups } = LIMITS;
    match refused {
        Refusal::GroupFull => ErrorCode::FailedPrecondition
            .error(format!("group {group_id} would have more than {members} members; split it")),
        Refusal::TooManyGroups(user) => ErrorCode::FailedPrecondition.error(format!(
            "user {user} is in {groups} groups, as many as may be; some of the others are changed already: repeat without this one"
        )),
        Refusal::TooOften(user) => ErrorCode::ResourceExhausted.error(format!(
            "user {user} came and went faster than group {group_id} could be delivered; repeat later"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Step by step the group becomes what is wanted; nobody joins or leaves twice, and no step is larger than it may be.
        #[test]
        fn a_replacement_converges(
            wanted in prop::collection::btree_set("[a-f]{1,3}", 0..40),
            before in prop::collection::btree_set("[a-f]{1,3}", 0..40),
            most in 1usize..8,
        ) {
            let (wanted, mut now): (Vec<String>, BTreeSet<String>) = (wanted.into_iter().collect(), before.clone());
            let (mut after, mut touched, mut steps) = (None::<String>, BTreeSet::new(), 0);
            loop {
                let page: Vec<String> = now
                    .iter()
                    .filter(|user| after.as_ref().is_none_or(|after| *user > after))
                    .take(most)
                    .cloned()
                    .collect();
                let step = replace(&wanted, &page, after.as_deref(), most);
                prop_assert!(step.joins.len() <= most && step.leaves.len() <= most);
                for user in &step.joins {
                    prop_assert!(now.insert(user.clone()) && touched.insert(user.clone()));
                }
                for user in &step.leaves {
                    prop_assert!(now.remove(user) && touched.insert(user.clone()));
                }
                steps += 1;
                prop_assert!(steps <= 100, "it ends");
                match step.next {
                    Some(next) => {
                        prop_assert!(after.as_ref().is_none_or(|after| next > *after), "it goes on");
                        after = Some(next);
                    }
                    None => break,
                }
            }
            prop_assert_eq!(now.into_iter().collect::<Vec<_>>(), wanted);
        }
    }
}
