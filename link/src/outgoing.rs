//! The queue of batches that wait for one link's network: bounded in batches and in bytes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use berth_proto::link::{Refused, RefusedReason};
use prost::Message;
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::{LinkMetrics, client::MESSAGE};

/// Batches that may wait: at one a wake-up, far more than a healthy network leaves behind.
pub(crate) const BATCHES: usize = 1024;

/// Bytes that may wait, some 300,000 notifies: what a peer that stops reading can cost, with what HTTP/2 holds beside. A
/// message that finds the queue empty is taken if it fits [`MESSAGE`].
const BYTES: usize = 32 * 1024 * 1024;

/// Bytes of a batch, unless it is of one message: what is said at one wake-up goes in several when it has more.
const BATCH: usize = 4 * 1024 * 1024;

/// What differs from a batch to its messages, in bytes: a tag and a length for each.
const FRAMING: usize = 6;

/// Where batches go in.
pub(crate) struct Outgoing<B> {
    batches: mpsc::Sender<(B, usize)>,
    waiting: Arc<AtomicUsize>,
    metrics: LinkMetrics,
}

/// Where they come out.
pub(crate) struct Waiting<B> {
    batches: mpsc::Receiver<(B, usize)>,
    waiting: Arc<AtomicUsize>,
    metrics: LinkMetrics,
}

/// A queue of at most `batches`.
pub(crate) fn queue<B>(batches: usize, metrics: LinkMetrics) -> (Outgoing<B>, Waiting<B>) {
    let (sender, receiver) = mpsc::channel(batches);
    let waiting = Arc::new(AtomicUsize::new(0));
    let incoming = Waiting { batches: receiver, waiting: Arc::clone(&waiting), metrics: metrics.clone() };
    (Outgoing { batches: sender, waiting, metrics }, incoming)
}

impl<B: Message> Outgoing<B> {
    /// Takes what `wrap` makes of `messages`, in as many batches as it needs, or gives back those it has no room for.
    ///
    /// # Errors
    /// When there is no room, a message is too large for any link, or nobody takes batches out any more.
    pub(crate) fn send<M: Message>(
        &self,
        messages: Vec<M>,
        wrap: impl Fn(Vec<M>) -> B,
        unwrap: impl Fn(B) -> Vec<M>,
    ) -> Result<(), Refused<M>> {
        let batch = wrap(messages);
        let bytes = batch.encoded_len();
        if bytes <= BATCH {
            return self
                .send_one(batch, bytes)
                .map_err(|(batch, reason)| Refused { rest: unwrap(batch), reason });
        }
        let mut parts = split(unwrap(batch)).into_iter();
        while let Some(part) = parts.next() {
            let batch = wrap(part);
            let bytes = batch.encoded_len();
            if let Err((batch, reason)) = self.send_one(batch, bytes) {
                let rest = unwrap(batch).into_iter().chain(parts.flatten()).collect();
                return Err(Refused { rest, reason });
            }
        }
        Ok(())
    }

    fn send_one(&self, batch: B, bytes: usize) -> Result<(), (B, RefusedReason)> {
        let before = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        // The other side would end the link for a batch above the limit, and everybody's messages with it.
        let refused = if bytes > MESSAGE || (before > 0 && before + bytes > BYTES) {
            (batch, RefusedReason::Full)
        } else {
            match self.batches.try_send((batch, bytes)) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full((batch, _))) => (batch, RefusedReason::Full),
                Err(TrySendError::Closed((batch, _))) => (batch, RefusedReason::Closed),
            }
        };
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        if refused.1 == RefusedReason::Full {
            self.metrics.full.increment(1);
        }
        Err(refused)
    }

    /// Until nobody takes batches out any more.
    pub(crate) async fn closed(&self) {
        self.batches.closed().await;
    }
}

/// In order, in parts of at most [`BATCH`] or of one message.
pub(crate) fn split<M: Message>(messages: Vec<M>) -> Vec<Vec<M>> {
    let mut parts: Vec<Vec<M>> = Vec::new();
    let mut room = 0;
    for message in messages {
        let bytes = message.encoded_len() + FRAMING;
        match parts.last_mut() {
            Some(part) if bytes <= room => part.push(message),
            _ => {
                parts.push(vec![message]);
                room = BATCH;
            }
        }
        room = room.saturating_sub(bytes);
    }
    parts
}

impl<B> Waiting<B> {
    /// The next batch for the network; none: nobody sends any more.
    pub(crate) async fn next(&mut self) -> Option<B> {
        let (batch, bytes) = self.batches.recv().await?;
        self.metrics.batches_out.increment(1);
        self.metrics.bytes_out.increment(bytes as u64);
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        Some(batch)
    }

    /// A batch that waits now.
    pub(crate) fn try_next(&mut self) -> Option<B> {
        let (batch, bytes) = self.batches.try_recv().ok()?;
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use metrics::NoopRecorder;

    use super::*;
    use crate::rpc::ToLogicBatch;
    use berth_proto::{metric::Registry, wire};

    fn batch(bytes: usize) -> Vec<wire::ToLogic> {
        let open = wire::OpenSession { user_id: "u".repeat(bytes), ..Default::default() };
        vec![wire::ToLogic { message: Some(wire::to_logic::Message::Open(open)) }]
    }

    fn send(out: &Outgoing<ToLogicBatch>, bytes: usize) -> Option<RefusedReason> {
        let wrap = |messages| ToLogicBatch { messages };
        out.send(batch(bytes), wrap, |batch| batch.messages).err().map(|refused| {
            assert_eq!(refused.rest, batch(bytes), "it comes back whole");
            refused.reason
        })
    }

    #[tokio::test]
    async fn bytes_and_batches_are_bounded_and_room_comes_back() {
        let metrics = LinkMetrics::logic(Registry::new(&NoopRecorder));
        let (out, mut waiting) = queue(3, metrics.clone());
        assert_eq!(send(&out, MESSAGE), Some(RefusedReason::Full), "no link carries that");
        assert_eq!(send(&out, MESSAGE - 100), None, "alone, any other size passes");
        assert_eq!(send(&out, 1), Some(RefusedReason::Full));
        waiting.next().await.expect("the large one");
        for _ in 0..3 {
            assert_eq!(send(&out, BYTES / 4), None);
        }
        assert_eq!(send(&out, 1), Some(RefusedReason::Full), "three batches are the most");
        waiting.try_next().expect("one of them");
        assert_eq!(send(&out, BYTES), Some(RefusedReason::Full));
        assert_eq!(send(&out, 1), None);
        drop(waiting);
        assert_eq!(send(&out, 1), Some(RefusedReason::Closed));
    }
    #[tokio::test]
    async fn what_one_batch_does_not_hold_goes_in_several_in_order() {
        let metrics = LinkMetrics::logic(Registry::new(&NoopRecorder));
        let (out, mut waiting) = queue(BATCHES, metrics);
        let wrap = |messages| ToLogicBatch { messages };
        let one = |n: usize| batch(if n == 3 { 2 * BATCH } else { BATCH / 3 + n }).remove(0);
        let all: Vec<_> = (0..9).map(one).collect();
        assert!(out.send(all.clone(), wrap, |batch| batch.messages).is_ok());
        let mut came = Vec::new();
        while let Some(batch) = waiting.try_next() {
            assert!(batch.encoded_len() <= BATCH || batch.messages.len() == 1);
            came.extend(batch.messages);
        }
        assert!(came == all);
        // Of what finds no room the first part is taken, the rest comes back, in order.
        let all: Vec<_> = (0..40).map(one).collect();
        let rest = out.send(all.clone(), wrap, |batch| batch.messages).expect_err("40 MiB and more").rest;
        while let Some(batch) = waiting.try_next() {
            assert!(batch.messages == all[came.len() - 9..][..batch.messages.len()]);
            came.extend(batch.messages);
        }
        assert!(rest == all[came.len() - 9..] && came.len() > 9);
    }
}
