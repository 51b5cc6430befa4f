//! The few file calls the log needs: on a disk, or in memory.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use crate::{backend::make_directory, queue::QueueError};

/// A directory without subdirectories.
pub trait Files: Send + Sync + 'static {
    /// Names of its files, in no order.
    ///
    /// # Errors
    /// The file system's, here and below.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes a file that is not there yet, or empties the one that is.
    #[expect(clippy::missing_errors_doc, reason = "the file system's, as above")]
    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>>;

    /// Opens a file that is there, to read and write.
    #[expect(clippy::missing_errors_doc, reason = "the file system's, as above")]
    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>>;

    /// Gives a file another name.
    #[expect(clippy::missing_errors_doc, reason = "the file system's, as above")]
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    #[expect(clippy::missing_errors_doc, reason = "the file system's, as above")]
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names survive the end of the operating system.
    #[expect(clippy::missing_errors_doc, reason = "the file system's, as above")]
    fn sync(&self) -> io::Result<()>;
}

/// An open file.
pub trait LogFile: Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    /// The file system's, here and below.
    fn length(&self) -> io::Result<u64>;

    /// Fills `bytes` from this position on.
    #[expect(clippy::missing_errors_doc, reason = "the file system's, as above")]
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;

    /// Writes all of `bytes` at this position: the operating system has them then.
    #[expect(clippy::missing_errors_doc, reason = "the file system's, as above")]
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Cuts it off, or lengthens it with zeros.
    #[expect(clippy::missing_errors_doc, reason = "the file system's, as above")]
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Makes what was written survive the end of the operating system.
    #[expect(clippy::missing_errors_doc, reason = "the file system's, as above")]
    fn sync(&self) -> io::Result<()>;
}

/// Everything that is in a file.
pub(super) fn content(file: &dyn LogFile) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.length()?).map_err(|_| ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; length];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// A directory on disk.
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Uses `path`, which is made where it is not there.
    ///
    /// # Errors
    /// [`QueueError::OldFormat`], when a queue of an earlier format is in it; or the file system's.
    pub fn open(path: &Path) -> Result<Self, QueueError> {
        // What fjall, over which the queue used to be, keeps its tables in.
        if path.join("keyspaces").exists() {
            return Err(QueueError::OldFormat { directory: path.display().to_string() });
        }
        make_directory(path).map_err(|error| QueueError::File {
            action: "make the directory",
            file: path.display().to_string(),
            detail: error.to_string(),
        })?;
        Ok(Self { path: path.to_owned() })
    }
}

impl Files for Disk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(self.path.join(name))?;
        Ok(Arc::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(true).open(self.path.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        fs::File::open(&self.path)?.sync_all()
    }
}

impl LogFile for fs::File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(bytes, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// A directory in memory, gone with the process.
#[derive(Default)]
pub struct InMemory {
    files: Mutex<BTreeMap<String, Arc<Bytes>>>,
}

/// A file in memory.
#[derive(Default)]
struct Bytes(RwLock<Vec<u8>>);

impl InMemory {
    fn files(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Bytes>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files for InMemory {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files().keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        let file = Arc::new(Bytes::default());
        self.files().insert(name.to_owned(), file.clone());
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn LogFile>> {
        Ok(self.files().get(name).ok_or(ErrorKind::NotFound)?.clone())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files();
        let file = files.remove(from).ok_or(ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files().remove(name).map(drop).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl LogFile for Bytes {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).len() as u64)
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let from = held.get(at as usize..).ok_or(ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(from.get(..bytes.len()).ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let (at, end) = (at as usize, at as usize + bytes.len());
        if held.len() < end {
            held.resize(end, 0);
        }
        held[at..end].copy_from_slice(bytes);
        Ok(())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).resize(length as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
