//! Waiting for a condition, always with a deadline: no test sleeps a fixed time and hopes.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use crate::bail;

/// Long enough for the slowest honest step on a busy two-core machine; a test that needs it has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);

/// Awaits `future` for at most [`DEADLINE`].
///
/// # Errors
/// When the deadline passes, naming `what`.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> anyhow::Result<T> {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(done) => Ok(done),
        Err(_) => bail!("{what}: not within {DEADLINE:?}"),
    }
}

/// Asks `look` until it answers `Some`, for at most [`DEADLINE`].
///
/// # Errors
/// When the deadline passes, naming `what`; an error of `look` itself at once.
pub async fn until<T, F>(what: &str, look: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    until_within(what, DEADLINE, look).await
}

/// [`until`] with a deadline of its own.
///
/// # Errors
/// As [`until`].
pub async fn until_within<T, F>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let start = Instant::now();
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if start.elapsed() > deadline {
            bail!("{what}: not within {deadline:?}");
        }
        tokio::time::sleep(POLL).await;
    }
}
