//! Where a device stands in its user's inbox, and where that is kept between runs.

use std::{
    io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use berth_proto::schedule::int64;
use serde::{Deserialize, Serialize};

use crate::file;

/// Everything up to `seq` has been taken by the application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cursor {
    /// Whose inbox.
    pub user_id: String,
    /// The inbox's epoch; rows of another epoch are other rows.
    #[serde(with = "int64")]
    pub inbox_epoch: u64,
    /// The last row taken; 0: none.
    #[serde(with = "int64")]
    pub seq: u64,
}

/// Keeps one device's cursor. Called on tokio's blocking pool, never twice at the same time by one client.
pub trait CursorStore: Send + Sync {
    /// The cursor stored last, if any.
    ///
    /// # Errors
    /// When there is one but it cannot be read.
    fn load(&self) -> io::Result<Option<Cursor>>;

    /// Stores the cursor durably. The client calls it for the newest cursor, not for each.
    ///
    /// # Errors
    /// When it could not be stored; the client warns and tries again.
    fn save(&self, cursor: &Cursor) -> io::Result<()>;
}

/// A cursor that lives as long as this value: a second client may go on with it.
#[derive(Debug, Default)]
pub struct MemoryCursor {
    cursor: Mutex<Option<Cursor>>,
}

impl MemoryCursor {
    /// A cursor at the beginning.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl CursorStore for MemoryCursor {
    fn load(&self) -> io::Result<Option<Cursor>> {
        Ok(self.cursor.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn save(&self, cursor: &Cursor) -> io::Result<()> {
        *self.cursor.lock().unwrap_or_else(PoisonError::into_inner) = Some(cursor.clone());
        Ok(())
    }
}

/// A cursor in a file of its own, replaced atomically: written beside it, synced, renamed, and the folder synced. One
/// client at a time may use a file.
#[derive(Debug)]
pub struct FileCursor {
    path: PathBuf,
}

impl FileCursor {
    /// A cursor in the file `path`, which need not exist; its folder must.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl CursorStore for FileCursor {
    fn load(&self) -> io::Result<Option<Cursor>> {
        file::read(&self.path, "cursor", "resync")
    }

    fn save(&self, cursor: &Cursor) -> io::Result<()> {
        file::replace(&self.path, cursor)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn cursor(seq: u64) -> Cursor {
        Cursor { user_id: "alice".into(), inbox_epoch: u64::MAX, seq }
    }

    #[test]
    fn a_file_keeps_the_last_cursor() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = FileCursor::new(folder.path().join("cursor"));
        assert_eq!(store.load().expect("reads"), None);
        for seq in [1, 7, u64::MAX] {
            store.save(&cursor(seq)).expect("saves");
            assert_eq!(store.load().expect("reads"), Some(cursor(seq)));
        }
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_broken_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("cursor");
        fs::write(&path, b"{\"userId\":1}").expect("writes");
        let error = FileCursor::new(&path).load().expect_err("is no cursor");
        assert!(error.to_string().contains(path.to_str().expect("UTF-8")), "{error}");
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(FileCursor::new(folder.path().join("no/cursor")).save(&cursor(1)).is_err());
    }
}
