//! What the operating system says of this process: CPU time, memory, and how much of both there is.
#![expect(unsafe_code, reason = "getrusage and sysconf have no safe wrapper among our dependencies")]

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

/// Read once: what a container is given rarely changes while it runs.
pub(crate) struct System {
    page_bytes: u64,
    /// CPU time that this process may use, by affinity and by the container's quota; 0: not known.
    pub(crate) cpu_millis_per_second: u64,
    /// What the container or the machine has; 0: not known.
    pub(crate) memory_bytes: u64,
}

impl System {
    pub(crate) fn new() -> Self {
        // SAFETY: sysconf takes a number and returns one.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        Self {
            page_bytes: u64::try_from(page).unwrap_or(0),
            cpu_millis_per_second: cpu_limit(),
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

/// The smallest of the cores allowed and the quotas of this process's control group. The standard library's count has the
/// quota in whole cores: half a core would be one, and would never look used.
fn cpu_limit() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let cores = allowed_cores(&status)
        .or_else(|| thread::available_parallelism().ok().map(|cores| cores.get() as u64));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let quotas = group_directories(&groups, "cpu").into_iter().filter_map(|directory| cpu_quota(&directory));
    cores.map(|cores| 1_000 * cores).into_iter().chain(quotas).min().unwrap_or(0)
}

/// The cores of this process's affinity: a mask in hexadecimal.
fn allowed_cores(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed:"))?;
    let cores =
        mask.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| u64::from(digit.count_ones())).sum();
    (cores > 0).then_some(cores)
}

/// What a control group of either version may use, in milliseconds a second. `max` and -1, which are no such number, are no
/// limit.
fn cpu_quota(directory: &Path) -> Option<u64> {
    let read = |file: &str| fs::read_to_string(directory.join(file)).ok();
    let told =
        read("cpu.max").or_else(|| Some(read("cpu.cfs_quota_us")? + " " + &read("cpu.cfs_period_us")?))?;
    let mut figures = told.split_whitespace().map(|figure| figure.parse::<u64>().ok());
    let (quota_us, period_us) = (figures.next()??, figures.next()??);
    quota_us.saturating_mul(1_000).checked_div(period_us)
}

/// The smallest of the machine's memory and the limits of this process's control group.
fn memory_limit() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits =
        group_directories(&groups, "memory").into_iter().filter_map(|directory| memory_of(&directory));
    total_memory(&meminfo).into_iter().chain(limits).min().unwrap_or(0)
}

/// What a control group of either version may hold. `max`, which is no number, is no limit.
fn memory_of(directory: &Path) -> Option<u64> {
    let told = |file: &str| fs::read_to_string(directory.join(file)).ok();
    told("memory.max").or_else(|| told("memory.limit_in_bytes"))?.trim().parse().ok()
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1_024)
}

/// Where a controller's limits of a process in these groups are, in both versions of control groups. Inside a container the
/// path may be the outside's, so the root of what is mounted counts too.
fn group_directories(groups: &str, controller: &str) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let root = match controllers {
            "" => "/sys/fs/cgroup".to_owned(),
            names if names.split(',').any(|name| name == controller) => {
                format!("/sys/fs/cgroup/{controller}")
            }
            _ => continue,
        };
        directories.push(PathBuf::from(format!("{root}{path}")));
        directories.push(PathBuf::from(root));
    }
    directories
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_measured() {
        let system = System::new();
        assert!(system.cpu_millis_per_second >= 1);
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
        let shown = |groups: &str, controller: &str| -> Vec<String> {
            group_directories(groups, controller).iter().map(|path| path.display().to_string()).collect()
        };
        let root = "/sys/fs/cgroup/";
        assert_eq!(
            shown(v1, "memory"),
            ["/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/memory", root, "/sys/fs/cgroup"]
        );
        assert_eq!(shown(v1, "cpu")[1], "/sys/fs/cgroup/cpu");
        assert_eq!(shown("0::/user.slice", "cpu")[0], "/sys/fs/cgroup/user.slice");
        assert_eq!(total_memory("MemTotal:       16384 kB\nMemFree: 3 kB"), Some(16_384 * 1_024));
        assert_eq!(total_memory("nothing"), None);
    }

    #[test]
    fn parts_of_a_core_are_told() {
        let directory = std::env::temp_dir().join(format!("berth-quota-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let write = |file: &str, text: &str| fs::write(directory.join(file), text).expect("a file");
        assert_eq!(cpu_quota(&directory), None);
        write("cpu.cfs_quota_us", "150000\n");
        write("cpu.cfs_period_us", "100000\n");
        assert_eq!(cpu_quota(&directory), Some(1_500));
        write("cpu.cfs_quota_us", "-1\n");
        assert_eq!(cpu_quota(&directory), None);
        for (text, expected) in [("50000 100000\n", Some(500)), ("max 100000\n", None), ("1 0\n", None)] {
            write("cpu.max", text);
            assert_eq!(cpu_quota(&directory), expected, "{text:?}");
        }
        fs::remove_dir_all(&directory).expect("removed");
        assert_eq!(allowed_cores("Cpus_allowed:\t3,0000000f\nCpus_allowed_list:\t0-3"), Some(6));
        assert_eq!(allowed_cores("nothing"), None);
    }
}
