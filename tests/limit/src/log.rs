//! A bare group-commit log: what waits is written together, synced once, and answered.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use mio::Waker;

/// Batches on their way to the disk or back: one is written while the next one fills.
const BATCHES: usize = 2;

/// Records of one batch: their bytes, and who waits for each.
#[derive(Debug)]
pub struct Batch<T> {
    bytes: Vec<u8>,
    waiting: Vec<T>,
}

impl<T> Default for Batch<T> {
    fn default() -> Self {
        Self { bytes: Vec::new(), waiting: Vec::new() }
    }
}

/// The log; its thread ends when it is dropped.
#[derive(Debug)]
pub struct Log<T> {
    filling: Batch<T>,
    to_disk: SyncSender<Batch<T>>,
    synced: Receiver<Batch<T>>,
    on_the_way: usize,
}

impl<T: Send + 'static> Log<T> {
    /// Begins this file anew; `waker` is called when a batch is synced.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, waker: Arc<Waker>) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).write(true).truncate(true).open(path)?;
        file.sync_all()?;
        let (to_disk, batches) = sync_channel(BATCHES);
        let (done, synced) = sync_channel(BATCHES);
        let writer = std::thread::Builder::new().name("limit-log".to_owned());
        // It ends with the channel; a limit runs until it is killed.
        writer.spawn(move || write_all(file, &batches, &done, &waker))?;
        Ok(Self { filling: Batch::default(), to_disk, synced, on_the_way: 0 })
    }

    /// Appends a record for somebody who waits.
    pub fn append(&mut self, record: &[u8], who: T) {
        self.filling.bytes.extend_from_slice(&u32::try_from(record.len()).unwrap_or(0).to_be_bytes());
        self.filling.bytes.extend_from_slice(record);
        self.filling.waiting.push(who);
    }

    /// Hands over what was appended, once the disk is free; gives who waits no longer.
    pub fn turn(&mut self) -> Vec<T> {
        let mut done = Vec::new();
        while let Ok(batch) = self.synced.try_recv() {
            self.on_the_way -= 1;
            done.extend(batch.waiting);
        }
        if self.on_the_way == 0 && !self.filling.waiting.is_empty() {
            self.on_the_way += 1;
            // The thread only ends after this end of the channel.
            let _ = self.to_disk.send(std::mem::take(&mut self.filling));
        }
        done
    }
}

fn write_all<T>(mut file: File, batches: &Receiver<Batch<T>>, done: &SyncSender<Batch<T>>, waker: &Waker) {
    for batch in batches {
        // A limit that cannot sync measures nothing: it ends here, and every send stays unanswered.
        if let Err(error) = file.write_all(&batch.bytes).and_then(|()| file.sync_data()) {
            eprintln!("berth-limit: the log: {error}");
            return;
        }
        if done.send(batch).is_err() || waker.wake().is_err() {
            return;
        }
    }
}
