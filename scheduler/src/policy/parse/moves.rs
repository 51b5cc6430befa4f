//! `[move]` of a policy's text.

use serde::Deserialize;
use toml::Spanned;

use super::{Place, PolicyError};
use crate::policy::{MoveLimits, Policy};

/// Connections a second that one gateway may be told to ask about: above, it does little else.
const MAX_MOVES: u32 = 10_000;

/// The slowest that a gateway's histogram of handshakes can tell, in milliseconds.
const SLOWEST_MS: u32 = 32_768;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMove {
    per_second: Option<Spanned<i64>>,
    handshake_p99_ms: Option<Spanned<i64>>,
    connect_failures: Option<Spanned<f64>>,
    min_handshakes: Option<Spanned<i64>>,
    lost: Option<Spanned<f64>>,
}

/// How many are asked about in a second, and when nobody is moved.
pub(super) fn moves(place: &Place<'_>, raw: RawMove) -> Result<(u32, MoveLimits), PolicyError> {
    let Policy { moves_per_second, move_limits: defaults, .. } = Policy::default();
    let whole = |raw: Option<Spanned<i64>>, name: &str, range, unless_given| {
        raw.map_or(Ok(unless_given), |raw| place.whole(&raw, &format!("move.{name}"), range))
    };
    let share = |raw, name: &str, unless_given| {
        let share = place.number(raw, &format!("move.{name}"), 0.0..=1.0)?;
        Ok(share.unwrap_or(unless_given))
    };
    let per_second = whole(raw.per_second, "per_second", 0..=MAX_MOVES, moves_per_second)?;
    let p99 = raw.handshake_p99_ms;
    let limits = MoveLimits {
        handshake_p99_ms: whole(p99, "handshake_p99_ms", 0..=SLOWEST_MS, defaults.handshake_p99_ms)?,
        connect_failures: share(raw.connect_failures, "connect_failures", defaults.connect_failures)?,
        min_handshakes: whole(raw.min_handshakes, "min_handshakes", 1..=1_000_000, defaults.min_handshakes)?,
        lost: share(raw.lost, "lost", defaults.lost)?,
    };
    Ok((per_second, limits))
}
