//! What the operating system says of this process, under the names every Prometheus client library uses.

use std::fmt::Write;

/// Resident memory and open descriptors in Prometheus' text format; what cannot be read is left out.
pub fn render() -> String {
    let mut text = String::new();
    if let Some(bytes) = resident_bytes() {
        gauge(&mut text, "process_resident_memory_bytes", "Resident memory size in bytes.", bytes);
    }
    if let Some(open) = open_descriptors() {
        gauge(&mut text, "process_open_fds", "Number of open file descriptors.", open);
    }
    text
}

fn gauge(text: &mut String, name: &str, help: &str, value: u64) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

fn open_descriptors() -> Option<u64> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(entries).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_descriptors() {
        assert!(resident_bytes().is_some_and(|bytes| bytes > 100_000));
        assert!(open_descriptors().is_some_and(|open| open >= 3));
        assert!(render().contains("\nprocess_open_fds "));
    }
}
