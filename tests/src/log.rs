//! The server's stderr: kept for the reader of a failed test, and searched for what nobody expected.

use std::{
    io::{BufRead, BufReader, Read},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use serde_json::Value;

/// Lines kept of one process: far more than any test writes at INFO.
const KEPT: usize = 100_000;

/// Everything one process wrote to stderr so far.
#[derive(Debug, Clone, Default)]
pub struct Log {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Log {
    /// Reads `stderr` to its end in a thread of its own, so that the child never blocks on a full pipe.
    pub fn collect(stderr: impl Read + Send + 'static) -> (Self, JoinHandle<()>) {
        let log = Self::default();
        let lines = Arc::clone(&log.lines);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut lines = lines.lock().expect("the reader does not panic");
                if lines.len() < KEPT {
                    lines.push(line);
                }
            }
        });
        (log, reader)
    }

    /// Lines that are there already.
    pub fn of(lines: impl IntoIterator<Item = String>) -> Self {
        Self { lines: Arc::new(Mutex::new(lines.into_iter().collect())) }
    }

    /// All lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("the reader does not panic").clone()
    }

    /// Whether some line contains `text`.
    #[must_use]
    pub fn contains(&self, text: &str) -> bool {
        self.lines.lock().expect("the reader does not panic").iter().any(|line| line.contains(text))
    }

    /// Warnings, errors and lines that are no log at all (a panic), but for those that contain one of `expected`.
    #[must_use]
    pub fn unexpected(&self, expected: &[String]) -> Vec<String> {
        let calm = |line: &String| expected.iter().any(|text| line.contains(text)) || !alarming(line);
        self.lines().into_iter().filter(|line| !calm(line)).collect()
    }
}

fn alarming(line: &str) -> bool {
    if line.trim().is_empty() {
        return false;
    }
    match serde_json::from_str::<Value>(line) {
        Ok(entry) => !matches!(entry["level"].as_str(), Some("INFO" | "DEBUG" | "TRACE")),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_errors_and_panics_are_unexpected() {
        let text = "{\"level\":\"INFO\",\"fields\":{\"message\":\"started\"}}\n\
            {\"level\":\"WARN\",\"fields\":{\"message\":\"policy refused\"}}\n\
            {\"level\":\"ERROR\",\"fields\":{\"message\":\"disk\"}}\n\
            thread 'x' panicked at y\n";
        let (log, reader) = Log::collect(std::io::Cursor::new(text));
        reader.join().expect("reads to the end");
        assert_eq!(log.unexpected(&[]).len(), 3);
        assert_eq!(log.unexpected(&["policy refused".to_owned()]).len(), 2);
        assert!(log.contains("started"));
    }
}
