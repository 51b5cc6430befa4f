//! What the operating system says of this process, under the names every Prometheus client library uses.

use std::fmt::Write;

/// A tick of the CPU times in /proc, in seconds: USER_HZ is 100 in every Linux ABI.
const TICK: f64 = 0.01;

/// Process metrics in Prometheus' text format; what cannot be read is left out.
pub fn render() -> String {
    let mut text = String::new();
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(
        text,
        "# HELP berth_build_info Always 1; which build runs here.\n# TYPE berth_build_info gauge\n\
         berth_build_info{{version=\"{version}\"}} 1"
    );
    let mut add = |kind: &str, name: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
    };
    add("gauge", "process_resident_memory_bytes", "Resident memory size in bytes.", resident_bytes());
    add("gauge", "process_open_fds", "Number of open file descriptors.", open_descriptors());
    add("gauge", "process_max_fds", "Maximum number of open file descriptors.", max_descriptors());
    add(
        "counter",
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds.",
        cpu_seconds(),
    );
    add(
        "gauge",
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        start_seconds(),
    );
    text
}

fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

fn open_descriptors() -> Option<f64> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?.count();
    u32::try_from(entries).ok().map(f64::from)
}

/// The soft limit.
fn max_descriptors() -> Option<f64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn cpu_seconds() -> Option<f64> {
    let ticks = |number| -> Option<f64> { stat(number)?.parse().ok() };
    Some((ticks(14)? + ticks(15)?) * TICK)
}

fn start_seconds() -> Option<f64> {
    let system = std::fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let ticks: f64 = stat(22)?.parse().ok()?;
    Some(boot + ticks * TICK)
}

/// A field of /proc/self/stat by its number in proc(5), from 3 on: those after the program's name, which may contain
/// anything but ends at the last bracket.
fn stat(number: usize) -> Option<String> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number.checked_sub(3)?).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_descriptors_and_a_start() {
        assert!(resident_bytes().is_some_and(|bytes| bytes > 100_000.0));
        assert!(open_descriptors().is_some_and(|open| open >= 3.0));
        assert!(max_descriptors().is_some_and(|most| most >= 64.0));
        assert!(cpu_seconds().is_some_and(|seconds| seconds >= 0.0));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("past 1970");
        let age = now.as_secs_f64() - start_seconds().expect("is told");
        assert!((-1.0..86_400.0).contains(&age), "{age}");
        for name in ["berth_build_info{version=", "process_open_fds ", "process_cpu_seconds_total "] {
            assert!(render().contains(&format!("\n{name}")), "{name}");
        }
    }
}
