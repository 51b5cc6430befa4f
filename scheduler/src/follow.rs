//! When a file that is followed is to be taken up: it is looked at twice a second and on demand, and what was offered once is not
//! offered, counted and complained about again.

use std::time::Duration;

use tokio::sync::Notify;

/// A changed file is taken up within 2 s: it is looked at this often, and seen alike twice before it is believed.
const POLL: Duration = Duration::from_millis(500);

/// Waits for the next look; whether somebody asked for it.
pub(crate) async fn next_look(asked: &Notify) -> bool {
    tokio::select! {
        () = asked.notified() => true,
        () = tokio::time::sleep(POLL) => false,
    }
}

/// What a file was seen to be: its contents, or what tells one version of them from another; or why it could not be seen.
pub(crate) struct Seen<T> {
    seen: Option<Result<T, String>>,
    offered: Option<Result<T, String>>,
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self { seen: None, offered: None }
    }
}

impl<T: PartialEq + Clone> Seen<T> {
    /// One that was offered already.
    pub fn offered(now: Result<T, String>) -> Self {
        Self { seen: Some(now.clone()), offered: Some(now) }
    }

    /// Whether what is seen now is to be offered. The beginning of a file may be valid by itself (a policy without its last
    /// rules), so one that is being written must be seen alike twice, unless somebody says that it is written.
    pub fn due(&mut self, now: Result<T, String>, asked: bool) -> bool {
        let settled = self.seen.as_ref() == Some(&now);
        if !settled {
            self.seen = Some(now.clone());
        }
        let due = asked || (settled && self.offered.as_ref() != Some(&now));
        if due {
            self.offered = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_being_written_is_not_offered() {
        let mut seen = Seen::default();
        let sights = ["old", "old", "half", "whole", "whole", "whole", "half", "whole", "whole"];
        let offered = sights.map(|sight| seen.due(Ok(sight), false));
        assert_eq!(offered, [false, true, false, false, true, false, false, false, false]);
        let missing = || Err("no such file".to_owned());
        assert!(!seen.due(missing(), false), "between unlink and rename");
        assert!(!seen.due(Ok("whole"), false) && !seen.due(missing(), false));
        assert!(seen.due(missing(), false), "it stays away");
        assert!(!seen.due(missing(), false), "once");
    }

    #[test]
    fn who_asks_is_answered_at_once_and_again() {
        let mut seen = Seen::default();
        assert!(seen.due(Ok("a"), true) && seen.due(Ok("a"), true));
        assert!(!seen.due(Ok("a"), false), "offered already");
        assert!(!Seen::offered(Ok("a")).due(Ok("a"), false));
    }
}
