//! The torn tail of fjall's journal after a power cut.
//!
//! A batch in a journal is a start with the number of its items, the items, and an end with their checksum. Of what was not
//! synced a disk may have kept any pages: also the start and the end of a batch, and not the middle. fjall takes a batch that
//! was cut short for a torn tail and drops it, but one that is whole in form and wrong in its checksum for damage, and does not open. After
//! the operating system's own end both are the same: everything from the first bad batch on is unsynced, and the queue
//! has it still.
//!
//! Form: fjall 3, `src/journal/entry.rs`. What does not read as that form is left to fjall.

use std::{
    fs::{self, OpenOptions},
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::Xxh3;

/// What ends a batch, behind its checksum.
const END: &[u8; 4] = b"FJL\x03";

const START_TAG: u8 = 1;
const ITEM_TAG: u8 = 2;
const END_TAG: u8 = 3;
const CLEAR_TAG: u8 = 4;

/// A journal that was cut.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Which.
    pub journal: PathBuf,
    /// Its length now: that of its whole batches.
    pub length: u64,
    /// Whole batches that followed, and are cut off with the first that is not: their pages came to the disk by themselves.
    pub followed: u64,
}

/// Cuts the newest journal of a directory before its first batch that is whole in form and bad in content; none: it has
/// no such batch. Older journals were synced when they were closed: damage in them is damage.
pub(super) fn cut_torn_tail(directory: &Path) -> io::Result<Option<Cut>> {
    let Some(journal) = newest(directory)? else { return Ok(None) };
    let file = OpenOptions::new().read(true).write(true).open(&journal)?;
    let Some((length, followed)) = whole_batches(BufReader::new(&file))? else { return Ok(None) };
    file.set_len(length)?;
    file.sync_all()?;
    Ok(Some(Cut { journal, length, followed }))
}

fn newest(directory: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let number =
            path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse::<u64>().ok());
        newest = newest.max(number.map(|number| (number, path)));
    }
    Ok(newest.map(|(_, path)| path))
}

/// Where the batches end before the first bad one, and how many good ones follow it; none: there is no bad one up to the
/// end, or to what is no batch in form.
fn whole_batches(file: impl Read) -> io::Result<Option<(u64, u64)>> {
    let mut reader = Counted { inner: file, count: 0 };
    let mut found: Option<(u64, u64)> = None;
    loop {
        let begins = reader.count;
        match (batch(&mut reader), &mut found) {
            (Ok(true), Some((_, followed))) => *followed += 1,
            (Ok(true), None) | (Ok(false), Some(_)) => {}
            (Ok(false), None) => found = Some((begins, 0)),
            (Err(error), _)
                if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) =>
            {
                return Ok(found);
            }
            (Err(error), _) => return Err(error),
        }
    }
}

/// Reads a batch; whether its content is what was written. `InvalidData`: it is none in form.
fn batch(reader: &mut impl Read) -> io::Result<bool> {
    let no_batch = || io::Error::from(io::ErrorKind::InvalidData);
    if byte(reader)? != START_TAG {
        return Err(no_batch());
    }
    let items = u32::from_le_bytes(array(reader)?);
    let _seqno: [u8; 8] = array(reader)?;
    let (mut seen, mut checksum) = (0, Xxh3::new());
    loop {
        match byte(reader)? {
            ITEM_TAG => item(reader, &mut checksum)?,
            CLEAR_TAG => {
                let keyspace: [u8; 8] = array(reader)?;
                checksum.update(&[CLEAR_TAG]);
                checksum.update(&keyspace);
            }
            END_TAG => {
                let expected = u64::from_le_bytes(array(reader)?);
                if array(reader)? != *END {
                    return Err(no_batch());
                }
                return Ok(seen == items && checksum.digest() == expected);
            }
            _ => return Err(no_batch()),
        }
        seen = seen.saturating_add(1);
    }
}

/// Value type and compression, keyspace, the lengths of the key, of the value, and of the value as it is written; key, value.
fn item(reader: &mut impl Read, checksum: &mut Xxh3) -> io::Result<()> {
    let head: [u8; 20] = array(reader)?;
    checksum.update(&[ITEM_TAG]);
    checksum.update(&head);
    let key = u64::from(u16::from_le_bytes([head[10], head[11]]));
    let value = u64::from(u32::from_le_bytes([head[16], head[17], head[18], head[19]]));
    let (mut left, mut chunk) = (key + value, [0; 4_096]);
    while left > 0 {
        let most = usize::try_from(left).map_or(chunk.len(), |left| left.min(chunk.len()));
        reader.read_exact(&mut chunk[..most])?;
        checksum.update(&chunk[..most]);
        left -= most as u64;
    }
    Ok(())
}

fn byte(reader: &mut impl Read) -> io::Result<u8> {
    array(reader).map(|[byte]| byte)
}

fn array<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
