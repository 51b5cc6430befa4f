//! What a gateway asks of its process: descriptors, since a connection is one, and memory in small pages.
//!
//! The one place with `unsafe`: the standard library has no calls for it. These only read or write a struct on our own
//! stack, or are given numbers.
#![expect(unsafe_code, reason = "getrlimit, setrlimit and prctl have no safe wrapper among our dependencies")]

use std::io;

/// Raises the soft limit of open descriptors to the hard one; returns what then holds.
///
/// # Errors
/// When the limit cannot be read. A limit that cannot be raised is no error: the lower one is returned.
pub(crate) fn raise_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: `raised` is a valid rlimit that outlives the call.
    let done = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0;
    Ok(if done { raised.rlim_cur } else { limit.rlim_cur })
}

/// Has the kernel give this process no more huge pages, whatever its allocator asks for. Connections come, go and grow in no
/// order: with pages of 2 MiB a few of them hold the memory of all that were there, and an idle one weighs twice as much.
///
/// # Errors
/// What a kernel or a sandbox says that does not allow it: everything works as before, and takes more memory.
pub(crate) fn small_pages() -> io::Result<()> {
    let (yes, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: PR_SET_THP_DISABLE takes numbers only (prctl(2)).
    match unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, yes, unused, unused, unused) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_a_limit() {
        assert!(super::raise_limit().expect("readable") >= 64);
    }

    #[test]
    fn huge_pages_can_be_turned_off() {
        super::small_pages().expect("Linux 3.15 or later");
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let said = status.lines().find_map(|line| line.strip_prefix("THP_enabled:"));
        // Linux before 5.0 does not say.
        assert!(said.is_none_or(|enabled| enabled.trim() == "0"), "{said:?}");
    }
}
