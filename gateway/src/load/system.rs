//! What the operating system says of this process: CPU time, memory, and how much of both there is.
#![expect(unsafe_code, reason = "getrusage and sysconf have no safe wrapper among our dependencies")]

use std::{fs, path::PathBuf, thread};

/// Read once: what a container is given rarely changes while it runs.
pub(crate) struct System {
    page_bytes: u64,
    /// Cores that this process may use, by affinity and by the container's quota.
    pub(crate) cores: u64,
    /// What the container or the machine has; 0: not known.
    pub(crate) memory_bytes: u64,
}

impl System {
    pub(crate) fn new() -> Self {
        // SAFETY: sysconf takes a number and returns one.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        Self {
            page_bytes: u64::try_from(page).unwrap_or(0),
            cores: thread::available_parallelism().map_or(0, |cores| cores.get() as u64),
            memory_bytes: memory_limit(),
        }
    }

    /// CPU time of every thread since the start, in microseconds. 0: not known.
    pub(crate) fn cpu_us(&self) -> u64 {
        // SAFETY: all-zero bytes are a valid rusage, and `usage` outlives the call, which only writes to it.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            if libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) != 0 {
                return 0;
            }
            usage
        };
        let micros = |time: libc::timeval| {
            u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_usec).unwrap_or(0)
        };
        micros(usage.ru_utime) + micros(usage.ru_stime)
    }

    /// Resident memory. 0: not known.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
        pages.unwrap_or(0) * self.page_bytes
    }
}

/// The smallest of the machine's memory and the limits of this process's control group.
fn memory_limit() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = limit_files(&groups)
        .into_iter()
        .filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    total_memory(&meminfo).into_iter().chain(limits).min().unwrap_or(0)
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1_024)
}

/// Where the limits of a process in these groups are, in both versions of control groups. Inside a container the path may
/// be the outside's, so the root of what is mounted counts too. `max`, which is no number, is no limit.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        files.push(PathBuf::from(format!("{root}{path}")).join(file));
        files.push(PathBuf::from(root).join(file));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_measured() {
        let system = System::new();
        assert!(system.cores >= 1);
        let before = system.cpu_us();
        let mut sum = 0u64;
        while system.cpu_us() < before + 10_000 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(1));
        }
        assert!(system.resident_bytes() > 100_000, "a test process has more than 100 KB");
        assert!(system.memory_bytes > system.resident_bytes());
    }

    #[test]
    fn limits_of_both_kinds_of_control_groups_are_found() {
        let v1 = "8:pids:/\n4:memory:/a/b\n1:cpu,cpuacct:/\n0::/";
        let shown: Vec<_> = limit_files(v1).iter().map(|path| path.display().to_string()).collect();
        assert_eq!(
            shown,
            [
                "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory.max",
                "/sys/fs/cgroup/memory.max",
            ]
        );
        assert_eq!(
            limit_files("0::/user.slice")[0].display().to_string(),
            "/sys/fs/cgroup/user.slice/memory.max"
        );
        assert_eq!(total_memory("MemTotal:       16384 kB\nMemFree: 3 kB"), Some(16_384 * 1_024));
        assert_eq!(total_memory("nothing"), None);
    }
}
