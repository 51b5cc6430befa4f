//! Follows the policy file, and says once when it is refused.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::warn;

use super::{MAX_TEXT, sha256_hex};
use crate::{
    core::Core,
    follow::{Seen, next_look},
    metrics::PolicyLoad,
    release::Source,
};

/// Reads at most a byte more than a policy may have, so that a larger one is refused with its reason.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_TEXT as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// Runs until dropped. A text of the hash `offered` was offered at the start.
pub(crate) async fn watch(core: Arc<Core>, path: PathBuf, offered: String) {
    let mut seen = Seen::offered(Ok(offered));
    loop {
        let asked = next_look(&core.reload).await;
        let to_read = path.clone();
        // The disk may be slow, and others are served on this thread.
        let contents = match tokio::task::spawn_blocking(move || read(&to_read)).await {
            Ok(contents) => contents.map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        // A policy is small, so its contents are compared; a modification time may be the same for two texts written in one tick.
        let text = contents.as_deref().map(sha256_hex).map_err(ToOwned::to_owned);
        if seen.due(text.clone(), asked) {
            offer(&core, &path, contents);
        }
        let in_force = text.is_ok_and(|hash| hash == core.policy.load().hash);
        core.metrics.policy.file_refused.set(if in_force { 0.0 } else { 1.0 });
    }
}

fn offer(core: &Core, path: &Path, contents: Result<String, String>) {
    let path = path.display();
    match contents {
        Err(error) => {
            core.metrics.policy.load(PolicyLoad::Unreadable);
            warn!(%path, %error, "the policy file cannot be read; the policy in force stays");
        }
        Ok(text) => {
            if let Err(refused) = core.put_policy(&text, "", "", Source::File) {
                warn!(%path, error = %refused, "the policy file is refused; the policy in force stays");
            }
        }
    }
}
