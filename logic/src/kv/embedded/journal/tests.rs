//! A real database whose journal loses pages that were not synced.

use std::os::unix::fs::FileExt;

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;
use crate::kv::{Batch, Durability, Embedded, Kv, Space, Tail};

/// What a kernel writes to a disk by itself.
const PAGE: u64 = 4_096;

const BATCHES: u64 = 12;

fn open(path: &Path, tail: Tail) -> Result<Embedded, crate::kv::KvError> {
    Embedded::open(path, &["rows"], 1 << 20, tail)
}

fn key(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// Writes batches of one or two rows of up to 32 KiB, syncs after the first few, and returns where the journal ended then.
fn write(path: &Path, random: &mut SmallRng, synced: u64) -> u64 {
    let database = open(path, Tail::Whole).expect("a new one");
    let mut length = 0;
    for number in 0..BATCHES {
        let mut batch = Batch::default();
        batch.put(Space(0), key(number), vec![7; random.random_range(0..=32 * 1_024)]);
        if random.random() {
            batch.put(Space(0), key(1_000 + number), vec![8; 100]);
        }
        let durability = if number < synced { Durability::Synced } else { Durability::Buffered };
        database.write(batch, durability).expect("written");
        if number + 1 == synced {
            length = written(path);
        }
    }
    length
}

/// Up to where a journal has something: behind it are the zeros that it was made with.
fn written(path: &Path) -> u64 {
    let bytes = fs::read(newest(path).expect("readable").expect("a journal")).expect("readable");
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// Which batches are there: the first so many, or the test fails.
fn batches(database: &Embedded) -> u64 {
    let view = database.view();
    let has = |number: &u64| view.get(Space(0), &key(*number)).expect("reads").is_some();
    let count = (0..BATCHES).take_while(has).count() as u64;
    assert!(!(count..BATCHES).any(|number| has(&number)), "a later one without an earlier");
    count
}

#[test]
fn whatever_pages_are_lost_what_was_synced_is_there_and_of_the_rest_a_beginning() {
    let mut cut_short = 0;
    for seed in 0..16 {
        let mut random = SmallRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let synced = random.random_range(1..BATCHES);
        let durable = write(folder.path(), &mut random, synced);
        let journal = newest(folder.path()).expect("readable").expect("a journal");
        let file = OpenOptions::new().write(true).open(&journal).expect("writable");
        let pages = durable.div_ceil(PAGE)..written(folder.path()).div_ceil(PAGE);
        for page in pages.filter(|_| random.random_ratio(1, 8)) {
            file.write_all_at(&[0; PAGE as usize], page * PAGE).expect("writable");
        }
        cut_short += u32::from(open(folder.path(), Tail::Whole).is_err());
        let database = open(folder.path(), Tail::Torn).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let there = batches(&database);
        assert!(there >= synced, "seed {seed}: {there} of {synced} synced");
        // It goes on: what is written now is there after another start.
        let mut batch = Batch::default();
        batch.put(Space(0), key(2_000), vec![9]);
        database.write(batch, Durability::Synced).expect("written");
        drop(database);
        let database = open(folder.path(), Tail::Whole).expect("opens");
        assert_eq!(batches(&database), there, "seed {seed}");
        assert!(database.view().get(Space(0), &key(2_000)).expect("reads").is_some(), "seed {seed}");
    }
    assert!(cut_short > 2, "fjall itself opened all but {cut_short}: nothing was tested");
}

#[test]
fn damage_that_no_power_cut_explains_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut batch = Batch::default();
    batch.put(Space(0), key(0), vec![7; 32 * 1_024]);
    open(folder.path(), Tail::Whole).expect("new").write(batch, Durability::Synced).expect("written");
    let journal = newest(folder.path()).expect("readable").expect("a journal");
    let file = OpenOptions::new().write(true).open(&journal).expect("writable");
    file.write_all_at(&[0; PAGE as usize], 2 * PAGE).expect("writable");
    let before = fs::read(&journal).expect("readable");
    let error = open(folder.path(), Tail::Whole).err().expect("refused").to_string();
    assert!(error.contains("ChecksumMismatch"), "{error}");
    assert_eq!(fs::read(&journal).expect("readable"), before, "and nothing is cut");
}

#[test]
fn what_is_no_journal_is_left_alone() {
    for bytes in [&b""[..], b"\x01", b"\x00\x00\x00", b"something else entirely", &[1; 100]] {
        assert_eq!(whole_batches(bytes).expect("read"), None, "{bytes:?}");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    assert_eq!(cut_torn_tail(folder.path()).expect("an empty folder"), None);
}
