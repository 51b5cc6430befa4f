//! Each method of a client's request but send: validated, answered from the store or the routes; acks many at a time.

use std::time::Instant;

use berth_proto::{
    client::{self, request::Method, response::Result as Answer},
    code::ErrorCode,
    limits, validate, wire,
};

use crate::{
    context::Context,
    gateways,
    metrics::Asked,
    store::{Ack, Cursor, Page},
};

/// Answers a request; `send` and `ack` have ways of their own (see `lane.rs`).
pub(crate) async fn answer(context: &Context, request: &wire::ClientRequest, method: Method) -> Answer {
    let (asked, begun) = (asked(&method), Instant::now());
    context.metrics.asked(asked);
    let result = match validate::method(&method) {
        Err(problem) => Err(ErrorCode::InvalidArgument.error(problem.to_string())),
        Ok(()) => perform(context, request, method).await,
    };
    context.metrics.took(asked, begun.elapsed());
    result.unwrap_or_else(|error| refuse(context, error))
}

/// Answers so many acks, of which these are the highest of each device: one answer for all.
pub(crate) async fn acks(context: &Context, highest: &[Ack], count: usize) -> Answer {
    let begun = Instant::now();
    (0..count).for_each(|_| context.metrics.asked(Asked::Ack));
    let acked = context.store.ack(highest).await.map_err(|error| context.store_error(&error));
    let answer = acked.map(|()| Answer::Ack(client::AckResponse {}));
    (0..count).for_each(|_| context.metrics.took(Asked::Ack, begun.elapsed()));
    answer.unwrap_or_else(|error| {
        (1..count).for_each(|_| context.metrics.refused(&error.code));
        refuse(context, error)
    })
}

/// An error as an answer, counted.
pub(crate) fn refuse(context: &Context, error: client::Error) -> Answer {
    context.metrics.refused(&error.code);
    Answer::Error(error)
}

async fn perform(
    context: &Context,
    request: &wire::ClientRequest,
    method: Method,
) -> Result<Answer, client::Error> {
    let user = request.user_id.as_str();
    let store = &context.store;
    let failed = |error| context.store_error(&error);
    match method {
        Method::Pull(pull) => {
            let pulled = store.pull(user, pull.after_seq, page(pull.limit)).await;
            Ok(Answer::Pull(pulled.map_err(failed)?))
        }
        Method::History(history) => {
            let found = store.history(user, &history, page(history.limit)).await.map_err(failed)?;
            found.map(Answer::History).ok_or_else(|| no_member(history.conversation_id))
        }
        Method::Conversations(wanted) => conversations(context, user, wanted).await,
        Method::MarkRead(read) => {
            let (id, now) = (read.conversation_id, context.now());
            let marked = store.mark_read(user, id, read.seq, now).await.map_err(failed)?;
            let marked = marked.ok_or_else(|| no_member(id))?;
            let moved = marked.moved.into_iter().collect();
            gateways::notify(&*context.routes, &context.gateways, moved).await;
            Ok(Answer::MarkRead(marked.response))
        }
        Method::Presence(wanted) => presence(context, wanted.user_ids).await.map(Answer::Presence),
        Method::Send(_) | Method::Ack(_) => {
            Err(ErrorCode::Internal.error("a send or an ack took the way of other requests"))
        }
    }
}

async fn conversations(
    context: &Context,
    user: &str,
    wanted: client::ConversationsRequest,
) -> Result<Answer, client::Error> {
    let after = match wanted.cursor.as_str() {
        "" => None,
        text => Some(parse_cursor(text).ok_or_else(|| {
            ErrorCode::InvalidArgument.error("conversations.cursor is not one that a page ended with")
        })?),
    };
    let found = context.store.conversations(user, after, page(wanted.limit)).await;
    let (mut response, next) = found.map_err(|error| context.store_error(&error))?;
    response.cursor = next.map(write_cursor).unwrap_or_default();
    Ok(Answer::Conversations(response))
}

/// Who of these users is connected, and with what.
pub(crate) async fn presence(
    context: &Context,
    user_ids: Vec<String>,
) -> Result<client::PresenceResponse, client::Error> {
    let found = context.routes.lookup(&user_ids).await.map_err(|error| context.routes_error(&error))?;
    let users = user_ids.into_iter().zip(found).map(|(user_id, routes)| client::UserPresence {
        user_id,
        online: !routes.is_empty(),
        devices: routes
            .into_iter()
            .map(|route| client::DevicePresence { device_id: route.device, platform: route.platform })
            .collect(),
    });
    Ok(client::PresenceResponse { users: users.collect() })
}

fn asked(method: &Method) -> Asked {
    match method {
        Method::Send(_) => Asked::Send,
        Method::Pull(_) => Asked::Pull,
        Method::Ack(_) => Asked::Ack,
        Method::History(_) => Asked::History,
        Method::Conversations(_) => Asked::Conversations,
        Method::MarkRead(_) => Asked::MarkRead,
        Method::Presence(_) => Asked::Presence,
    }
}

fn no_member(id: u64) -> client::Error {
    ErrorCode::PermissionDenied.error(format!("you are no member of conversation {id}"))
}

fn page(limit: u32) -> Page {
    Page { rows: validate::page_size(limit), bytes: limits::RESPONSE_ROWS }
}

fn write_cursor(cursor: Cursor) -> String {
    format!("{:x}-{:x}", cursor.activity, cursor.conversation_id)
}

fn parse_cursor(text: &str) -> Option<Cursor> {
    let (activity, conversation) = text.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(Cursor { activity: number(activity)?, conversation_id: number(conversation)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_there_and_back_and_nothing_else() {
        let cursor = Cursor { activity: u64::MAX, conversation_id: 1 };
        assert_eq!(parse_cursor(&write_cursor(cursor)), Some(cursor));
        for bad in ["x", "1", "1-", "-1", "1-g", "1-1-1", "11111111111111111-1"] {
            assert_eq!(parse_cursor(bad), None, "{bad}");
        }
    }
}
