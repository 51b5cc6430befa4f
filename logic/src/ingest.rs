//! From a send to the queue: what can be refused at once is refused here, the rest is appended in order.

use std::time::Duration;

use berth_proto::{
    client::{self, target::To},
    code::ErrorCode,
    id::SYSTEM_USER,
    validate,
};

use crate::{
    context::{Context, queue_error},
    queue::{Appended, Pending, QueueError, Recalled, Record},
    store::{Conversation, Group},
};

/// How long a sender waits for his ack: far above a slow sync, below a client's patience.
pub(crate) const ACK_DEADLINE: Duration = Duration::from_secs(10);

/// Inbox rows that a group's committed messages may still have to become before sends to it are refused: some ten
/// seconds of spread on two cores, so that what is accepted arrives in seconds, whatever one group is flooded with.
const GROUP_BACKLOG: u64 = 1_000_000;

/// A send that waits for the queue's answer.
pub(crate) enum Entered {
    /// It was appended.
    Appended(Pending),
    /// It is refused, unless it is the repeat of one that was accepted when it was still allowed.
    Refused(Recalled, client::Error),
}

impl Entered {
    async fn answer(self) -> Result<Appended, client::Error> {
        match self {
            Self::Appended(pending) => pending.await.map_err(|error| queue_error(&error)),
            Self::Refused(recalled, refusal) => match recalled.await {
                Ok(Some(appended)) => Ok(appended),
                // A repeat of something else is none.
                Ok(None) | Err(QueueError::Conflict) => Err(refusal),
                Err(error) => Err(queue_error(&error)),
            },
        }
    }
}

/// Where a send goes.
struct Destination {
    conversation_id: u64,
    /// The other member of a direct conversation.
    peer: String,
    /// Why nothing new goes there from this sender.
    refusal: Option<client::Error>,
}

/// Checks a send, finds its conversation and enters it into the queue; sends of one caller are appended in the order
/// of these calls. The answer comes from [`accepted`].
pub(crate) async fn enter(
    context: &Context,
    sender: &str,
    request: client::SendRequest,
) -> Result<Entered, client::Error> {
    validate::send(&request).map_err(|problem| ErrorCode::InvalidArgument.error(problem.to_string()))?;
    if let Some(behind) = context.too_far_behind() {
        let problem = format!("{behind} accepted messages wait to be delivered; retry later");
        return Err(ErrorCode::ResourceExhausted.error(problem));
    }
    let to = request.to.and_then(|target| target.to);
    let destination = match to {
        Some(To::UserId(user)) => direct(context, sender, user).await?,
        Some(To::ConversationId(id)) => existing(context, sender, id).await?,
        Some(To::GroupId(group)) => named(context, sender, &group).await?,
        None => return Err(ErrorCode::InvalidArgument.error("send.to is missing")),
    };
    let kind = if request.r#type.is_empty() { "text".to_owned() } else { request.r#type };
    let record = Record {
        message_id: 0,
        conversation_id: destination.conversation_id,
        sender: sender.to_owned(),
        peer: destination.peer,
        client_msg_id: request.client_msg_id,
        r#type: kind,
        body: request.body,
        at_ms: context.now(),
    };
    let entered = match destination.refusal {
        None => context.queue.append(record).map(Entered::Appended),
        Some(refusal) => context.queue.recall(record).map(|recalled| Entered::Refused(recalled, refusal)),
    };
    entered.map_err(|error| queue_error(&error))
}

async fn direct(context: &Context, sender: &str, user: String) -> Result<Destination, client::Error> {
    if user == SYSTEM_USER {
        return Err(ErrorCode::PermissionDenied.error("send.to.userId system belongs to the server"));
    }
    let id = context.store.direct(sender, &user, context.now()).await;
    let conversation_id = id.map_err(|error| context.store_error(&error))?;
    Ok(Destination { conversation_id, peer: user, refusal: None })
}

/// A conversation that does not exist and one of other people are answered alike: ids are not to be probed.
async fn existing(context: &Context, sender: &str, id: u64) -> Result<Destination, client::Error> {
    let conversation = context.store.conversation(id).await.map_err(|error| context.store_error(&error))?;
    let peer = match &conversation {
        Some(Conversation::Group(group)) => {
            return to_group(context, sender, group, || format!("conversation {id}")).await;
        }
        Some(direct) => direct.peer_of(sender),
        None => None,
    };
    match peer {
        Some(SYSTEM_USER) if sender != SYSTEM_USER => {
            Err(ErrorCode::PermissionDenied.error("the conversation with system cannot be answered"))
        }
        Some(peer) => Ok(Destination { conversation_id: id, peer: peer.to_owned(), refusal: None }),
        None => Err(ErrorCode::PermissionDenied.error(format!("you are no member of conversation {id}"))),
    }
}

async fn named(context: &Context, sender: &str, group_id: &str) -> Result<Destination, client::Error> {
    let group = context.store.group(group_id).await.map_err(|error| context.store_error(&error))?;
    let group = group.ok_or_else(|| ErrorCode::NotFound.error(format!("group {group_id} does not exist")))?;
    to_group(context, sender, &group, || format!("group {group_id}")).await
}

/// Members may send, and the server itself; nobody while the group has too much waiting.
async fn to_group(
    context: &Context,
    sender: &str,
    group: &Group,
    name: impl Fn() -> String,
) -> Result<Destination, client::Error> {
    let id = group.conversation_id;
    let mut destination = Destination { conversation_id: id, peer: String::new(), refusal: None };
    if sender != SYSTEM_USER {
        let member =
            context.store.is_member(id, sender).await.map_err(|error| context.store_error(&error))?;
        if !member {
            let refusal = ErrorCode::PermissionDenied.error(format!("you are no member of {}", name()));
            destination.refusal = Some(refusal);
            return Ok(destination);
        }
    }
    let rows = context.spreads.backlog(id).saturating_mul(group.member_count);
    if rows > GROUP_BACKLOG {
        let problem = format!("{} has too many messages waiting to be delivered; retry later", name());
        return Err(ErrorCode::ResourceExhausted.error(problem));
    }
    Ok(destination)
}

/// Waits for the queue's answer to what [`enter`] entered.
pub(crate) async fn accepted(
    context: &Context,
    entered: Entered,
) -> Result<client::SendResponse, client::Error> {
    let answer = tokio::time::timeout(ACK_DEADLINE, entered.answer()).await.map_err(|_| {
        ErrorCode::DeadlineExceeded
            .error("the message may or may not have been accepted; retry under the same clientMsgId")
    })?;
    let appended = answer?;
    if appended.duplicate {
        context.metrics.duplicates.increment(1);
    } else {
        context.metrics.accepted.increment(1);
    }
    Ok(client::SendResponse {
        message_id: appended.message_id,
        conversation_id: appended.conversation_id,
        server_time_ms: appended.at_ms,
        duplicate: appended.duplicate,
    })
}
