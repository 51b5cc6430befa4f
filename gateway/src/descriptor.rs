//! The process's descriptor limit: a connection is a descriptor.
//!
//! The one place with `unsafe`: the standard library has no call for it, and both calls only read or write a struct on
//! our own stack.
#![expect(unsafe_code, reason = "getrlimit and setrlimit have no safe wrapper among our dependencies")]

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

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_a_limit() {
        assert!(super::raise_limit().expect("readable") >= 64);
    }
}
