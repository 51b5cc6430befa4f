//! The last schedule, kept between runs: with it a client starts and comes back while no scheduler can be reached.

use std::{
    io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use berth_proto::schedule::{HeartbeatParameters, ReconnectParameters, ScheduleEndpoint, int64};
use serde::{Deserialize, Serialize};

use crate::file;

/// What a client needs of a scheduler's answer, or of a redirect, to connect without asking again.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredSchedule {
    /// Whose ticket it is. Nobody else's client uses it.
    pub user_id: String,
    /// Of which device.
    pub device_id: String,
    /// Where to connect, best first.
    pub endpoints: Vec<ScheduleEndpoint>,
    /// What to say in hello: a secret, good for whoever has it.
    pub ticket: String,
    /// The ticket's end, on the servers' clock.
    #[serde(with = "int64")]
    pub ticket_expires_at_ms: i64,
    /// What to add to the servers' clock to get this device's.
    #[serde(with = "int64")]
    pub offset_ms: i64,
    /// How to come back after a loss.
    pub reconnect: ReconnectParameters,
    /// The heartbeats expected.
    pub heartbeat: HeartbeatParameters,
}

impl std::fmt::Debug for StoredSchedule {
    /// Without the ticket: no log is to have it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredSchedule")
            .field("user_id", &self.user_id)
            .field("device_id", &self.device_id)
            .field("endpoints", &self.endpoints)
            .field("ticket_expires_at_ms", &self.ticket_expires_at_ms)
            .finish_non_exhaustive()
    }
}

/// Keeps one device's last schedule. Called on tokio's blocking pool, never twice at the same time by one client.
pub trait ScheduleStore: Send + Sync {
    /// The schedule stored last, if any.
    ///
    /// # Errors
    /// When there is one but it cannot be read; the client warns, and begins with a scheduler.
    fn load(&self) -> io::Result<Option<StoredSchedule>>;

    /// Stores the schedule durably, in place of the one before; `None`: there is none that is of use.
    ///
    /// # Errors
    /// When it could not be stored; the client warns, and stores the next one.
    fn save(&self, schedule: Option<&StoredSchedule>) -> io::Result<()>;
}

/// A schedule that lives as long as this value: a second client may go on with it.
#[derive(Debug, Default)]
pub struct MemorySchedule {
    schedule: Mutex<Option<StoredSchedule>>,
}

impl MemorySchedule {
    /// No schedule yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl ScheduleStore for MemorySchedule {
    fn load(&self) -> io::Result<Option<StoredSchedule>> {
        Ok(self.schedule.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn save(&self, schedule: Option<&StoredSchedule>) -> io::Result<()> {
        *self.schedule.lock().unwrap_or_else(PoisonError::into_inner) = schedule.cloned();
        Ok(())
    }
}

/// A schedule in a file of its own, replaced atomically, which only its owner may read (mode 0600): it has a ticket in it. One
/// client at a time may use a file.
#[derive(Debug)]
pub struct FileSchedule {
    path: PathBuf,
}

impl FileSchedule {
    /// A schedule in the file `path`, which need not exist; its folder must.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl ScheduleStore for FileSchedule {
    fn load(&self) -> io::Result<Option<StoredSchedule>> {
        file::read(&self.path, "schedule", "ask a scheduler")
    }

    fn save(&self, schedule: Option<&StoredSchedule>) -> io::Result<()> {
        match schedule {
            Some(schedule) => file::replace(&self.path, schedule),
            None => file::remove(&self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    pub(crate) fn schedule(ticket: &str) -> StoredSchedule {
        StoredSchedule {
            user_id: "alice".into(),
            device_id: "phone".into(),
            endpoints: vec![ScheduleEndpoint { url: "tcp://gw-1:1".into(), ..Default::default() }],
            ticket: ticket.into(),
            ticket_expires_at_ms: i64::MAX,
            offset_ms: -7,
            reconnect: ReconnectParameters::default(),
            heartbeat: HeartbeatParameters::default(),
        }
    }

    #[test]
    fn a_file_keeps_the_last_schedule_for_its_owner_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("schedule");
        let store = FileSchedule::new(&path);
        assert_eq!(store.load().expect("reads"), None);
        store.save(None).expect("nothing to remove");
        // Left by an end in the middle of a save, and readable by everybody.
        fs::write(folder.path().join("schedule.new"), b"{").expect("writes");
        for ticket in ["one", "two"] {
            store.save(Some(&schedule(ticket))).expect("saves");
            assert_eq!(store.load().expect("reads"), Some(schedule(ticket)));
        }
        #[cfg(unix)]
        {
            let rights = fs::metadata(&path).expect("is there").permissions();
            assert_eq!(std::os::unix::fs::PermissionsExt::mode(&rights) & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 1, "nothing is left beside it");
        store.save(None).expect("removes");
        assert_eq!(store.load().expect("reads"), None);
    }

    #[test]
    fn a_broken_file_is_an_error_that_names_it_and_not_its_content() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("schedule");
        fs::write(&path, b"{\"ticket\":\"secret\"}").expect("writes");
        let error = FileSchedule::new(&path).load().expect_err("is no schedule").to_string();
        assert!(error.contains(path.to_str().expect("UTF-8")) && !error.contains("secret"), "{error}");
    }

    #[test]
    fn no_log_has_the_ticket() {
        assert!(!format!("{:?}", schedule("secret")).contains("secret"));
    }
}
