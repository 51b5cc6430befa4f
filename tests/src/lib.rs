//! End-to-end harness: starts the real binary as a child process, speaks to it as an outsider would, causes faults, and
//! checks what clients saw. The behaviours themselves are in `tests/road/`; what needs no server is in `tests/house/`.
//!
//! The client here ([`raw`], [`device`]) is written from PROTOCOL.md and does not use `berth-client`: a fault that the SDK
//! would paper over must show.

pub mod crew;
pub mod ctl;
pub mod device;
pub mod group_load;
pub mod history;
pub mod hostile;
pub mod http;
pub mod load;
pub mod log;
pub mod metrics;
pub mod mmdb;
pub mod powercut;
pub mod proxy;
pub mod raw;
pub mod schema;
pub mod server;
pub mod tokens;
pub mod transcript;
pub mod wait;

use std::{
    fs::OpenOptions,
    io::Write,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

/// What every test returns: an error fails it.
pub type TestResult = anyhow::Result<()>;

/// `anyhow::bail!` that says at once what failed, and where. A test's error is told when its servers are gone, and then not at
/// all if their logs fail the test as well.
#[macro_export]
macro_rules! bail {
    ($($why:tt)*) => {
        return Err($crate::told(anyhow::anyhow!($($why)*), file!(), line!()))
    };
}

/// `anyhow::ensure!` that says at once what failed, and where: see [`bail!`].
#[macro_export]
macro_rules! ensure {
    ($condition:expr $(,)?) => {
        if !$condition {
            $crate::bail!("not so: {}", stringify!($condition));
        }
    };
    ($condition:expr, $($why:tt)*) => {
        if !$condition {
            $crate::bail!($($why)*);
        }
    };
}

/// For the macros: tells an error that a test is about to return.
#[doc(hidden)]
#[must_use]
pub fn told(error: anyhow::Error, file: &str, line: u32) -> anyhow::Error {
    eprintln!("{file}:{line}: {error:#}");
    error
}

/// A name nobody used before in this process, so that tests can share a server.
#[must_use]
pub fn fresh(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Prints a measured figure, and adds it to the file that `BERTH_TEST_FIGURES` names: `tests/run` shows that at its end.
///
/// # Panics
/// When that file cannot be written.
pub fn figure(line: &str) {
    println!("{line}");
    if let Some(path) = std::env::var_os("BERTH_TEST_FIGURES") {
        let mut file =
            OpenOptions::new().create(true).append(true).open(path).expect("tests/run made its folder");
        file.write_all(format!("{line}\n").as_bytes()).expect("the disk has room for a line");
    }
}

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the tests crate is a folder of the repository").to_owned()
}
