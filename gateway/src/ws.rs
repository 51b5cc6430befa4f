//! WebSocket frames (RFC 6455) without extensions: headers, masks and the reassembly of fragments. Pure.

use std::borrow::Cow;

use thiserror::Error;

/// Longest frame header a client sends: 2 bytes, 8 of length, 4 of mask.
pub const MAX_HEADER: usize = 14;

/// Longest payload of a control frame (RFC 6455, 5.5).
const MAX_CONTROL: usize = 125;

/// What a frame is, by its opcode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// How a client broke RFC 6455, or our limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WsError {
    /// A reserved bit is set though no extension was agreed on.
    #[error("a reserved bit is set; no extension was agreed on")]
    ReservedBit,
    /// An opcode without meaning.
    #[error("opcode {0} has no meaning")]
    Opcode(u8),
    /// Clients must mask.
    #[error("the frame is not masked")]
    Unmasked,
    /// Control frames are never fragmented.
    #[error("a control frame is fragmented")]
    FragmentedControl,
    /// Control frames carry at most 125 bytes.
    #[error("a control frame has more than 125 bytes")]
    LongControl,
    /// A message, whole or so far, is larger than allowed.
    #[error("a message of {length} bytes; at most {limit} are allowed")]
    TooLarge {
        /// What came or was announced.
        length: u64,
        /// What is allowed.
        limit: usize,
    },
    /// A continuation of nothing.
    #[error("a continuation without a message to continue")]
    NothingToContinue,
    /// A new message inside a fragmented one.
    #[error("a new message begins inside a fragmented one")]
    Interleaved,
    /// A close frame whose payload is no code and text.
    #[error("the close frame's payload is malformed")]
    BadClose,
    /// A text message that is not UTF-8.
    #[error("the text is not UTF-8")]
    NotUtf8,
}

/// Something complete that a client sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole message.
    Message {
        /// Text (valid UTF-8) or binary.
        text: bool,
        /// Unmasked; owned if it came in fragments.
        payload: Cow<'a, [u8]>,
    },
    /// A part of a message, kept.
    Fragment,
    /// To be answered with a pong of the same payload.
    Ping(&'a [u8]),
    /// An answer to a ping, or a one-way heartbeat.
    Pong,
    /// The client closes, with this code if it gave one.
    Close(Option<u16>),
}

/// The fragments of one unfinished message.
#[derive(Debug)]
pub struct Assembly {
    text: bool,
    bytes: Vec<u8>,
}

impl Assembly {
    /// Bytes of memory held.
    pub fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    /// Grows by doubling, but not beyond the largest message.
    fn append(&mut self, payload: &[u8], limit: usize) {
        let needed = self.bytes.len() + payload.len();
        if needed > self.bytes.capacity() {
            let goal = (2 * self.bytes.capacity()).min(limit).max(needed);
            self.bytes.reserve_exact(goal - self.bytes.len());
        }
        self.bytes.extend_from_slice(payload);
    }
}

struct Header {
    last: bool,
    opcode: Opcode,
    mask: [u8; 4],
    /// Bytes of the header itself.
    size: usize,
    payload: usize,
}

/// The next complete frame at the head of `input`, unmasked in place, and the bytes it took; `None` while it is
/// incomplete. `limit` is the largest message.
///
/// # Errors
/// See [`WsError`]; the connection cannot go on after one.
pub fn next<'a>(
    assembly: &mut Option<Box<Assembly>>,
    input: &'a mut [u8],
    limit: usize,
) -> Result<Option<(Event<'a>, usize)>, WsError> {
    let so_far = assembly.as_ref().map(|assembly| assembly.bytes.len());
    let Some(header) = parse_header(input, so_far, limit)? else { return Ok(None) };
    let end = header.size + header.payload;
    let Some(payload) = input.get_mut(header.size..end) else { return Ok(None) };
    unmask(payload, header.mask);
    let event = match header.opcode {
        Opcode::Ping => Event::Ping(payload),
        Opcode::Pong => Event::Pong,
        Opcode::Close => Event::Close(close_code(payload)?),
        Opcode::Continuation => continued(assembly, payload, header.last, limit)?,
        opcode => {
            let text = opcode == Opcode::Text;
            if header.last {
                whole(text, Cow::Borrowed(payload))?
            } else {
                *assembly = Some(Box::new(Assembly { text, bytes: payload.to_vec() }));
                Event::Fragment
            }
        }
    };
    Ok(Some((event, end)))
}

/// Appends a whole, unmasked frame.
pub fn write_frame(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(payload);
    frame_in_place(opcode, start, out);
}

/// Makes a frame of what stands in `out` from `start` on.
pub fn frame_in_place(opcode: Opcode, start: usize, out: &mut Vec<u8>) {
    let length = out.len() - start;
    let first = 0x80 | opcode as u8;
    let short = u8::try_from(length).ok().filter(|n| usize::from(*n) <= MAX_CONTROL);
    if let Some(length) = short {
        out.splice(start..start, [first, length]);
    } else if let Ok(length) = u16::try_from(length) {
        let [a, b] = length.to_be_bytes();
        out.splice(start..start, [first, 126, a, b]);
    } else {
        let [a, b, c, d, e, f, g, h] = (length as u64).to_be_bytes();
        out.splice(start..start, [first, 127, a, b, c, d, e, f, g, h]);
    }
}

/// Appends a close frame; the reason is cut to what a control frame holds.
pub fn write_close(code: u16, reason: &str, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&code.to_be_bytes());
    let fits =
        (0..=reason.len().min(MAX_CONTROL - 2)).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
    out.extend_from_slice(&reason.as_bytes()[..fits]);
    frame_in_place(Opcode::Close, start, out);
}

/// Refuses what can be refused as soon as the header is there, before any payload. `so_far`: bytes of the message that is
/// being assembled, if one is.
fn parse_header(bytes: &[u8], so_far: Option<usize>, limit: usize) -> Result<Option<Header>, WsError> {
    let Some(([first, second], rest)) = bytes.split_first_chunk::<2>() else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(WsError::ReservedBit);
    }
    let opcode = opcode(first & 0x0f)?;
    let last = first & 0x80 != 0;
    if second & 0x80 == 0 {
        return Err(WsError::Unmasked);
    }
    let control = opcode as u8 >= Opcode::Close as u8;
    if control && !last {
        return Err(WsError::FragmentedControl);
    }
    match (opcode, so_far) {
        (Opcode::Text | Opcode::Binary, Some(_)) => return Err(WsError::Interleaved),
        (Opcode::Continuation, None) => return Err(WsError::NothingToContinue),
        _ => {}
    }
    let (length, rest) = match second & 0x7f {
        126 => match rest.split_first_chunk::<2>() {
            Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk::<8>() {
            Some((length, rest)) => (u64::from_be_bytes(*length), rest),
            None => return Ok(None),
        },
        length => (u64::from(length), rest),
    };
    if control && length > MAX_CONTROL as u64 {
        return Err(WsError::LongControl);
    }
    if !control {
        let whole = length.saturating_add(so_far.unwrap_or(0) as u64);
        if whole > limit as u64 {
            return Err(WsError::TooLarge { length: whole, limit });
        }
    }
    let payload = usize::try_from(length).map_err(|_| WsError::TooLarge { length, limit })?;
    let Some((mask, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
    Ok(Some(Header { last, opcode, mask: *mask, size: bytes.len() - rest.len(), payload }))
}

fn opcode(number: u8) -> Result<Opcode, WsError> {
    Ok(match number {
        0 => Opcode::Continuation,
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        other => return Err(WsError::Opcode(other)),
    })
}

/// Eight bytes at a time: the compiler makes vector instructions of it.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, tail) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in tail.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

fn continued<'a>(
    assembly: &mut Option<Box<Assembly>>,
    payload: &[u8],
    last: bool,
    limit: usize,
) -> Result<Event<'a>, WsError> {
    let Some(open) = assembly else { return Err(WsError::NothingToContinue) };
    open.append(payload, limit);
    if !last {
        return Ok(Event::Fragment);
    }
    let done = assembly.take().ok_or(WsError::NothingToContinue)?;
    whole(done.text, Cow::Owned(done.bytes))
}

fn whole(text: bool, payload: Cow<'_, [u8]>) -> Result<Event<'_>, WsError> {
    if text && std::str::from_utf8(&payload).is_err() {
        return Err(WsError::NotUtf8);
    }
    Ok(Event::Message { text, payload })
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, WsError> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok(None) } else { Err(WsError::BadClose) };
    };
    let code = u16::from_be_bytes(*code);
    // RFC 6455, 7.4: what may stand in a frame; 1004 to 1006 and 1015 may not.
    let allowed = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    if !allowed || std::str::from_utf8(reason).is_err() {
        return Err(WsError::BadClose);
    }
    Ok(Some(code))
}

#[cfg(test)]
// By its path, so that the echo example finds this file whole.
#[path = "ws/tests.rs"]
mod tests;
