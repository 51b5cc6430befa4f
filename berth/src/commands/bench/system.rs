//! What the load generator asks of the operating system: descriptors, ports, and what a process has used.
//!
//! The one place with `unsafe` in this crate: these calls have no safe wrapper among our dependencies, and each only hands
//! the kernel a struct or number on our own stack.
#![expect(
    unsafe_code,
    reason = "setrlimit, IP_BIND_ADDRESS_NO_PORT and timerfd have no safe wrapper among our dependencies"
)]

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// Raises the soft limit of open descriptors to the hard one; returns what then holds.
pub fn raise_descriptor_limit() -> io::Result<u64> {
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

/// Lets the kernel choose the port at connect, when it knows the whole four-tuple: a bind before it searches for a port
/// that nobody uses at all, which takes ten times as long once thousands are taken.
pub fn bind_address_no_port(socket: &impl AsRawFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&on)).expect("4 bytes");
    // SAFETY: the descriptor is open while it is borrowed, and `on` is a valid int of the size told.
    let done = unsafe {
        let option = libc::IP_BIND_ADDRESS_NO_PORT;
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, option, (&raw const on).cast(), size)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A timer that wakes an epoll loop, exact to some 50 µs. epoll's own timeout is rounded up to a millisecond, which would
/// be most of a latency that counts from an intended time.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// A timer that is not set.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the result is checked.
        let fd =
            unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open, and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Wakes once, after so many nanoseconds. Setting it again forgets the time before.
    pub fn set(&self, nanos: u64) {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // Zero would switch it off.
        let nanos = nanos.clamp(1, 1_000_000_000_000);
        let value = libc::timespec {
            tv_sec: libc::time_t::try_from(nanos / 1_000_000_000).unwrap_or(1_000),
            tv_nsec: libc::c_long::try_from(nanos % 1_000_000_000).unwrap_or(0),
        };
        let spec = libc::itimerspec { it_interval: zero, it_value: value };
        // SAFETY: `spec` is valid and outlives the call; the old value is not asked for. It fails only on bad arguments.
        unsafe { libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const spec, std::ptr::null_mut()) };
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// What a process has used until now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU of all its threads that still run, in nanoseconds.
    pub cpu: u64,
    /// Resident anonymous memory, in bytes: what is its own, without the files mapped into it.
    pub anonymous: u64,
}

/// The usage of a process, and its threads' CPU in nanoseconds by thread name without a number at its end; `None` when it
/// is gone or not ours to see.
pub fn usage(pid: &str) -> Option<(Usage, std::collections::BTreeMap<String, u64>)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = anonymous.trim().trim_end_matches(" kB").parse().ok()?;
    let mut threads = std::collections::BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.filter_map(Result::ok) {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).ok();
        // A thread may end between the listing and the reading.
        let (Some(schedstat), Some(name)) = (read("schedstat"), read("comm")) else { continue };
        let Some(Ok(cpu)) = schedstat.split_whitespace().next().map(str::parse::<u64>) else { continue };
        let name = name.trim().trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-');
        *threads.entry(name.to_owned()).or_default() += cpu;
    }
    Some((Usage { cpu: threads.values().sum(), anonymous: kib * 1024 }, threads))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_what_is_asked() {
        assert!(raise_descriptor_limit().expect("readable") >= 64);
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        bind_address_no_port(&socket).expect("Linux has it since 4.2");
        let any: std::net::SocketAddr = "127.0.0.2:0".parse().expect("an address");
        socket.bind(&any.into()).expect("binds");
        let bound = socket.local_addr().expect("bound").as_socket().expect("an address");
        assert_eq!(bound.port(), 0, "no port before connect");
    }

    #[test]
    fn the_timer_wakes_and_can_be_set_again() {
        let timer = Timer::new().expect("Linux");
        let mut poll = mio::Poll::new().expect("epoll");
        let fd = timer.as_raw_fd();
        let mut source = mio::unix::SourceFd(&fd);
        poll.registry().register(&mut source, mio::Token(1), mio::Interest::READABLE).expect("registered");
        let mut events = mio::Events::with_capacity(4);
        // Nobody reads it: setting it again is what makes it fire again.
        for _ in 0..3 {
            timer.set(100_000);
            poll.poll(&mut events, Some(std::time::Duration::from_secs(10))).expect("epoll");
            assert!(events.iter().any(|event| event.token() == mio::Token(1)));
        }
    }

    #[test]
    fn this_process_has_used_something() {
        let (usage, threads) = usage("self").expect("Linux");
        assert!(usage.cpu > 0 && usage.anonymous > 100_000, "{usage:?}");
        assert_eq!(threads.values().sum::<u64>(), usage.cpu);
        assert!(super::usage("0").is_none());
    }
}
