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
    spread::Entered,
    store::{Conversation, Group},
};

/// How long a sender waits for his ack: far above a slow sync, below a client's patience.
pub(crate) const ACK_DEADLINE: Duration = Duration::from_secs(10);

/// A send that waits for the queue's answer.
pub(crate) enum Sending {
    /// It was appended; where it goes to a group, it takes part in what waits there.
    Appended(Pending, Option<Entered>),
    /// It is refused, unless it is the repeat of one that was accepted when it was still allowed.
    Refused(Recalled, client::Error),
}

impl Sending {
    async fn answer(self) -> Result<Appended, client::Error> {
        match self {
            Self::Appended(pending, entered) => {
                let appended = pending.await.map_err(|error| queue_error(&error))?;
                if let (Some(entered), false) = (entered, appended.duplicate) {
                    entered.stays();
                }
                Ok(appended)
            }
            Self::Refused(recalled, refusal) => match recalled.await {
                Ok(Some(appended)) => Ok(appended),
                // A repeat of something else is none.
                Ok(None) | Err(QueueError::Conflict) => Err(refusal),
                Err(error) => Err(queue_error(&error)),
            },
        }
    }
}

/// Checks a send, finds its conversation and enters it into the queue; sends of one caller are appended in the order
/// of these calls. The answer comes from [`accepted`].
pub(crate) async fn enter(
    context: &Context,
    sender: &str,
    request: client::SendRequest,
) -> Result<Sending, client::Error> {
    validate::send(&request).map_err(|problem| ErrorCode::InvalidArgument.error(problem.to_string()))?;
    if let Some(behind) = context.too_far_behind() {
        let problem = format!("{behind} accepted messages wait to be delivered; retry later");
        return Err(ErrorCode::ResourceExhausted.error(problem));
    }
    let to = request.to.and_then(|target| target.to);
    let (conversation_id, to) = match to {
        Some(To::UserId(user)) => direct(context, sender, user).await?,
        Some(To::ConversationId(id)) => existing(context, sender, id).await?,
        Some(To::GroupId(group)) => named(context, sender, &group).await?,
        None => return Err(ErrorCode::InvalidArgument.error("send.to is missing")),
    };
    let (peer, entered) = match to {
        Recipient::Peer(peer) => (peer, Ok(None)),
        Recipient::Group(entered) => (String::new(), Ok(Some(entered))),
        Recipient::Nobody(refusal) => (String::new(), Err(refusal)),
    };
    let kind = if request.r#type.is_empty() { "text".to_owned() } else { request.r#type };
    let record = Record {
        message_id: 0,
        conversation_id,
        sender: sender.to_owned(),
        peer,
        client_msg_id: request.client_msg_id,
        r#type: kind,
        body: request.body,
        at_ms: context.now(),
    };
    let sending = match entered {
        Ok(entered) => context.queue.append(record).map(|pending| Sending::Appended(pending, entered)),
        Err(refusal) => context.queue.recall(record).map(|recalled| Sending::Refused(recalled, refusal)),
    };
    sending.map_err(|error| queue_error(&error))
}

/// Who gets a message.
enum Recipient {
    Peer(String),
    Group(Entered),
    /// Nothing new goes there from this sender.
    Nobody(client::Error),
}

async fn direct(context: &Context, sender: &str, user: String) -> Result<(u64, Recipient), client::Error> {
    if user == SYSTEM_USER {
        return Err(ErrorCode::PermissionDenied.error("send.to.userId system belongs to the server"));
    }
    let id = context.store.direct(sender, &user, context.now()).await;
    Ok((id.map_err(|error| context.store_error(&error))?, Recipient::Peer(user)))
}

/// A conversation that does not exist and one of other people are answered alike: ids are not to be probed.
async fn existing(context: &Context, sender: &str, id: u64) -> Result<(u64, Recipient), client::Error> {
    let conversation = context.store.conversation(id).await.map_err(|error| context.store_error(&error))?;
    let peer = match &conversation {
        Some(Conversation::Group(group)) => {
            return Ok((id, to_group(context, sender, group, || format!("conversation {id}")).await?));
        }
        Some(direct) => direct.peer_of(sender),
        None => None,
    };
    match peer {
        Some(SYSTEM_USER) if sender != SYSTEM_USER => {
            Err(ErrorCode::PermissionDenied.error("the conversation with system cannot be answered"))
        }
        Some(peer) => Ok((id, Recipient::Peer(peer.to_owned()))),
        None => Err(ErrorCode::PermissionDenied.error(format!("you are no member of conversation {id}"))),
    }
}

async fn named(context: &Context, sender: &str, group_id: &str) -> Result<(u64, Recipient), client::Error> {
    let group = context.store.group(group_id).await.map_err(|error| context.store_error(&error))?;
    let group = group.ok_or_else(|| ErrorCode::NotFound.error(format!("group {group_id} does not exist")))?;
    Ok((group.conversation_id, to_group(context, sender, &group, || format!("group {group_id}")).await?))
}

/// Members may send, and the server itself, once it is synced that they may; nobody while too much waits.
async fn to_group(
    context: &Context,
    sender: &str,
    group: &Group,
    name: impl Fn() -> String,
) -> Result<Recipient, client::Error> {
    let id = group.conversation_id;
    let since = if sender == SYSTEM_USER {
        // Since there is such a group.
        Some(1)
    } else {
        context.store.joined(id, sender).await.map_err(|error| context.store_error(&error))?
    };
    let Some(since) = since else {
        let refusal = ErrorCode::PermissionDenied.error(format!("you are no member of {}", name()));
        return Ok(Recipient::Nobody(refusal));
    };
    if !context.syncs.covers(&group.group_id, since) {
        let problem = format!("a change of {} is not yet on the disk; retry", name());
        return Err(ErrorCode::Unavailable.error(problem));
    }
    let entered = context.spreads.enter(id, group.member_count).ok_or_else(|| {
        let problem = format!("{} has too many messages waiting to be delivered; retry later", name());
        ErrorCode::ResourceExhausted.error(problem)
    })?;
    Ok(Recipient::Group(entered))
}

/// Waits for the queue's answer to what [`enter`] entered.
pub(crate) async fn accepted(
    context: &Context,
    sending: Sending,
) -> Result<client::SendResponse, client::Error> {
    let answer = tokio::time::timeout(ACK_DEADLINE, sending.answer()).await.map_err(|_| {
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
