//! Follows the policy file: looks at it twice a second and on demand, and says once when it is refused.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tracing::{info, warn};

use super::{MAX_TEXT, Refused, Taken, sha256_hex};
use crate::{core::Core, metrics::PolicyLoad};

/// A changed file is taken up within 2 s: it is read this often, and twice before it is believed. A policy is small, so its
/// contents are compared; a modification time may be the same for two texts written in one tick.
const POLL: Duration = Duration::from_millis(500);

/// Reads at most a byte more than a policy may have, so that a larger one is refused with its reason.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_TEXT as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// Runs until dropped.
pub(crate) async fn watch(core: Arc<Core>, path: PathBuf) {
    let mut seen = Seen::default();
    loop {
        let asked = tokio::select! {
            () = core.reload.notified() => true,
            () = tokio::time::sleep(POLL) => false,
        };
        let to_read = path.clone();
        // The disk may be slow, and others are served on this thread.
        let contents = match tokio::task::spawn_blocking(move || read(&to_read)).await {
            Ok(contents) => contents.map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        seen.look(&core, &path, contents, asked);
    }
}

/// A text by its hash, or why there was none.
type Contents = Result<String, String>;

/// What the file held: one text is offered, counted and complained about once, unless somebody asks again.
#[derive(Default)]
struct Seen {
    read: Option<Contents>,
    offered: Option<Contents>,
}

impl Seen {
    /// Whether what was read now is to be offered. The beginning of a policy may be a policy (all but its last rules), so
    /// a file that is being written must be read alike twice, unless somebody says that it is written.
    fn due(&mut self, now: Contents, asked: bool) -> bool {
        let settled = self.read.as_ref() == Some(&now);
        if !settled {
            self.read = Some(now.clone());
        }
        let due = asked || (settled && self.offered.as_ref() != Some(&now));
        if due {
            self.offered = Some(now);
        }
        due
    }

    fn look(&mut self, core: &Core, path: &Path, contents: Result<String, String>, asked: bool) {
        let now = contents.as_deref().map(sha256_hex).map_err(ToOwned::to_owned);
        if !self.due(now, asked) {
            return;
        }
        let path = path.display();
        let refused = match contents {
            Err(error) => {
                core.metrics.policy.load(PolicyLoad::Unreadable);
                warn!(%path, %error, "the policy file cannot be read; the policy in force stays");
                true
            }
            Ok(text) => match core.policy.offer(&text) {
                Ok(Taken::Same) => false,
                Ok(Taken::New) => {
                    core.metrics.policy.load(PolicyLoad::Taken);
                    info!(%path, policy = %core.policy.load(), "policy taken up");
                    core.policy_changed();
                    false
                }
                Err(refused) => {
                    core.metrics.policy.load(label(&refused));
                    warn!(%path, error = %refused, "the policy file is refused; the policy in force stays");
                    true
                }
            },
        };
        core.metrics.policy.file_refused.set(if refused { 1.0 } else { 0.0 });
    }
}

fn label(refused: &Refused) -> PolicyLoad {
    match refused {
        Refused::Broken(_) => PolicyLoad::Broken,
        Refused::Older { .. } => PolicyLoad::Older,
        Refused::OtherText(_) => PolicyLoad::OtherText,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_being_written_is_not_offered() {
        let text = |text: &str| Ok(text.to_owned());
        let mut seen = Seen::default();
        let reads = ["old", "old", "half", "whole", "whole", "whole", "half", "whole", "whole"];
        let offered = reads.map(|read| seen.due(text(read), false));
        assert_eq!(offered, [false, true, false, false, true, false, false, false, false]);
        let missing = || Err("no such file".to_owned());
        assert!(!seen.due(missing(), false), "between unlink and rename");
        assert!(!seen.due(text("whole"), false) && !seen.due(missing(), false));
        assert!(seen.due(missing(), false), "it stays away");
        assert!(!seen.due(missing(), false), "once");
    }

    #[test]
    fn who_asks_is_answered_at_once_and_again() {
        let text = |text: &str| Ok(text.to_owned());
        let mut seen = Seen::default();
        assert!(seen.due(text("a"), true) && seen.due(text("a"), true));
        assert!(!seen.due(text("a"), false), "offered already");
    }
}
