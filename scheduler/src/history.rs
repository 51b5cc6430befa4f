//! What was put in force here, when, by whom and from where: an append-only list, on disk where there is a data directory.
//!
//! A line of JSON each, synced. The newest [`MOST`] changes are kept, or fewer if their texts have more than [`BYTES`]; the file is
//! written anew, without what is older, when it has twice as much. A last line that a crash cut off is left out.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::core::Core;

/// In the data directory.
const FILE: &str = "policy-history.jsonl";

/// Changes that are kept: years of daily ones.
const MOST: usize = 1_000;

/// Bytes of the lines that are kept: sixteen of the largest policies, thousands of usual ones.
const BYTES: usize = 16 * 1024 * 1024;

/// After a write that failed the next is tried so much later.
const AGAIN: Duration = Duration::from_secs(5);

/// A change of what is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Change {
    /// When this scheduler took it up, in milliseconds since the Unix epoch.
    #[serde(with = "berth_proto::schedule::int64")]
    pub at_ms: i64,
    /// `policy`, `stop` or `resume`.
    pub what: String,
    /// `file`, `api`, `guard`, or `carried`: by another scheduler, through gateways.
    pub from: String,
    /// Who; may be empty.
    pub by: String,
    /// What he said about it; the figures of a stop.
    pub note: String,
    /// The policy that it is about.
    #[serde(with = "berth_proto::schedule::int64")]
    pub policy_version: u64,
    /// Its hash.
    pub policy_hash: String,
    /// The rule of a stop or resume; empty: none.
    pub rule_id: String,
    /// The definition of that rule.
    #[serde(default)]
    pub rule_hash: String,
    /// What is another than before.
    pub changed: Vec<String>,
    /// The policy's text; empty for stops.
    #[serde(default)]
    pub text: String,
}

impl Change {
    /// A policy's identity is version and hash; a definition of a rule is stopped or not, and for a reason.
    fn says_the_same(&self, other: &Self) -> bool {
        let said = |change: &Self| match change.rule_id.as_str() {
            "" => (change.policy_version, change.policy_hash.clone(), String::new(), String::new()),
            _ => (0, change.rule_hash.clone(), change.what.clone(), change.note.clone()),
        };
        said(self) == said(other)
    }
}

/// The changes that are kept.
#[derive(Default)]
pub(crate) struct History {
    kept: Mutex<Kept>,
    added: Notify,
    /// So many of those that were added are on disk.
    saved: watch::Sender<u64>,
    file: Option<PathBuf>,
}

#[derive(Default)]
struct Kept {
    /// Each with its line, oldest first.
    changes: VecDeque<(Change, String)>,
    bytes: usize,
    /// How many were added since the start.
    added: u64,
    /// Lines that are not on disk yet.
    unwritten: Vec<String>,
    in_file: InFile,
}

#[derive(Clone, Copy, Default)]
struct InFile {
    lines: usize,
    bytes: usize,
}

impl History {
    /// With what the directory has.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn open(directory: Option<&Path>) -> io::Result<Self> {
        let Some(path) = directory.map(|directory| directory.join(FILE)) else { return Ok(Self::default()) };
        let mut kept = Kept::default();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut left_out = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let whole = line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice(line).ok());
            match whole {
                Some(change) => kept.push(change),
                None => left_out += 1,
            }
        }
        if left_out > 0 {
            tracing::info!(path = %path.display(), left_out, "lines of the policy history do not read; a crash cuts the last one off");
            // What a new line were appended to must be whole.
            kept.in_file = InFile { lines: usize::MAX, bytes: usize::MAX };
        } else {
            kept.in_file = InFile { lines: kept.changes.len(), bytes: bytes.len() };
        }
        Ok(Self { kept: Mutex::new(kept), file: Some(path), ..Self::default() })
    }

    /// Takes a change in, unless it is what the newest of its kind says already: a restart takes up what was in force.
    pub fn add(&self, change: Change) {
        let mut kept = self.lock();
        let newest =
            kept.changes.iter().rev().map(|(known, _)| known).find(|known| known.rule_id == change.rule_id);
        if newest.is_some_and(|known| known.says_the_same(&change)) {
            return;
        }
        kept.push(change);
        if self.file.is_some() {
            let line = kept.changes.back().map(|(_, line)| line.clone());
            kept.unwritten.extend(line);
            kept.added += 1;
            self.added.notify_one();
        }
    }

    /// Whether it is kept on disk, and not only in memory.
    pub fn on_disk(&self) -> bool {
        self.file.is_some()
    }

    /// Returns when everything that was added until now is on disk, if it is kept there.
    pub async fn saved(&self) {
        let added = self.lock().added;
        // It is not closed: this is its sender.
        let _ = self.saved.subscribe().wait_for(|saved| *saved >= added).await;
    }

    /// All that is kept, the newest first, without the texts.
    pub fn list(&self) -> Vec<Change> {
        let kept = self.lock();
        let brief = |(change, _): &(Change, String)| Change { text: String::new(), ..change.clone() };
        kept.changes.iter().rev().map(brief).collect()
    }

    /// The text of a version, if it was in force here; without a version, of the policy before the one of `current`.
    pub fn text(&self, version: Option<u64>, current: u64) -> Option<(u64, String)> {
        let kept = self.lock();
        let mut policies = kept.changes.iter().rev().map(|(change, _)| change).filter(|c| !c.text.is_empty());
        let found = policies.find(|change| match version {
            Some(version) => change.policy_version == version,
            None => change.policy_version < current,
        });
        found.map(|change| (change.policy_version, change.text.clone()))
    }

    /// What is to be written, whether in place of everything that is there, and how many were added by then.
    fn take(&self) -> (Vec<String>, bool, u64) {
        let mut kept = self.lock();
        let waiting = std::mem::take(&mut kept.unwritten);
        let over = kept.in_file.lines >= 2 * MOST || kept.in_file.bytes >= 2 * BYTES;
        let lines: Vec<_> =
            if over { kept.changes.iter().map(|(_, line)| line.clone()).collect() } else { waiting };
        let before = if over { InFile::default() } else { kept.in_file };
        let bytes = lines.iter().map(String::len).sum::<usize>();
        kept.in_file = InFile { lines: before.lines + lines.len(), bytes: before.bytes + bytes };
        (lines, over, kept.added)
    }

    /// What was taken was not written: all of it comes with the next.
    fn give_back(&self) {
        self.lock().in_file = InFile { lines: usize::MAX, bytes: usize::MAX };
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn push(&mut self, change: Change) {
        let line = serde_json::to_string(&change).expect("strings and numbers") + "\n";
        self.bytes += line.len();
        self.changes.push_back((change, line));
        while self.changes.len() > MOST || (self.bytes > BYTES && self.changes.len() > 1) {
            if let Some((_, line)) = self.changes.pop_front() {
                self.bytes -= line.len();
            }
        }
    }
}

/// Writes what is added until dropped.
pub(crate) async fn keep(core: Arc<Core>) {
    let Some(path) = core.history.file.clone() else { return };
    let mut failing = false;
    loop {
        let (lines, anew, added) = core.history.take();
        if !lines.is_empty() || anew {
            let to = path.clone();
            let written = tokio::task::spawn_blocking(move || write(&to, &lines, anew)).await;
            match written.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(()) => failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(path = %path.display(), %error, "the policy history cannot be written; it is kept in memory");
                    }
                    core.history.give_back();
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
        }
        core.history.saved.send_replace(added);
        core.history.added.notified().await;
    }
}

fn write(path: &Path, lines: &[String], anew: bool) -> io::Result<()> {
    let unfinished = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    let mut file = if anew {
        options.write(true).truncate(true).open(&unfinished)?
    } else {
        options.append(true).open(path)?
    };
    file.write_all(lines.concat().as_bytes())?;
    file.sync_all()?;
    if anew {
        fs::rename(&unfinished, path)?;
    }
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(version: u64, text: &str) -> Change {
        Change {
            at_ms: 5,
            what: "policy".to_owned(),
            from: "api".to_owned(),
            by: "alice".to_owned(),
            note: "a \"note\"\nof two lines".to_owned(),
            policy_version: version,
            policy_hash: "h".to_owned(),
            rule_id: String::new(),
            rule_hash: String::new(),
            changed: vec!["rule a".to_owned()],
            text: text.to_owned(),
        }
    }

    fn write_out(history: &History) {
        let (lines, anew, _) = history.take();
        write(history.file.as_deref().expect("it has one"), &lines, anew).expect("written");
    }

    #[test]
    fn what_was_written_is_read_and_a_torn_tail_is_left_out() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let history = History::open(Some(directory.path())).expect("nothing there yet");
        (1..4).for_each(|version| history.add(change(version, "text")));
        write_out(&history);
        history.add(change(4, "more"));
        write_out(&history);
        let path = directory.path().join(FILE);
        let whole = fs::read(&path).expect("written");
        for cut in [1, 2, 50] {
            fs::write(&path, &whole[..whole.len() - cut]).expect("written");
            let again = History::open(Some(directory.path())).expect("reads");
            let versions: Vec<_> = again.list().iter().map(|change| change.policy_version).collect();
            assert_eq!(versions, [3, 2, 1], "{cut} bytes are missing");
            again.add(change(5, "later"));
            write_out(&again);
            let versions: Vec<_> = History::open(Some(directory.path()))
                .expect("reads")
                .list()
                .iter()
                .map(|c| c.policy_version)
                .collect();
            assert_eq!(versions, [5, 3, 2, 1], "nothing was appended to half a line");
        }
        assert_eq!(history.list()[0], Change { text: String::new(), ..change(4, "more") });
    }

    #[test]
    fn versions_are_found() {
        let history = History::default();
        (1..4).for_each(|version| history.add(change(version, &format!("text {version}"))));
        let stop = || Change { what: "stop".to_owned(), rule_id: "a".to_owned(), ..change(3, "") };
        [stop(), stop(), change(3, "text 3")].into_iter().for_each(|change| history.add(change));
        assert_eq!(history.list().len(), 4, "what was known already is not added");
        history.add(Change { what: "resume".to_owned(), ..stop() });
        history.add(stop());
        assert_eq!(history.list().len(), 6);
        history.add(Change { rule_hash: "another definition".to_owned(), ..stop() });
        assert_eq!(history.list().len(), 7, "stopped for the same reason");
        assert_eq!(history.text(Some(1), 3), Some((1, "text 1".to_owned())));
        assert_eq!(history.text(None, 3), Some((2, "text 2".to_owned())), "the one before");
        assert_eq!((history.text(Some(9), 3), history.text(None, 1)), (None, None));
    }

    #[test]
    fn only_so_much_is_kept() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let history = History::open(Some(directory.path())).expect("nothing there yet");
        for version in 0..2 * MOST as u64 + 5 {
            history.add(change(version, "t"));
        }
        write_out(&history);
        assert_eq!(history.list().len(), MOST);
        history.add(change(9_999, "t"));
        write_out(&history);
        let lines = fs::read_to_string(directory.path().join(FILE)).expect("written").lines().count();
        assert_eq!(lines, MOST, "written anew without what is older");
        let large = "x".repeat(1024 * 1024);
        (0..40).for_each(|version| history.add(change(version, &large)));
        assert!(history.list().len() < 17);
    }
}
