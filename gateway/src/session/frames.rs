//! Notify frames ready to be written: a frame that many connections are told is encoded once, whenever they are told it.

use berth_proto::{
    frame::{Encoding, encode_inbox_notify},
    limits,
};

use super::wire::Wire;

/// Frames kept of each form. Neighbouring seqs have places of their own, so that the members of a conversation, whose
/// inboxes are about as long as each other's, find each other's frames. All of it is 12 KB, in the fast caches.
const KEPT: usize = 64;

/// Longest frame: the JSON form has 26 bytes around a seq of at most 20 digits, and a header of 2.
const LONGEST: usize = 55;

/// One frame.
#[derive(Clone, Copy)]
struct Kept {
    inbox_seq: u64,
    /// 0: none.
    length: u8,
    bytes: [u8; LONGEST],
}

/// A worker's notify frames, by form and inbox seq. The content is the key, so nothing here is ever out of date.
pub(crate) struct Frames {
    kept: Vec<Kept>,
    scratch: Vec<u8>,
}

impl Default for Frames {
    fn default() -> Self {
        let none = Kept { inbox_seq: 0, length: 0, bytes: [0; LONGEST] };
        Self { kept: vec![none; 3 * KEPT], scratch: Vec::with_capacity(LONGEST) }
    }
}

impl Frames {
    /// The frame, in its envelope, that tells an inbox seq on this wire; none before the wire is known.
    pub(super) fn notify(&mut self, wire: Wire, inbox_seq: u64) -> Option<&[u8]> {
        let form = match wire {
            Wire::Unknown => return None,
            Wire::WebSocket(Encoding::Json) => 0,
            Wire::WebSocket(Encoding::Proto) => 1,
            Wire::Tcp => 2,
        };
        let place = form * KEPT + (inbox_seq % KEPT as u64) as usize;
        let kept = &mut self.kept[place];
        if kept.inbox_seq != inbox_seq || kept.length == 0 {
            self.scratch.clear();
            let encode = |encoding, out: &mut Vec<u8>| encode_inbox_notify(encoding, inbox_seq, out);
            let fits = wire.write_with(encode, &mut self.scratch, limits::SERVER_FRAME);
            let length = u8::try_from(self.scratch.len()).ok().filter(|_| fits)?;
            kept.bytes.get_mut(..length.into())?.copy_from_slice(&self.scratch);
            (kept.inbox_seq, kept.length) = (inbox_seq, length);
        }
        Some(&kept.bytes[..kept.length.into()])
    }
}

#[cfg(test)]
mod tests {
    use berth_proto::client::{Notify, server_frame::Frame};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_frame_that_would_be_written(seqs in proptest::collection::vec(prop_oneof![0u64..200, any::<u64>(), Just(u64::MAX)], 1..200)) {
            let mut frames = Frames::default();
            for inbox_seq in seqs {
                for wire in [Wire::Tcp, Wire::WebSocket(Encoding::Json), Wire::WebSocket(Encoding::Proto)] {
                    let mut expected = Vec::new();
                    wire.write(Frame::Notify(Notify { inbox_seq, ..Notify::default() }), &mut expected, limits::SERVER_FRAME);
                    prop_assert_eq!(frames.notify(wire, inbox_seq), Some(&expected[..]));
                }
                prop_assert_eq!(frames.notify(Wire::Unknown, inbox_seq), None);
            }
        }
    }
}
