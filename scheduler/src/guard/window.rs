//! What a pool's gateways counted in each of the last seconds.

use std::collections::VecDeque;

use berth_proto::{health::HANDSHAKE_BUCKETS, wire::GatewayHealth};

use crate::policy::MAX_WINDOW;

/// The upper end of a histogram's last bucket, in milliseconds: twice the one before, though what is in it may have taken longer.
const LAST_BUCKET_MS: f64 = 32_768.0;

/// How clients fared: counted since a gateway's boot, or within a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Connections that ended before their welcome.
    pub failed: u64,
    /// Sessions that began.
    pub welcomed: u64,
    /// Sessions that ended.
    pub ended: u64,
    /// Of those, as none should.
    pub abnormal: u64,
    /// From accept to welcome, by [`GatewayHealth::handshake_ms`]'s buckets.
    pub handshake_ms: [u64; HANDSHAKE_BUCKETS],
}

impl Counts {
    /// As a gateway tells them, since its boot.
    #[must_use]
    pub fn of(health: &GatewayHealth) -> Self {
        let mut handshake_ms = [0; HANDSHAKE_BUCKETS];
        handshake_ms.iter_mut().zip(&health.handshake_ms).for_each(|(own, told)| *own = *told);
        Self {
            failed: health.connects_failed,
            welcomed: health.welcomed,
            ended: health.sessions_ended,
            abnormal: health.abnormal(),
            handshake_ms,
        }
    }

    /// So many sessions ended at once, with their gateway.
    #[must_use]
    pub fn lost(sessions: u64) -> Self {
        Self { ended: sessions, abnormal: sessions, ..Self::default() }
    }

    /// Sessions that are open, of counts since a boot.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.welcomed.saturating_sub(self.ended)
    }

    /// Attempts to connect that came to an end.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.failed.saturating_add(self.welcomed)
    }

    /// Together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// What came since `before`; a counter that fell counts for nothing.
    #[must_use]
    pub fn minus(&self, before: &Self) -> Self {
        self.with(before, u64::saturating_sub)
    }

    fn with(&self, other: &Self, each: impl Fn(u64, u64) -> u64) -> Self {
        let mut handshake_ms = self.handshake_ms;
        handshake_ms.iter_mut().zip(other.handshake_ms).for_each(|(own, other)| *own = each(*own, other));
        Self {
            failed: each(self.failed, other.failed),
            welcomed: each(self.welcomed, other.welcomed),
            ended: each(self.ended, other.ended),
            abnormal: each(self.abnormal, other.abnormal),
            handshake_ms,
        }
    }

    /// The time that 99% of the handshakes did not exceed, in milliseconds, on the straight line within its bucket; none without
    /// handshakes.
    #[must_use]
    pub fn handshake_p99_ms(&self) -> Option<f64> {
        let wanted = self.handshakes() * 0.99;
        let mut before = 0.0;
        for (bucket, count) in self.handshake_ms.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if before + count >= wanted {
                let (lower, upper) = bounds_ms(bucket);
                return Some(lower + (upper - lower) * (wanted - before) / count);
            }
            before += count;
        }
        None
    }

    /// Which share of the handshakes took longer, on the straight line within a bucket.
    #[must_use]
    pub fn slower_than(&self, ms: f64) -> f64 {
        let above = self.handshake_ms.iter().enumerate().map(|(bucket, count)| {
            let (lower, upper) = bounds_ms(bucket);
            *count as f64 * ((upper - ms) / (upper - lower)).clamp(0.0, 1.0)
        });
        above.sum::<f64>() / self.handshakes().max(1.0)
    }

    fn handshakes(&self) -> f64 {
        self.handshake_ms.iter().map(|count| *count as f64).sum()
    }
}

/// The ends of a histogram's bucket, in milliseconds.
fn bounds_ms(bucket: usize) -> (f64, f64) {
    let last = bucket + 1 == HANDSHAKE_BUCKETS;
    let upper = if last { LAST_BUCKET_MS } else { f64::powi(2.0, bucket as i32) };
    (if bucket == 0 { 0.0 } else { upper / 2.0 }, upper)
}

/// The last `MAX_WINDOW` seconds, those in which something was counted.
#[derive(Debug, Default)]
pub struct Window {
    seconds: VecDeque<(i64, Counts)>,
}

impl Window {
    /// Counts in a second; seconds come in order.
    pub fn add(&mut self, second: i64, counts: &Counts) {
        match self.seconds.back_mut() {
            Some((last, sum)) if *last >= second => *sum = sum.plus(counts),
            _ => self.seconds.push_back((second, *counts)),
        }
        while self.seconds.front().is_some_and(|(first, _)| *first <= second - i64::from(MAX_WINDOW)) {
            self.seconds.pop_front();
        }
    }

    /// Takes back what was added in a second, if it is remembered.
    pub fn take_back(&mut self, second: i64, counts: &Counts) {
        if let Ok(place) = self.seconds.binary_search_by_key(&second, |(second, _)| *second) {
            self.seconds[place].1 = self.seconds[place].1.minus(counts);
        }
    }

    /// What was counted after `second`.
    #[must_use]
    pub fn since(&self, second: i64) -> Counts {
        let newer = self.seconds.iter().rev().take_while(|(at, _)| *at > second);
        newer.fold(Counts::default(), |sum, (_, counts)| sum.plus(counts))
    }
}
