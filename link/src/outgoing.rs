//! The queue of batches that wait for one link's network: bounded in batches and in bytes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use berth_proto::link::{Refused, RefusedReason};
use prost::Message;
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::LinkMetrics;

/// Batches that may wait: at one a wake-up, far more than a healthy network leaves behind.
pub(crate) const BATCHES: usize = 1024;

/// Bytes that may wait, some 300,000 notifies: what a peer that stops reading can cost, with what HTTP/2 holds beside. A
/// batch that finds the queue empty is taken whatever its size.
const BYTES: usize = 32 * 1024 * 1024;

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
    /// Takes the batch that `wrap` makes of `messages`, or gives them back.
    ///
    /// # Errors
    /// When there is no room, or nobody takes batches out any more.
    pub(crate) fn send<M>(
        &self,
        messages: Vec<M>,
        wrap: impl FnOnce(Vec<M>) -> B,
        unwrap: impl FnOnce(B) -> Vec<M>,
    ) -> Result<(), Refused<M>> {
        let batch = wrap(messages);
        let bytes = batch.encoded_len();
        let before = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let refused = if before > 0 && before + bytes > BYTES {
            Some((batch, RefusedReason::Full))
        } else {
            match self.batches.try_send((batch, bytes)) {
                Ok(()) => None,
                Err(TrySendError::Full((batch, _))) => Some((batch, RefusedReason::Full)),
                Err(TrySendError::Closed((batch, _))) => Some((batch, RefusedReason::Closed)),
            }
        };
        let Some((batch, reason)) = refused else { return Ok(()) };
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        if reason == RefusedReason::Full {
            self.metrics.full.increment(1);
        }
        Err(Refused { rest: unwrap(batch), reason })
    }
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
        assert_eq!(send(&out, BYTES * 2), None, "alone, any size passes");
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
}
