//! One connection's socket and the bytes that are neither parsed nor written yet. Both buffers exist only while needed.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Shutdown},
};

use mio::net::TcpStream;

use crate::{
    guard::{Kept, Network},
    session::{Cx, Frames, Session, Stop},
};

/// Reads of one connection before the others have their turn: one fills the scratch buffer, which holds the largest frame.
const READS_PER_TURN: usize = 1;

/// A socket, its session and its unfinished business.
pub(crate) struct Connection {
    stream: TcpStream,
    pub(crate) session: Session,
    /// The head of a frame, so less than one; or what one read brought while the session waits or the peer does not read.
    input: Option<Box<Held>>,
    /// What the socket did not take.
    output: Option<Box<Held>>,
    /// The wheel's second that holds this connection.
    pub(crate) armed: i64,
    /// The socket may have bytes to read.
    readable: bool,
    /// The peer sent its end of stream, which may stand behind bytes not read yet.
    read_closed: bool,
    /// Our half is shut.
    shut: bool,
    /// The socket took nothing of the notify that is pending: that waits, merged with what comes, until there is room.
    full: bool,
    /// Listed to be settled because of a notify.
    pub(crate) dirty: bool,
    /// Listed to be settled because it has more to read.
    pub(crate) again: bool,
    /// Counted among those without a hello that was accepted, with so much kept.
    pub(crate) pending: Option<Kept>,
    /// Counted among the connections of this network.
    pub(crate) network: Option<Network>,
}

struct Held {
    bytes: Vec<u8>,
    /// Of these, so many are done.
    done: usize,
}

/// What is to happen with a connection next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing before the next event.
    Stay,
    /// It has more to read, after the others' turn.
    Again,
    /// Drop it.
    Gone,
}

/// What became of a pending notify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// The socket took these bytes: all, and nothing is kept.
    All(usize),
    /// The socket took these bytes, a part; the rest is kept.
    Part(usize),
    /// The socket is full: it goes out when there is room.
    Full,
    /// Something is unsent: it goes out behind that.
    Later,
    /// It is none of this road's: [`Connection::settle`] tells it.
    Otherwise,
}

/// What epoll said about a socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) read_closed: bool,
    /// Both halves are closed, or the socket failed.
    pub(crate) hung_up: bool,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, session: Session) -> Self {
        Self {
            stream,
            session,
            input: None,
            output: None,
            armed: i64::MAX,
            readable: false,
            read_closed: false,
            shut: false,
            full: false,
            dirty: false,
            again: false,
            pending: None,
            network: None,
        }
    }

    /// Where the peer is; none: the socket has failed.
    pub(crate) fn peer(&self) -> Option<IpAddr> {
        self.stream.peer_addr().ok().map(|address| address.ip())
    }

    /// Takes note of an event; [`Connection::settle`] follows. Edges are remembered until they are used up.
    pub(crate) fn on_ready(&mut self, cx: &mut Cx<'_>, ready: Readiness) {
        self.readable |= ready.readable || ready.read_closed || ready.hung_up;
        self.read_closed |= ready.read_closed;
        self.full &= !ready.writable;
        // Bytes that came before the end still count, so a reader finds the end itself. One that waits does not read.
        if ready.hung_up && (self.output.is_some() || !self.session.wants_input()) {
            self.session.peer_gone(cx, true);
        } else if ready.writable && self.output.is_some() {
            self.write_held(cx);
        }
    }

    /// What epoll has not said yet may have happened all the same: the socket is asked by the next
    /// [`Connection::settle`], and now for room.
    pub(crate) fn ask(&mut self, cx: &mut Cx<'_>) {
        self.readable = true;
        self.full = false;
        self.write_held(cx);
    }

    /// Writes the pending notify from bytes that others are told from too: without a lock, a copy or an allocation.
    /// [`Session::blocked`] follows [`Told::Part`] and [`Told::Full`].
    pub(crate) fn tell(&mut self, frames: &mut Frames) -> Told {
        if self.output.is_some() || self.full {
            return Told::Later;
        }
        let Some(frame) = self.session.inbox_notify(frames) else { return Told::Otherwise };
        let count = match self.stream.write(frame) {
            Ok(count) if count > 0 => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.full = true;
                return Told::Full;
            }
            // It fails there again, and is dealt with.
            Ok(_) | Err(_) => return Told::Otherwise,
        };
        self.session.told_inbox();
        if count == frame.len() {
            return Told::All(count);
        }
        self.output = Some(Box::new(Held { bytes: frame[count..].to_vec(), done: 0 }));
        Told::Part(count)
    }

    /// Does everything that can be done now: parses, writes, reads, in turns, within a budget.
    pub(crate) fn settle(&mut self, cx: &mut Cx<'_>, scratch: &mut [u8]) -> Verdict {
        let mut turns = READS_PER_TURN;
        let mut fresh = 0;
        loop {
            let stop = self.parse(cx, &mut scratch[..fresh]);
            if self.output.is_none() && !self.full {
                self.session.write_pending(cx);
            }
            self.flush(cx);
            if self.session.gone() {
                return Verdict::Gone;
            }
            if self.output.is_some() {
                return Verdict::Stay;
            }
            self.session.all_written(cx);
            if stop == Stop::Full {
                fresh = 0;
                continue;
            }
            if self.session.closing() && !self.shut {
                self.shut = true;
                // Fails only if the peer is gone, which the next read says.
                let _ = self.stream.shutdown(Shutdown::Write);
            }
            if !self.readable || !self.session.wants_input() {
                return Verdict::Stay;
            }
            if turns == 0 {
                return Verdict::Again;
            }
            turns -= 1;
            fresh = self.read(cx, scratch);
        }
    }

    /// Gives the session what was kept, then `fresh`; keeps what it does not take.
    fn parse(&mut self, cx: &mut Cx<'_>, fresh: &mut [u8]) -> Stop {
        let Some(held) = &mut self.input else {
            if fresh.is_empty() {
                return Stop::Incomplete;
            }
            let (taken, stop) = self.session.receive(cx, fresh);
            if let Some(rest) = fresh.get(taken..).filter(|rest| !rest.is_empty()) {
                self.input = Some(Box::new(Held { bytes: rest.to_vec(), done: 0 }));
            }
            return stop;
        };
        held.append(fresh);
        if self.output.is_some() || !self.session.wants_input() {
            return Stop::Paused;
        }
        let (taken, stop) = self.session.receive(cx, &mut held.bytes[held.done..]);
        held.done += taken;
        if held.done == held.bytes.len() {
            self.input = None;
        } else {
            held.keep_tail();
        }
        stop
    }

    /// Fills the scratch buffer once; 0: there is nothing more for now.
    fn read(&mut self, cx: &mut Cx<'_>, scratch: &mut [u8]) -> usize {
        loop {
            match self.stream.read(scratch) {
                Ok(0) => {
                    self.readable = false;
                    self.session.peer_gone(cx, false);
                    return 0;
                }
                Ok(count) => {
                    // A short read emptied the socket (epoll(7)); an end of stream behind it makes no new edge.
                    if count < scratch.len() && !self.read_closed {
                        self.readable = false;
                    }
                    cx.env.metrics.traffic.bytes_in.increment(count as u64);
                    return count;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.readable = false;
                    if error.kind() != ErrorKind::WouldBlock {
                        self.session.peer_gone(cx, true);
                    }
                    return 0;
                }
            }
        }
    }

    /// Writes the output, or keeps what the socket does not take.
    fn flush(&mut self, cx: &mut Cx<'_>) {
        if cx.out.is_empty() {
            return;
        }
        if let Some(held) = &mut self.output {
            held.append(cx.out);
            cx.out.clear();
            return;
        }
        match write(&mut self.stream, cx.out) {
            Ok(count) => {
                cx.env.metrics.traffic.bytes_out.increment(count as u64);
                let all = count == cx.out.len();
                if !all {
                    cx.env.metrics.traffic.writes_blocked.increment(1);
                    self.output = Some(Box::new(Held { bytes: cx.out[count..].to_vec(), done: 0 }));
                }
                if self.session.is_blocked() && count > 0 {
                    self.session.unblocked(cx, count, all && !self.full);
                } else if !all {
                    self.session.blocked(cx);
                }
                cx.out.clear();
            }
            Err(_) => {
                cx.out.clear();
                self.session.peer_gone(cx, true);
            }
        }
    }

    /// Bytes of memory held for input: an incomplete frame, and fragments of a message.
    pub(crate) fn input_memory(&self) -> usize {
        self.input.as_ref().map_or(0, |held| held.bytes.capacity()) + self.session.assembled()
    }

    fn write_held(&mut self, cx: &mut Cx<'_>) {
        let Some(held) = &mut self.output else { return };
        match write(&mut self.stream, &held.bytes[held.done..]) {
            Ok(count) => {
                cx.env.metrics.traffic.bytes_out.increment(count as u64);
                held.done += count;
                let all = held.done == held.bytes.len();
                if all {
                    self.output = None;
                }
                if count > 0 {
                    self.session.unblocked(cx, count, all);
                }
            }
            Err(_) => {
                self.output = None;
                self.session.peer_gone(cx, true);
            }
        }
    }
}

impl Held {
    /// Lets go of what is done, and of its memory.
    fn keep_tail(&mut self) {
        if self.done > 0 {
            self.bytes = self.bytes[self.done..].to_vec();
            self.done = 0;
        }
    }

    fn append(&mut self, more: &[u8]) {
        if more.is_empty() {
            return;
        }
        // What is done goes first, at the latest when it is half of all: the memory follows what is left.
        if self.done > self.bytes.len() / 2 {
            self.bytes.drain(..self.done);
            self.done = 0;
        }
        self.bytes.extend_from_slice(more);
    }
}

/// Writes until the socket takes no more; how much it took.
fn write(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match stream.write(&bytes[done..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests;
